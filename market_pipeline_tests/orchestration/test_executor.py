"""The end of a run: its receipt is closed and counted once, whatever started it."""

from typing import Any

import pytest
from sqlalchemy import Engine

from market_pipeline_tests.commands import run_command
from market_pipeline_tests.databases import read_column

EXECUTE = ("dagster", "job", "execute", "-m", "market_pipeline.definitions", "-j", "ingest")
QUICK = {"INGESTION_MARKETS": "BTC-USD", "INGESTION_LOOKBACK_DAYS": "2"}
RECEIPT = """SELECT jsonb_build_array(outcome, ended_at IS NOT NULL, completed_at <= ended_at)
    FROM market_data.ingestion_run"""
TOTALS = """SELECT jsonb_build_array(name, value, labels ->> 'trigger')
    FROM market_data.metric_total WHERE name ~ '^ingestion_(success|partial|failure)'"""
BARS = "SELECT count(*) FROM market_data.market_aggregate"


@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
def test_a_step_that_fails_after_the_bars_makes_the_receipt_failed(
    executor: str, project_environment: dict[str, str], engine: Engine, tmp_path: Any
) -> None:
    """The bars stay; who reads the receipt is not told that all went well."""
    wrong = {"RISK_FREE_RATE": "4", "INGESTION_EXECUTOR": executor}
    environment = {**project_environment, **QUICK, **wrong}
    failed = run_command(*EXECUTE, environment=environment, folder=tmp_path)
    assert failed.returncode == 1
    assert read_column(engine, RECEIPT) == [["failed", True, True]]
    assert read_column(engine, TOTALS) == [["ingestion_failure_total", 1, "manual"]]
    assert read_column(engine, BARS)[0]


@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
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
