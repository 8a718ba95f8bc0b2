"""Real processes, killed or interrupted in the middle: nothing is lost or torn."""

import json
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text

from market_pipeline.providers.registry import load_provider
from market_pipeline.storage.markets.registration import ensure_market, ensure_markets
from market_pipeline.storage.runs.claims import find_living, hold_liveness_lock, take_claim
from market_pipeline_tests.cli.conftest import Command
from market_pipeline_tests.commands import SCRIPTS
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.system.processes import run_in_background, wait_for

pytestmark = pytest.mark.faults

BACKFILL = (
    "backfill",
    "--from",
    "2021-01-01",
    "--to",
    "2024-01-01",
    "--symbols",
    "BTC-USD,ETH-USD",
)
# Half of the calls are refused for a second, one market after the other: so there is a middle.
SLOW = {"MOCK_FAULTS": "*:429=1 50%", "FETCH_WORKERS": "1"}
SECONDS = 300.0
BARS = "SELECT count(*) FROM market_data.market_aggregate"
DIGEST = """SELECT md5(string_agg(format('%s %s %s %s %s %s %s', symbol, interval, open_time, open,
        close, volume, is_final), ',' ORDER BY symbol, interval, open_time))
    FROM market_data.market_aggregate JOIN market_data.market USING (market_id)"""
INSERTED = """SELECT coalesce(sum(inserted + derived_inserted), 0)::int
    FROM market_data.ingestion_run_market"""
CLAIMS = "SELECT 1 FROM market_data.fetch_claim"
LINES = """SELECT jsonb_build_array(symbol, outcome) FROM market_data.ingestion_run_market
    JOIN market_data.market USING (market_id)"""


def count(engine: Engine, query: str) -> int:
    """Return a query's only number, 0 for none."""
    found: list[Any] = read_column(engine, query)
    return int(found[0]) if found else 0


@pytest.mark.owner
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a2_a_backfill_that_is_stopped_goes_on_where_it_was(
    blow: signal.Signals,
    command: Command,
    project_environment: dict[str, str],
    engine: Engine,
    tmp_path: Path,
) -> None:
    """What was committed stays and is not written again; in the end it is as if never stopped."""
    typed = [str(SCRIPTS / "market-pipeline"), *BACKFILL]
    with run_in_background(typed, {**project_environment, **SLOW}, tmp_path) as child:
        wait_for(lambda: count(engine, BARS) > 0, SECONDS, "the first batch", child)
        child.process.send_signal(blow)
        code = child.process.wait(SECONDS)
        assert code not in (0, 3), child.read_last_words()
    kept, written = count(engine, BARS), count(engine, INSERTED)
    assert 0 < kept == written
    done = command(*BACKFILL)
    assert done.returncode == 0, done.stderr
    whole = count(engine, BARS)
    assert kept < whole == count(engine, INSERTED)
    assert command("coverage", "--verify").returncode == 0
    torn, (digest,) = read_column(engine, CLAIMS), read_column(engine, DIGEST)
    assert torn == []
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE market_data.market CASCADE"))
    assert command(*BACKFILL).returncode == 0
    assert read_column(engine, DIGEST) == [digest]


MARKETS = [f"M{number:03}-USD" for number in range(7)]
WAVE = ("ingest", "--symbols", ",".join(MARKETS), "--window-end", "2024-03-15", "--lookback-days")
# The database refuses one market; what comes after the first bars that stay waits for the test.
SPOIL = """
    ALTER TABLE market_data.market_aggregate ADD CONSTRAINT spoilt CHECK (market_id <> {});
    CREATE FUNCTION market_data.halt() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF EXISTS (SELECT FROM market_data.market_aggregate) THEN
            PERFORM pg_advisory_xact_lock(42);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER halt BEFORE INSERT ON market_data.market_aggregate
        EXECUTE FUNCTION market_data.halt();
"""
MEND = """
    ALTER TABLE market_data.market_aggregate DROP CONSTRAINT spoilt;
    DROP FUNCTION market_data.halt() CASCADE;
"""
LANDED = """SELECT DISTINCT symbol FROM market_data.market_aggregate
    JOIN market_data.market USING (market_id)"""
HALTED = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted"


