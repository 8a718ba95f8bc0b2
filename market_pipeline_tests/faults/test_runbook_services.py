"""Entries of RUNBOOK.md about processes: Dagster's daemon and the API die, hang, or never began."""

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import httpx
import pytest

from market_pipeline_tests.api.conftest import NOWHERE, choose_port, serve_api
from market_pipeline_tests.commands import ROOT, SCRIPTS
from market_pipeline_tests.databases import hold_up_writers, read_column
from market_pipeline_tests.storage.tcp_server import run_tcp_server
from market_pipeline_tests.system.processes import (
    Background,
    find_marked,
    run_in_background,
    wait_for,
)
from market_pipeline_tests.test_runbook import ENTRIES, Stack
from market_pipeline_tests.test_runbook import stack as stack  # noqa: PLC0414

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1_800)]
INGEST = "market-pipeline ingest"
WAIT_SECONDS = 600.0
RUNS_AT_WORK = "SELECT run_id FROM market_data.fetch_claim GROUP BY run_id"
ALERTS = "SELECT message FROM market_data.alert WHERE cleared_at IS NULL AND kind = 'run_failed'"
SCHEDULED = """SELECT outcome FROM market_data.ingestion_run
    WHERE trigger = 'schedule' AND ended_at IS NOT NULL"""
IS_LATE = """SELECT max(started_at) < now() - interval '1 minute' FROM market_data.ingestion_run"""
NO_ANSWER, NO_CONNECTION = 28, 7


@pytest.fixture
def installed(stack: Stack) -> Stack:
    """A project folder with Dagster's two files."""
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, stack.folder)
    stack.set(DAGSTER_HOME=str(stack.folder))
    return stack


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


def kill_all(background: Background) -> None:
    """Kill a command with all that it has begun, as a machine that stops."""
    for pid in find_marked(background.mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_tick_came_short_or_does_not_end(installed: Stack, database_url: str) -> None:
    """The daemon and its runs die: the tick is open until the daemon is back, and comes short."""
    title = "A tick came short or does not end"
    # A run that is tried again would hide that it died.
    file, tried = installed.folder / "dagster.yaml", "run_retries:\n  enabled: "
    file.write_text(file.read_text().replace(f"{tried}true", f"{tried}false"))
    installed.set(INGESTION_SHARDS="2")
    ask = [str(SCRIPTS / "market-pipeline"), "ingest"]
    with (
        run_daemon(installed) as daemon,
        hold_up_writers(database_url),
        run_in_background(ask, os.environ, installed.folder) as asking,
    ):
        at_work = partial(read_column, database_url, RUNS_AT_WORK)
        wait_for(lambda: len(at_work()) == 2, WAIT_SECONDS, "both shards", asking)
        kill_all(daemon)
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
    installed.set(INGESTION_CRON_EXPRESSION="* * * * *", INGESTION_SCHEDULE_ENABLED="true")
    installed.type(INGEST)
    with run_daemon(installed) as daemon:
        kill_all(daemon)
    wait_for(lambda: read_column(database_url, IS_LATE) == [True], WAIT_SECONDS, "a late run")
    wait_for(lambda: not is_live(installed), WAIT_SECONDS, "the check to notice")
    assert "not running" in installed.follow(title, "Check", (0, 1))
    assert "manual" in capfd.readouterr().out
    with run_daemon(installed) as daemon:
        wait_for(lambda: read_column(database_url, SCHEDULED), WAIT_SECONDS, "a run", daemon)
        assert "schedule" in installed.follow(title, "Verify")
        assert set(read_column(database_url, SCHEDULED)) == {"ok"}


def curl(stack: Stack, part: str, port: object, expected: tuple[int, ...] = (0,)) -> str:
    """Type the part's curl, at the API's port."""
    commands = ENTRIES["The API does not answer"].list_commands(part)
    (command,) = (one for one in commands if one.startswith("curl"))
    assert ":8000/" in command
    return stack.type(command.replace(":8000/", f":{port}/"), expected)


def test_the_api_does_not_answer(installed: Stack) -> None:
    """Its setting is refused, its database is away, it hangs: each is found, and cured."""
    title = "The API does not answer"
    port = choose_port()
    installed.set(API_PORT=str(port), DAGSTER_UI_URL=NOWHERE, API_HOST="0.0.0.0")  # noqa: S104 - refused
    serve = [str(SCRIPTS / "market-pipeline"), "serve"]
    with run_in_background(serve, os.environ, installed.folder) as refused:
        assert refused.process.wait(WAIT_SECONDS) != 0
        curl(installed, "Check", port, (NO_CONNECTION,))
        assert "API_HOST" in refused.read_last_words()
    installed.set(API_HOST="127.0.0.1")
    with run_tcp_server() as server:
        installed.set(DATABASE_URL=server.make_url())
        installed.type(INGEST)
        with serve_api(os.environ, installed.folder) as (client, serving):
            port = client.base_url.port
            server.end(signal.SIGINT)
            assert '"database"' in curl(installed, "Check", port)
            assert client.get("/api/markets").status_code == 503
            assert "check the address" in installed.follow(title, "Check", (1,))
            server.start_again()
            assert '"database"' not in curl(installed, "Check", port)
            assert client.get("/api/markets").status_code == 200
            serving.process.send_signal(signal.SIGSTOP)
            curl(installed, "Check", port, (NO_ANSWER,))
            assert "database" in installed.follow(title, "Check")
            kill_all(serving)
        with serve_api(os.environ, installed.folder) as (client, _):
            assert '"ok"' in curl(installed, "Verify", client.base_url.port)


def test_a_webserver_that_hangs_is_named(installed: Stack) -> None:
    """Dagster's webserver takes calls and answers none; without it the API runs the job itself."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        installed.set(DAGSTER_UI_URL=f"http://127.0.0.1:{listening.getsockname()[1]}")
        with serve_api(os.environ, installed.folder) as (client, _):
            client.timeout = httpx.Timeout(WAIT_SECONDS)
            refused = client.post("/api/ingest")
            assert (refused.status_code, refused.json()["degraded"]) == (503, ["dagster webserver"])
            listening.close()
            accepted = client.post("/api/ingest", headers={"Prefer": "respond-async"})
            assert accepted.status_code == 202
            assert '"dagster"' in curl(installed, "Check", client.base_url.port)
            told = accepted.json()["statusUrl"]
            wait_for(
                lambda: client.get(told).json()["status"] == "success", WAIT_SECONDS, "the run"
            )
            assert " ok " in installed.type("market-pipeline runs")
