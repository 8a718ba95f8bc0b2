"""Entries of RUNBOOK.md about Dagster's daemon: it dies, with its runs or alone."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from market_pipeline_tests.commands import SCRIPTS
from market_pipeline_tests.databases import hold_up_writers, read_column
from market_pipeline_tests.faults.kills.theatre import switch_off_retries
from market_pipeline_tests.faults.test_runbook_services import INGEST, WAIT_SECONDS
from market_pipeline_tests.faults.test_runbook_services import installed as installed  # noqa: PLC0414
from market_pipeline_tests.system.processes import Background, run_in_background, wait_for
from market_pipeline_tests.test_runbook import ENTRIES, Stack
from market_pipeline_tests.test_runbook import stack as stack  # noqa: PLC0414

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1_800)]
RUNS_AT_WORK = "SELECT run_id FROM market_data.fetch_claim GROUP BY run_id"
ALERTS = "SELECT message FROM market_data.alert WHERE cleared_at IS NULL AND kind = 'run_failed'"
SCHEDULED = """SELECT outcome FROM market_data.ingestion_run
    WHERE trigger = 'schedule' AND ended_at IS NOT NULL"""
IS_LATE = """SELECT max(started_at) < now() - interval '1 minute' FROM market_data.ingestion_run"""


@contextmanager
def run_daemon(stack: Stack) -> Iterator[Background]:
    """Run Dagster's daemon until the block ends, and begin when it works."""
    command = [str(SCRIPTS / "dagster-daemon"), "run"]
    with run_in_background(command, os.environ, stack.folder) as daemon:
        wait_for(lambda: is_live(stack), WAIT_SECONDS, "the daemon", daemon)
        yield daemon


def is_live(stack: Stack) -> bool:
    """Follow the runbook's check of the daemon."""
    commands = ENTRIES["No runs are started"].list_commands("Check")
    (command,) = (one for one in commands if "liveness-check" in one)
    return "Daemon live" in stack.type(command, (0, 1))


def test_a_tick_came_short_or_does_not_end(installed: Stack, database_url: str) -> None:
    """The daemon and its runs die: the tick is open until the daemon is back, and comes short."""
    title = "A tick came short or does not end"
    # A run that is tried again would hide that it died.
    switch_off_retries(installed.folder)
    installed.set(INGESTION_SHARDS="2")
    ask = [str(SCRIPTS / "market-pipeline"), "ingest"]
    with (
        run_daemon(installed) as daemon,
        hold_up_writers(database_url),
        run_in_background(ask, os.environ, installed.folder) as asking,
    ):
        at_work = partial(read_column, database_url, RUNS_AT_WORK)
        wait_for(lambda: len(at_work()) == 2, WAIT_SECONDS, "both shards", asking)
        daemon.signal_all(signal.SIGKILL)
    listed = installed.type("market-pipeline runs")
    assert "running" in listed
    shown = installed.follow(title, "Check")
    assert "Runs of the tick" in shown
    assert "missing" in shown
    with run_daemon(installed) as daemon:
        wait_for(lambda: read_column(database_url, ALERTS), WAIT_SECONDS, "the tick's end", daemon)
        assert str(read_column(database_url, ALERTS)[0]).startswith("tick ")
        assert "interrupted" in installed.follow(title, "Check")
        assert installed.follow(title, "Verify").rstrip().endswith(": ok")
        assert read_column(database_url, ALERTS) == []


def test_no_runs_are_started(
    installed: Stack, database_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The daemon is dead: its check says so, and the daemon that is started catches up."""
    title = "No runs are started"
    installed.set(INGESTION_CRON_EXPRESSION="* * * * *", INGESTION_SCHEDULE_ENABLED="false")
    installed.type(INGEST)
    with run_daemon(installed) as daemon:
        daemon.signal_all(signal.SIGKILL)
    installed.set(INGESTION_SCHEDULE_ENABLED="true")
    wait_for(lambda: read_column(database_url, IS_LATE) == [True], WAIT_SECONDS, "a late run")
    wait_for(lambda: not is_live(installed), WAIT_SECONDS, "the check to notice")
    assert "not running" in installed.follow(title, "Check", (0, 1))
    assert "manual" in capfd.readouterr().out
    with run_daemon(installed) as daemon:
        wait_for(lambda: read_column(database_url, SCHEDULED), WAIT_SECONDS, "a run", daemon)
        assert "schedule" in installed.follow(title, "Verify")
        assert set(read_column(database_url, SCHEDULED)) == {"ok"}
