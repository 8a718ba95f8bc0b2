"""The end of a run: its receipt is closed and counted once, whatever started it."""

import subprocess
from typing import Any

import pytest
from sqlalchemy import Engine, text

from market_pipeline.storage.runs.receipts import read_run_markets, read_run_totals
from market_pipeline_tests.commands import COMMAND_SECONDS, SCRIPTS, run_command
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.system.processes import wait_for

EXECUTE = ("dagster", "job", "execute", "-m", "market_pipeline.definitions", "-j", "ingest")
MATERIALIZE = ("dagster", "asset", "materialize", *EXECUTE[3:5], "--select")
QUICK = {"INGESTION_MARKETS": "BTC-USD", "INGESTION_LOOKBACK_DAYS": "2"}
RECEIPT = """SELECT jsonb_build_array(outcome, ended_at IS NOT NULL, completed_at <= ended_at)
    FROM market_data.ingestion_run"""
TOTALS = """SELECT jsonb_build_array(name, value, labels ->> 'trigger')
    FROM market_data.metric_total WHERE name ~ '^ingestion_(success|partial|failure)'"""
REFUSE_STATISTICS = (
    "ALTER TABLE market_data.market_roi_statistic ADD CONSTRAINT refused CHECK (n_returns < 0)"
)
EXECUTORS = ["in_process", pytest.param("multiprocess", marks=pytest.mark.faults)]
BARS = "SELECT count(*) FROM market_data.market_aggregate"


@pytest.mark.owner
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_step_that_fails_after_the_bars_makes_the_receipt_failed(
    executor: str, project_environment: dict[str, str], engine: Engine, tmp_path: Any
) -> None:
    """The bars stay; who reads the receipt is not told that all went well."""
    with engine.begin() as connection:
        connection.execute(text(REFUSE_STATISTICS))
    environment = {**project_environment, **QUICK, "INGESTION_EXECUTOR": executor}
    failed = run_command(*EXECUTE, environment=environment, folder=tmp_path)
    assert failed.returncode == 1
    assert read_column(engine, RECEIPT) == [["failed", True, True]]
    assert read_column(engine, TOTALS) == [["ingestion_failure_total", 1, "manual"]]
    assert read_column(engine, BARS)[0]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_good_run_is_counted_once(
    executor: str, project_environment: dict[str, str], engine: Engine, tmp_path: Any
) -> None:
    """However many processes it took."""
    environment = {**project_environment, **QUICK, "INGESTION_EXECUTOR": executor}
    done = run_command(*EXECUTE, environment=environment, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_column(engine, RECEIPT) == [["ok", True, True]]
    assert read_column(engine, TOTALS) == [["ingestion_success_total", 1, "manual"]]


def test_a_run_that_fails_before_it_has_a_receipt_is_counted_too(
    project_environment: dict[str, str], engine: Engine, tmp_path: Any
) -> None:
    """Nobody knows its provider."""
    environment = {**project_environment, **QUICK, "INGESTION_PROVIDER": "nobody"}
    assert run_command(*EXECUTE, environment=environment, folder=tmp_path).returncode == 1
    labels = "SELECT labels FROM market_data.metric_total WHERE name = 'ingestion_failure_total'"
    assert read_column(engine, labels) == [{"trigger": "manual", "provider": "unknown"}]


def test_other_jobs_are_no_ingestion(
    project_environment: dict[str, str], engine: Engine, tmp_path: Any
) -> None:
    """Pruning has no receipt and raises no total."""
    prune = (*EXECUTE[:-1], "prune_history")
    done = run_command(*prune, environment=project_environment, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_column(engine, "SELECT 1 FROM market_data.metric_total") == []


FAILED = """SELECT jsonb_build_object('outcome', outcome, 'error', error, 'provider', provider,
        'request', request, 'ended', ended_at IS NOT NULL) FROM market_data.ingestion_run"""


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_run_that_fails_before_its_markets_leaves_a_receipt_with_the_error(
    executor: str, project_environment: dict[str, str], engine: Engine, tmp_path: Any
) -> None:
    """What was asked is in it, so the last run is not taken for the good one before it."""
    wrong = {"INGESTION_PROVIDER": "nobody", "INGESTION_EXECUTOR": executor}
    environment = {**project_environment, **QUICK, **wrong}
    assert run_command(*EXECUTE, environment=environment, folder=tmp_path).returncode == 1
    (receipt,) = read_column(engine, FAILED)
    assert isinstance(receipt, dict)
    assert (receipt["outcome"], receipt["ended"], receipt["provider"]) == ("failed", True, "nobody")
    assert receipt["error"].startswith("markets: provider 'nobody' is unknown: expected one of ")
    assert receipt["request"]["symbols"] == ["BTC-USD"]


def test_a_request_that_cannot_be_read_is_in_its_receipt_as_it_was_asked(
    project_environment: dict[str, str], engine: Engine, tmp_path: Any
) -> None:
    """Malformed values are kept word for word."""
    config = tmp_path / "config.yaml"
    config.write_text("resources: {request: {config: {symbols: [BTC-USD], lookback_days: -3}}}")
    asked = (*EXECUTE, "-c", str(config))
    failed = run_command(*asked, environment=project_environment, folder=tmp_path)
    assert failed.returncode == 1
    (receipt,) = read_column(engine, FAILED)
    assert isinstance(receipt, dict)
    assert "lookback_days=-3" in receipt["error"]
    request = receipt["request"]
    assert (request["symbols"], request["lookback_days"]) == (["BTC-USD"], -3)


def test_a_run_of_other_assets_alone_has_a_true_receipt(
    project_environment: dict[str, str], engine: Engine, tmp_path: Any
) -> None:
    """It says which assets were asked for, ends, and misses no market's bars."""
    environment = {**project_environment, **QUICK}
    done = run_command(*MATERIALIZE, "market_snapshots", environment=environment, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (receipt,) = read_column(engine, FAILED)
    assert isinstance(receipt, dict)
    assert (receipt["outcome"], receipt["ended"], receipt["error"]) == ("ok", True, None)
    assert receipt["request"]["assets"] == ["market_snapshots"]
    with engine.connect() as connection:
        (listed,) = read_run_totals(connection, 1)
        shown = read_run_markets(connection, listed["run_id"])
    assert (listed["markets"], listed["rows_written"], shown) == (0, 1, [])


@pytest.mark.faults
def test_a_run_is_running_until_it_ends_also_between_its_processes(
    project_environment: dict[str, str], engine: Engine, tmp_path: Any
) -> None:
    """However often it is asked for; a process for each step leaves no gap."""
    environment = {**project_environment, **QUICK, "INGESTION_EXECUTOR": "multiprocess"}
    child = subprocess.Popen(
        [SCRIPTS / MATERIALIZE[0], *MATERIALIZE[1:], "market_aggregates"], env=environment,
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seen: list[str] = []

    def look() -> bool:
        with engine.connect() as connection:
            seen.extend(row["outcome"] for row in read_run_totals(connection, 1))
        return child.poll() is not None

    wait_for(look, COMMAND_SECONDS, "the run to end")
    assert child.returncode == 0
    assert (seen[0], seen[-1], set(seen)) == ("running", "ok", {"running", "ok"})
