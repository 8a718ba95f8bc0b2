"""Dagster's daemon, killed at each step of a tick, absent for hours, or there twice."""

import logging
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from market_pipeline_tests.children import Child, start_child
from market_pipeline_tests.faults.crash_points import wait_for_death

pytestmark = pytest.mark.faults
TICK = ".dagster/scheduled_execution_time"
SCHEDULE = "ingest_schedule"
SWITCHED_ON = datetime(2024, 3, 15, 12, 2, tzinfo=UTC)
FIRST = datetime(2024, 3, 15, 12, 15, 5, tzinfo=UTC)
QUARTERS, EDITED = "*/15 * * * *", "*/20 * * * *"
# The queue is not emptied here: what counts is what a tick asks for.
INSTANCE = {
    "run_coordinator": {
        "module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator"
    },
    "telemetry": {"enabled": False},
}  # fmt: skip


def tick(pipe: Any, home: str, variables: dict[str, str], moments: list[str], flag: str) -> None:
    """Do what the daemon does at some moments; the work of a child process."""
    from dagster._core.test_utils import create_test_daemon_workspace_context
    from dagster._core.workspace.load_target import ModuleTarget
    from dagster._scheduler.scheduler import launch_scheduled_runs

    os.environ |= variables
    target = ModuleTarget("market_pipeline.definitions", None, None, "market_pipeline")
    flags = {SCHEDULE: {flag: signal.SIGKILL}} if flag else None
    with (
        dg.DagsterInstance.from_config(home) as instance,
        create_test_daemon_workspace_context(target, instance) as workspace,
    ):
        pipe.send("ready")
        pipe.recv()
        for moment in map(datetime.fromisoformat, moments):
            logger = logging.getLogger("daemon")
            list(launch_scheduled_runs(workspace, logger, moment, {}, debug_crash_flags=flags))
    pipe.send("done")


@pytest.fixture(scope="module")
def switched_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an instance whose schedule is on since a while."""
    folder = tmp_path_factory.mktemp("instance")
    (folder / "dagster.yaml").write_text(yaml.safe_dump(INSTANCE), encoding="utf-8")
    with run_daemon(folder, SWITCHED_ON) as daemon:
        assert let_tick(daemon) == "done"
    assert list_ticks(folder) == []
    return folder


@pytest.fixture
def home(switched_on: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(switched_on, tmp_path / "home"))


@contextmanager
def run_daemon(
    home: Path, *moments: datetime, cron: str = QUARTERS, flag: str = ""
) -> Iterator[Child]:
    """Start a daemon of its own process, which ticks when it is told to."""
    variables = {
        "INGESTION_SCHEDULE_ENABLED": "true", "INGESTION_CRON_EXPRESSION": cron,
        "DAGSTER_HOME": str(home),
    }  # fmt: skip
    told = [moment.isoformat() for moment in moments]
    with start_child(tick, str(home), variables, told, flag) as child:
        assert child.hear() == "ready"
        yield child


def let_tick(daemon: Child) -> Any:
    """Let a daemon do its work."""
    daemon.tell()
    return daemon.hear()


def list_ticks(home: Path) -> list[str]:
    """Return the moments of the schedule that runs were asked for, one for each run."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        runs = [run for run in instance.get_runs() if run.job_name == "ingest"]
        return sorted(run.tags[TICK][11:16] for run in runs)


@pytest.mark.parametrize("flag", ["TICK_CREATED", "TICK_HELD", "RUN_CREATED", "RUN_LAUNCHED"])
def test_a4_a_daemon_that_is_killed_in_the_middle_of_a_tick_asks_for_one_run(
    flag: str, home: Path
) -> None:
    """Whatever it had done of the tick: the next daemon finishes it, and nothing is asked twice."""
    with run_daemon(home, FIRST, flag=flag) as daemon:
        daemon.tell()
        wait_for_death(daemon)
    with run_daemon(home, FIRST.replace(second=30), FIRST.replace(minute=16)) as daemon:
        assert let_tick(daemon) == "done"
    assert list_ticks(home) == ["12:15"]


def test_a5_after_hours_without_a_daemon_one_run_fills_the_gap(home: Path) -> None:
    """Not one for each tick that was missed: they would race for the same bars."""
    with run_daemon(home, FIRST, FIRST.replace(hour=14), FIRST.replace(hour=14, minute=16)) as one:
        assert let_tick(one) == "done"
    assert list_ticks(home) == ["12:15", "14:15"]


def test_a6_two_daemons_at_once_ask_for_a_run_twice_at_most(home: Path) -> None:
    """Dagster wants one daemon; two runs of one moment share their markets by claims."""
    with run_daemon(home, FIRST) as one, run_daemon(home, FIRST) as other:
        one.tell()
        other.tell()
        assert (one.hear(), other.hear()) == ("done", "done")
    assert set(list_ticks(home)) == {"12:15"}
    assert len(list_ticks(home)) <= 2


def test_a10_a_schedule_that_is_edited_asks_for_one_run_more_at_most(home: Path) -> None:
    """What the extra run finds is stored already, and changes no row."""
    with run_daemon(home, FIRST) as daemon:
        assert let_tick(daemon) == "done"
    later = [FIRST.replace(minute=minute) for minute in (16, 19, 21)]
    with run_daemon(home, *later, cron=EDITED) as daemon:
        assert let_tick(daemon) == "done"
    assert list_ticks(home) == ["12:15", "12:20"]
