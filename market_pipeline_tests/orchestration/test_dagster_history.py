"""Dagster's own runs: old ones go with all their events, and the UI still shows every asset."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from sqlalchemy import create_engine, text

from market_pipeline.domain.errors import SettingError
from market_pipeline.orchestration.automation import prune_history
from market_pipeline.orchestration.dagster_history import (
    find_cutoff,
    find_newest_runs,
    list_prunable_runs,
)
from market_pipeline.orchestration.instance_storage import StateComputeLogs
from market_pipeline.orchestration.resources import Database
from market_pipeline_tests.commands import ROOT
from market_pipeline_tests.databases import read_column

NOW = datetime.now(UTC)
TABLES = ("event_logs", "run_tags", "asset_check_executions")


@dg.asset
def prices() -> None:
    """An asset that is made by every run."""


@dg.asset
def names() -> None:
    """An asset that only the first run made."""


@dg.asset_check(asset=prices)
def is_there() -> dg.AssetCheckResult:
    """A check that every run evaluates."""
    return dg.AssetCheckResult(passed=True)


@pytest.fixture
def project(
    engine: object, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """The project's own instance, as dagster.yaml describes it."""
    del engine
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    with dg.DagsterInstance.from_config(str(ROOT)) as instance:
        yield instance


def make_runs(instance: dg.DagsterInstance, database_url: str) -> list[str]:
    """Run three times; all runs but the last are a hundred days old."""
    selections: list[list[Any]] = [[prices, names, is_there], [prices, is_there]]
    runs = [
        dg.materialize(parts, instance=instance, tags={"from": "a test"}).run_id
        for parts in (selections[0], selections[1], selections[1])
    ]
    engine = create_engine(database_url)
    with engine.begin() as connection:
        moment = (NOW - timedelta(days=100)).replace(tzinfo=None)
        connection.execute(
            text("UPDATE dagster.runs SET create_timestamp = :moment WHERE run_id = ANY(:runs)"),
            {"moment": moment, "runs": runs[:2]},
        )
    engine.dispose()
    return runs


def test_old_runs_go_with_all_their_events_but_the_newest_of_each_asset_stay(
    project: dg.DagsterInstance, database_url: str
) -> None:
    """The second of three runs: old, and everything it made was made again."""
    runs = make_runs(project, database_url)
    project.create_run_for_job(prune_history)  # not begun, so not finished: it stays
    logs = Path(project.compute_log_manager._base_dir)  # type: ignore[attr-defined]
    (logs / runs[1]).mkdir(parents=True, exist_ok=True)
    assert find_newest_runs(project) == {runs[0], runs[2]}
    assert list_prunable_runs(project, NOW - timedelta(days=30)) == [runs[1]]

    pruned = prune_history.execute_in_process(
        instance=project, resources={"database": Database()}, raise_on_error=True
    )

    assert pruned.success
    left = read_column(database_url, "SELECT run_id FROM dagster.runs")
    assert runs[1] not in left
    assert {runs[0], runs[2]} < set(left)
    assert not (logs / runs[1]).exists()
    for table in TABLES:
        assert runs[1] not in read_column(database_url, f"SELECT run_id FROM dagster.{table}")
    for key in ("prices", "names"):
        newest = project.get_latest_materialization_event(dg.AssetKey(key))
        assert newest is not None
        assert newest.run_id == (runs[2] if key == "prices" else runs[0])


@pytest.mark.parametrize("exists", [False, True])
def test_what_runs_print_is_for_its_owner_alone(
    project: dg.DagsterInstance, tmp_path: Path, exists: bool
) -> None:
    """A folder that an older version left open to all is closed as well."""
    logs = tmp_path / "dagster" / "logs"
    if exists:
        logs.mkdir(parents=True, exist_ok=True)
        logs.chmod(0o755)
    assert StateComputeLogs.from_config_value(None, {})
    assert logs.stat().st_mode & 0o777 == 0o700
    del project


def test_what_old_ticks_printed_goes(project: dg.DagsterInstance, tmp_path: Path) -> None:
    """Dagster keeps a file for each tick that said anything; a run's files go with the run."""
    logs = tmp_path / "dagster" / "logs"
    old, new = (logs / "__repository__" / "alert_watch" / f"{number}.err" for number in (1, 2))
    of_a_run = logs / str(uuid4()) / "compute_logs" / "step.err"
    for file in (old, new, of_a_run):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for file in (old, of_a_run):
        long_ago = (NOW - timedelta(days=100)).timestamp()
        os.utime(file, (long_ago, long_ago))
    assert prune_history.execute_in_process(
        instance=project, resources={"database": Database()}
    ).success
    assert [file.exists() for file in (old, new, of_a_run)] == [False, True, True]


def test_retention_is_a_setting_and_nought_keeps_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thirty days unless told otherwise; nonsense is refused by name."""
    assert find_cutoff(NOW) == NOW - timedelta(days=30)
    monkeypatch.setenv("DAGSTER_RETENTION_DAYS", "0")
    assert find_cutoff(NOW) is None
    monkeypatch.setenv("DAGSTER_RETENTION_DAYS", "-1")
    with pytest.raises(SettingError, match=r"^DAGSTER_RETENTION_DAYS="):
        find_cutoff(NOW)


def test_the_instance_is_fit_for_production(project: dg.DagsterInstance) -> None:
    """What dagster.yaml promises, as Dagster itself understood it."""
    queue = project.get_concurrency_config()
    assert queue.pool_config.default_pool_limit == 2
    assert str(queue.pool_config.pool_granularity).endswith("RUN")
    assert queue.run_queue_config is not None
    assert queue.run_queue_config.max_concurrent_runs == 4
    assert project.run_monitoring_enabled
    assert project.run_monitoring_max_runtime_seconds == 3600
    assert project.run_retries_enabled
    assert project.run_retries_max_retries == 1
    assert not project.run_retries_retry_on_asset_or_op_failure
    assert project.get_settings("run_monitoring")["free_slots_after_run_end_seconds"] == 300
    assert not project.telemetry_enabled
    assert not project.nux_enabled
