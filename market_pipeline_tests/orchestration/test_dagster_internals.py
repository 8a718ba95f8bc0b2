"""What an upgrade of Dagster breaks: each name that it does not publish, used once."""

import ast
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
)
from dagster._core.storage.tags import MAX_RUNTIME_SECONDS_TAG
from dagster_webserver import cli as webserver

from market_pipeline.orchestration import dagster_internals
from market_pipeline.orchestration.automation import is_schedule_on
from market_pipeline.orchestration.backfill import backfill_history_job
from market_pipeline.orchestration.causes import find_cause
from market_pipeline.orchestration.dagster_internals import (
    DagsterAssetCheckFailedError,
    delete_check_results,
    guard_dev_processes,
    guard_webserver_app,
    is_valid_cron_string,
    iterate_past_ticks,
    list_newest_check_runs,
)
from market_pipeline.orchestration.instance_storage import StateArtifactStorage, StateComputeLogs
from market_pipeline_tests.commands import ROOT

PACKAGE = ROOT / "market_pipeline"


def test_one_module_knows_dagsters_private_names() -> None:
    """So an upgrade is one module's work; the webserver publishes no Python name at all."""
    found = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for name in _list_imports(file)
        if _is_private(name)
    }
    assert found == {"orchestration/dagster_internals.py"}


def _list_imports(file: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [
        f"{node.module}.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


def _is_private(name: str) -> bool:
    first, *rest = name.split(".")
    is_dagsters = first == "dagster" or first.startswith("dagster_")
    return is_dagsters and (
        first == "dagster_webserver" or any(part.startswith("_") for part in rest)
    )


@pytest.mark.parametrize(
    ("expression", "is_valid"),
    [("*/15 * * * *", True), ("0 9 * * 1-5", True), ("@daily", True)]
    + [(wrong, False) for wrong in ("every day", "99 * * * *", "* * * *", "* * * * * *")]
    + [("0 0 31 2 *", False)],
)
def test_cron_expressions_are_checked(expression: str, is_valid: bool) -> None:
    """Five fields, and a day that exists."""
    assert is_valid_cron_string(expression) is is_valid


def test_past_ticks_are_in_utc_and_newest_first() -> None:
    """A tick at this very moment counts as due."""
    now = datetime(2024, 3, 15, 12, tzinfo=UTC)
    ticks = list(islice(iterate_past_ticks("0 */6 * * *", now), 3))
    assert ticks == [datetime(2024, 3, 15, hour, tzinfo=UTC) for hour in (12, 6, 0)]


def test_the_tag_of_a_longer_run_is_dagsters() -> None:
    """Its run monitoring reads the tag by this name."""
    assert backfill_history_job.tags is not None
    assert MAX_RUNTIME_SECONDS_TAG in backfill_history_job.tags


def test_check_results_are_found_and_deleted(instance: dg.DagsterInstance) -> None:
    """Without the newest result, the one before it is the newest."""

    @dg.asset
    def prices() -> None: ...

    @dg.asset_check(asset=prices)
    def is_there() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    first, second = (dg.materialize([prices, is_there], instance=instance) for _ in range(2))
    assert list_newest_check_runs(instance) == {second.run_id}
    delete_check_results(instance, second.run_id)
    assert list_newest_check_runs(instance) == {first.run_id}


def test_a_blocking_check_fails_with_dagsters_error(instance: dg.DagsterInstance) -> None:
    """Alerts tell failed checks by its class, and a backfill raises it as well."""

    @dg.asset
    def prices() -> None: ...

    @dg.asset_check(asset=prices, blocking=True)
    def is_there() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False)

    result = dg.materialize([prices, is_there], instance=instance, raise_on_error=False)
    (failed,) = [find_cause(event) for event in result.all_events if event.is_step_failure]
    assert failed.error_class == DagsterAssetCheckFailedError.__name__


def test_local_files_lie_in_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both classes still take their folder, and Dagster still builds them from no config."""
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    files = StateArtifactStorage.from_config_value(None, {})
    logs = StateComputeLogs.from_config_value(None, {})
    assert Path(files.base_dir) == tmp_path / "dagster"
    with logs.capture_logs(["a-run", "compute_logs", "a-step"]):
        captured = tmp_path / "dagster" / "logs" / "a-run" / "compute_logs" / "a-step.err"
        assert captured.is_file()


def test_the_webserver_builds_its_app_by_the_name_that_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the guard would be left out without a word."""
    name = "create_app_from_workspace_process_context"
    assert name in webserver.host_dagster_ui_with_workspace_process_context.__code__.co_names
    monkeypatch.setattr(webserver, name, lambda context: ["app", context])
    command = guard_webserver_app(lambda app: ["guarded", *app])
    assert "host" in {parameter.name for parameter in command.params}
    build_app: Any = getattr(webserver, name)
    assert build_app("workspace") == ["guarded", "app", "workspace"]


def test_dagster_dev_starts_its_processes_by_the_name_that_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the webserver of ``make dev`` would be without its guard."""
    from dagster._cli import dev

    name = "open_ipc_subprocess"
    assert name in dev.dev_command_impl.__code__.co_names
    assert "dagster_webserver" in dev.dev_command_impl.__code__.co_consts
    monkeypatch.setattr(dev, name, list)
    guard_dev_processes(lambda parts: ["guarded", *parts])
    open_process: Any = getattr(dev, name)
    assert open_process(["webserver"]) == ["guarded", "webserver"]


def test_every_name_is_tried() -> None:
    """The public names of the module are all used above, or by a class that is."""
    text = Path(__file__).read_text() + (PACKAGE / "orchestration/instance_storage.py").read_text()
    text += (PACKAGE / "orchestration/automation.py").read_text()
    text += (PACKAGE / "orchestration/run_connections.py").read_text()
    assert [name for name in dagster_internals.__all__ if name not in text] == []


@pytest.mark.files
@pytest.mark.parametrize("flag", ["true", "false"])
def test_the_switch_in_the_ui_goes_before_the_setting(
    flag: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who switches the schedule off by hand is not told that nothing runs."""
    monkeypatch.setenv("INGESTION_SCHEDULE_ENABLED", flag)
    assert is_schedule_on(instance) is (flag == "true")
    for status, is_on in ((InstigatorStatus.STOPPED, False), (InstigatorStatus.RUNNING, True)):
        switch_schedule(instance, status)
        assert is_schedule_on(instance) is is_on


def switch_schedule(instance: dg.DagsterInstance, status: InstigatorStatus) -> None:
    """Do what the UI's switch does."""
    origin = RemoteInstigatorOrigin(
        RemoteRepositoryOrigin(
            RegisteredCodeLocationOrigin("market_pipeline.definitions"), "__repository__"
        ),
        "ingest_schedule",
    )
    state = InstigatorState(
        origin, InstigatorType.SCHEDULE, status, ScheduleInstigatorData("* * * * *", 0.0)
    )
    known = instance.get_instigator_state(origin.get_id(), state.selector_id)
    (instance.update_instigator_state if known else instance.add_instigator_state)(state)
