"""Real processes, killed or interrupted in the middle: nothing is lost or torn."""

import signal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from market_pipeline_tests.cli.conftest import Command
from market_pipeline_tests.commands import SCRIPTS
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.system.processes import run_in_background, wait_for

BACKFILL = (
    "backfill",
    "--from",
    "2021-01-01",
    "--to",
    "2024-01-01",
    "--symbols",
    "BTC-USD,ETH-USD",
)
# Half of the calls are refused for a second, so that there is a middle.
SLOW = {"MOCK_FAULTS": "*:429=1 50%"}
SECONDS = 90.0
BARS = "SELECT count(*) FROM market_data.market_aggregate"
DIGEST = """SELECT md5(string_agg(format('%s %s %s %s %s %s %s', symbol, interval, open_time, open,
        close, volume, is_final), ',' ORDER BY symbol, interval, open_time))
    FROM market_data.market_aggregate JOIN market_data.market USING (market_id)"""
INSERTED = "SELECT coalesce(sum(inserted), 0)::int FROM market_data.ingestion_run_market"
CLAIMS = "SELECT 1 FROM market_data.fetch_claim"


def count(engine: Engine, query: str) -> int:
    """Return a query's only number, 0 for none."""
    found: list[Any] = read_column(engine, query)
    return int(found[0]) if found else 0


@pytest.mark.owner
@pytest.mark.timeout(300)
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_backfill_that_is_stopped_goes_on_where_it_was(
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