@pytest.mark.owner
def test_a1_a_run_that_is_killed_while_a_wave_is_halved_is_repaired_by_the_next(
    command: Command, project_environment: dict[str, str], engine: Engine, tmp_path: Path
) -> None:
    """Some halves landed and the others did not: no market is torn, none is left out."""
    provider = load_provider("mock", {})
    routed = [market for name in MARKETS if (market := provider.find_market(name))]
    ids = ensure_markets(engine, routed, claim_primary=True)
    with engine.begin() as connection:
        connection.exec_driver_sql(SPOIL.format(ids[3]))
    typed = [str(SCRIPTS / "market-pipeline"), *WAVE, "5"]
    with engine.connect() as session:
        session.execute(text("SELECT pg_advisory_lock(42)"))
        with run_in_background(typed, project_environment, tmp_path) as child:
            wait_for(lambda: bool(read_column(engine, HALTED)), SECONDS, "the halves", child)
            child.process.kill()
            child.process.wait(SECONDS)
    wait_for(lambda: read_column(engine, HALTED) == [], SECONDS, "its sessions to end")
    landed = read_column(engine, LANDED)
    assert 0 < len(landed) < len(MARKETS)
    # The refused one has its line already where the halves came down to it before the others.
    lines = [line for line in read_column(engine, LINES) if line != [MARKETS[3], "failed"]]
    assert sorted(lines) == sorted([name, "ok"] for name in landed)
    with engine.begin() as connection:
        connection.exec_driver_sql(MEND)
    assert command(*WAVE, "5").returncode == 0
    assert sorted(read_column(engine, LANDED)) == MARKETS
    assert command("coverage", "--verify").returncode == 0
    (digest,) = read_column(engine, DIGEST)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE market_data.market CASCADE"))
    assert command(*WAVE, "5").returncode == 0
    assert read_column(engine, DIGEST) == [digest]


RUN = "SELECT to_jsonb(run) FROM market_data.ingestion_run run WHERE run_id = '{}'"
FAILURES = (
    "SELECT sum(value)::int FROM market_data.metric_total WHERE name = 'ingestion_failure_total'"
)


def find_alive(engine: Engine, run_id: str) -> set[UUID]:
    """Return the run if its lock is held: it is freed a moment after the process's end."""
    with engine.connect() as connection:
        return find_living(connection, [UUID(run_id)])


def read_json(command: Command, *arguments: str) -> Any:
    """Return what a command prints as JSON."""
    done = command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def busy(engine: Engine) -> Iterator[None]:
    """ETH-USD is held by another run, so that a run of both markets stops in the middle."""
    market = load_provider("mock", {}).find_market("ETH-USD")
    assert market is not None
    key, other = ensure_market(engine, market, claim_primary=True), uuid4()
    with hold_liveness_lock(engine, other):
        take_claim(engine, key, other, timedelta(minutes=10))
        yield


@pytest.mark.usefixtures("busy")
def test_a_receipt_is_true_while_its_run_lives_when_it_is_killed_and_when_that_was_found(
    command: Command, project_environment: dict[str, str], engine: Engine, tmp_path: Path
) -> None:
    """Shown: running, then interrupted with the missing market; written by the next run: failed."""
    typed = [str(SCRIPTS / "market-pipeline"), *BACKFILL]
    with run_in_background(typed, project_environment, tmp_path) as child:
        first = [["BTC-USD", "ok"]]
        wait_for(lambda: read_column(engine, LINES) == first, SECONDS, "BTC-USD", child)
        alive = read_json(command, "runs", "show")
        child.process.kill()
        child.process.wait(SECONDS)
    run_id = alive["run_id"]
    wait_for(
        lambda: read_json(command, "runs", "show", run_id)["outcome"] != "running",
        SECONDS,
        "an end",
    )
    (before,) = read_column(engine, RUN.format(run_id))
    dead = read_json(command, "runs", "show", run_id)
    (listed,) = read_json(command, "runs")
    assert read_column(engine, RUN.format(run_id)) == [before]  # Reading writes nothing.
    assert alive["outcome"] == "running"
    assert (dead["outcome"], listed["outcome"]) == ("interrupted", "interrupted")
    assert (listed["ok"], listed["markets"]) == (1, 2)
    for shown in (alive, dead):
        markets = {row["symbol"]: row["outcome"] for row in shown["markets"]}
        assert markets == {"BTC-USD": "ok", "ETH-USD": "missing"}

    assert command("ingest", "--symbols", "BTC-USD", "--lookback-days", "2").returncode == 0

    ended = read_json(command, "runs", "show", run_id)
    assert ended["outcome"] == "failed"
    assert ended["error"].startswith("interrupted: ")
    assert read_column(engine, FAILURES) == [1]
