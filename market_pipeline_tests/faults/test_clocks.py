"""Clocks and time zones: the same rows wherever a process runs, and whatever its clock says."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from market_pipeline_tests.cli.conftest import Command
from market_pipeline_tests.commands import SCRIPTS
from market_pipeline_tests.databases import BARS, hold_up_writers, read_column
from market_pipeline_tests.faults.invariants import assert_invariants
from market_pipeline_tests.ingestion.installation import Installation
from market_pipeline_tests.second_opinion import check_numbers
from market_pipeline_tests.system.processes import run_in_background, wait_for

WAIT_SECONDS = 300.0
SYMBOLS = ("--symbols", "BTC-USD,SPX,ETH-USD")
RUN = ("ingest", *SYMBOLS, "--window-end", "2024-03-15T12:00", "--lookback-days", "40")
DIGEST = """SELECT md5(string_agg(bar::text, ',' ORDER BY bar)) FROM (
    SELECT (symbol, interval, open_time AT TIME ZONE 'UTC', close_time AT TIME ZONE 'UTC', open,
        close, volume, is_final) AS bar
    FROM market_data.market_aggregate JOIN market_data.market USING (market_id)) bars"""
NUMBERS = """SELECT md5(string_agg(statistic::text, ',' ORDER BY statistic)) FROM (
    SELECT (symbol, horizon, as_of AT TIME ZONE 'UTC', roi, sharpe, max_drawdown) AS statistic
    FROM market_data.market_roi_statistic JOIN market_data.market USING (market_id)) numbers"""


@pytest.mark.faults
@pytest.mark.owner
def test_h5_any_time_zone_of_a_process_stores_the_same(command: Command, engine: Engine) -> None:
    """Also one with odd minutes, and one that does not exist."""
    digests = set()
    for zone in ("UTC", "Asia/Kathmandu", ":/nonexistent", "America/New_York"):
        done = command(*RUN, TZ=zone, PGTZ="Asia/Kathmandu")
        assert done.returncode == 0, done.stderr
        assert_invariants(engine, is_repaired=True, is_closed=True)
        digests.add((*read_column(engine, DIGEST), *read_column(engine, NUMBERS)))
        with engine.begin() as connection:
            tables = "market_data.market, market_data.ingestion_run"
            connection.execute(text(f"TRUNCATE {tables} CASCADE"))
    assert len(digests) == 1


@pytest.mark.parametrize(
    "day", ["2024-02-29", "2025-02-28", "2025-03-01", "2024-12-31", "2025-01-01"]
)
def test_e11_a_year_that_begins_or_ends_at_a_leap_day_or_new_year_has_its_numbers(
    day: str, engine: Engine
) -> None:
    """Each is its formula over a year of days, whichever year it is."""
    noon = datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=UTC)
    Installation(engine, ("BTC-USD", "SPX")).ingest(noon, days=400)
    assert check_numbers(engine) > 100
    years = "SELECT roi IS NOT NULL FROM market_data.market_roi_statistic WHERE horizon = '365d'"
    assert read_column(engine, years) == [True, True]


FINALS = f"""SELECT (symbol, interval, open_time, close)::text FROM {BARS}
    JOIN market_data.market USING (market_id) WHERE is_final"""
FUTURE = f"SELECT count(*) FROM {BARS} WHERE open_time > now() OR is_final AND close_time > now()"
LIVE = ("ingest", "--symbols", "BTC-USD,SPX", "--lookback-days", "20")


@pytest.fixture
def fake_clock(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file that holds by how much a process's clock is wrong, and the variables for that."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    file = tmp_path / "clock"
    file.write_text("+0")
    return file, {
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip


FakeClock = tuple[Path, dict[str, str]]


@pytest.mark.system
def test_h3_clocks_that_differ_from_the_servers_by_minutes_change_nothing(
    engine: Engine, fake_clock: FakeClock, project_environment: dict[str, str], tmp_path: Path
) -> None:
    """A run ahead and then one behind: leases and ends are the server's, no bar goes back."""
    file, variables = fake_clock
    typed = [str(SCRIPTS / "market-pipeline"), *LIVE]
    finals = []
    for offset in ("+5m", "-5m"):
        file.write_text(offset)
        # Dagster's log readers outlive a run under a false clock, so nothing waits for a pipe.
        with run_in_background(typed, {**project_environment, **variables}, tmp_path) as child:
            assert child.process.wait(WAIT_SECONDS) == 0, child.read_last_words()
        assert_invariants(engine, is_repaired=True, is_closed=True)
        finals.append(set(read_column(engine, FINALS)))
    assert finals[0]
    assert finals[0] <= finals[1]
    starts = "SELECT started_at FROM market_data.ingestion_run ORDER BY ended_at"
    ahead, behind = read_column(engine, starts)
    assert ahead > behind  # type: ignore[operator]


@pytest.mark.system
@pytest.mark.parametrize("jump", ["-2h", "+400d"])
def test_h1_a_clock_that_jumps_in_the_middle_of_a_run_changes_none_of_its_decisions(
    jump: str, engine: Engine, database_url: str, command: Command, fake_clock: FakeClock,
    project_environment: dict[str, str], tmp_path: Path,
) -> None:  # fmt: skip
    """A run has one clock, read at its start; waits and leases do not follow the wall."""
    file, variables = fake_clock
    typed = [str(SCRIPTS / "market-pipeline"), *LIVE]
    working = run_in_background(typed, {**project_environment, **variables}, tmp_path)
    with working as child:
        with hold_up_writers(database_url):
            claims = "SELECT 1 FROM market_data.fetch_claim"
            wait_for(lambda: read_column(engine, claims), WAIT_SECONDS, "a claim", child)
            file.write_text(jump)
        # Live prices of another time are refused, which makes a run partial.
        assert child.process.wait(WAIT_SECONDS) in (0, 3), child.read_last_words()
    assert read_column(engine, FUTURE) == [0]
    assert_invariants(engine, is_closed=True)
    assert command(*LIVE).returncode == 0
    assert_invariants(engine, is_repaired=True, is_closed=True)


@pytest.mark.system
@pytest.mark.parametrize("offset", ["-400d", "+400d"])
def test_h2_a_clock_that_is_a_year_wrong_refuses_the_run_and_leaves_nothing(
    offset: str, engine: Engine, command: Command, fake_clock: FakeClock,
    project_environment: dict[str, str], tmp_path: Path,
) -> None:  # fmt: skip
    """It would take bars for final before their time; once the clock is right a run is good."""
    file, variables = fake_clock
    file.write_text(offset)
    typed = [str(SCRIPTS / "market-pipeline"), *LIVE]
    with run_in_background(typed, {**project_environment, **variables}, tmp_path) as child:
        assert child.process.wait(WAIT_SECONDS) == 1, child.read_last_words()
        assert "Error: this machine's clock says" in child.read_last_words()
    for table in (BARS, "market_data.ingestion_run"):
        assert read_column(engine, f"SELECT count(*) FROM {table}") == [0]
    assert command(*LIVE).returncode == 0
    assert_invariants(engine, is_repaired=True, is_closed=True)
