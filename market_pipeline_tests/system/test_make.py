"""The Makefile's tasks that run until they are stopped, and what its tasks say when they cannot."""

import contextlib
import os
import re
import socket
from pathlib import Path

import httpx
import pytest

from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.system.dagster_ui import DagsterUI, open_dagster_ui
from market_pipeline_tests.system.processes import Background, run_in_background, wait_for
from market_pipeline_tests.system.project import ROOT, Project, make_project, read_query

pytestmark = pytest.mark.system

TICK_SECONDS = 300.0
GONE_SECONDS = 300.0
TASK_SECONDS = 300.0
LISTENING = "0A"
LOOPBACK = "0100007F"
RECEIPTS = "SELECT trigger, outcome FROM market_data.ingestion_run WHERE outcome IS NOT NULL"


def check_nothing_is_left(project: Project, services: Background) -> None:
    """Wait until all processes of a stopped command, and the embedded server, are gone."""
    wait_for(lambda: not services.list_processes(), GONE_SECONDS, "the processes to end")
    wait_for(lambda: not project.is_served(), GONE_SECONDS, "the embedded server to stop")


def find_listeners(port: int) -> set[str]:
    """Return the addresses, as the kernel writes them, at which a TCP port is served."""
    lines = [
        line.split()
        for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
        for line in table.read_text(encoding="ascii").splitlines()[1:]
    ]
    local = [one[1].split(":") for one in lines if one[3] == LISTENING]
    return {address for address, hexadecimal in local if int(hexadecimal, 16) == port}


def test_make_dev_serves_loopback_only_and_leaves_nothing_behind() -> None:
    """UI, daemon and API on loopback alone; a screen when all is there, a sentence at the end."""
    port, api_port = choose_port(), choose_port()
    with make_project(API_PORT=str(api_port)) as project:
        command = project.make("dev", f"PORT={port}")
        with open_dagster_ui(command, port, project.environment, project.folder) as ui:
            address = f"http://127.0.0.1:{api_port}"
            wait_for(lambda: is_healthy(address), TASK_SECONDS, "the API", ui.services)
            said = ui.services.read_log()
            assert f"http://127.0.0.1:{port}" in said.splitlines()[0]
            assert address in said
            assert find_listeners(port) == find_listeners(api_port) == {LOOPBACK}
            assert project.is_served()
            check_addresses_start_nothing(ui)
            read_log = ui.services.read_log
            wait_for(lambda: "Ctrl-C" in read_log(), TASK_SECONDS, "the screen", ui.services)
            assert read_screen(read_log()) == {
                "Dagster's UI": ui.address,
                "Dashboard": address,
                "Schedule": "off (*/15 * * * *, UTC); ingest_schedule under Automation in the UI",
                "Data": f"PostgreSQL in {project.folder}/state",
                "Look into it": "market-pipeline db shell",
                "End": "Ctrl-C",
            }
            shown = len(read_log())

            ui.services.stop()

            ended = "Ended: Dagster's UI, its daemon and the dashboard. What is stored stays."
            assert read_log()[shown:].strip() == ended
            check_nothing_is_left(project, ui.services)


def read_screen(log: str) -> dict[str, str]:
    """Return the lines of two columns."""
    found = re.findall(r"^  ([A-Z][a-zA-Z' ]+?)  +(\S.*)$", log, re.MULTILINE)
    return dict(found)


def check_addresses_start_nothing(ui: DagsterUI) -> None:
    """Make sure that the webserver is the one behind the guard."""
    asked = {"query": "mutation { setNuxSeen }"}
    assert httpx.get(f"{ui.address}/graphql", params=asked).status_code == 405


def test_make_web_serves_loopback_only_and_leaves_nothing_behind(project: Project) -> None:
    """The webserver alone, without a daemon: the same manners."""
    port = choose_port()
    command = project.make("web", f"PORT={port}")
    with open_dagster_ui(command, port, project.environment, project.folder) as ui:
        assert find_listeners(port) == {LOOPBACK}
        check_addresses_start_nothing(ui)

        ui.services.stop()

        check_nothing_is_left(project, ui.services)


def test_make_serve_answers_on_loopback_and_leaves_nothing_behind() -> None:
    """The API by itself: it says where it is, tells its health, and SIGTERM ends it."""
    port = choose_port()
    with make_project(API_PORT=str(port)) as project:
        command = project.make("serve")
        with run_in_background(command, project.environment, project.folder) as api:
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: is_healthy(address), TASK_SECONDS, "the API", api)
            assert address in api.read_log()
            assert find_listeners(port) == {LOOPBACK}

            api.stop()

            check_nothing_is_left(project, api)


def is_healthy(address: str) -> bool:
    """Say whether the API answers."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/healthz", timeout=10).status_code == 200
    return False


def test_make_dev_names_a_busy_port_and_starts_nothing(project: Project) -> None:
    """Where somebody listens already, it says so and what to type instead."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, said = run_task(project.make("dev", f"PORT={port}"), project)

    assert code != 0
    assert f"Port {port} of 127.0.0.1 cannot be used" in said
    assert "make dev PORT=" in said
    assert not (project.folder / "state").exists()


def test_make_scheduler_ticks_and_leaves_nothing_behind() -> None:
    """The daemon alone runs the schedule by its cron expression; SIGTERM ends it and the server."""
    with make_project(INGESTION_CRON_EXPRESSION="* * * * *") as project:
        migrated = project.run("market-pipeline", "db", "upgrade")
        assert migrated.returncode == 0, migrated.stderr
        command = project.make("scheduler")
        with run_in_background(command, project.environment, project.folder) as daemon:
            url = project.find_database()
            receipts = wait_for(
                lambda: read_query(url, RECEIPTS), TICK_SECONDS, "a tick's run", daemon
            )
            assert receipts[0] == ("schedule", "ok")

            daemon.stop()

            check_nothing_is_left(project, daemon)


def run_task(command: list[str], project: Project) -> tuple[int, str]:
    """Run a task that is expected to end at once; return its exit code and what it printed."""
    with run_in_background(command, project.environment, project.folder) as task:
        wait_for(lambda: task.process.poll() is not None, TASK_SECONDS, "the task to end")
        return task.process.returncode, task.read_log()


def test_help_lists_every_task(project: Project) -> None:
    """Whoever types ``make`` alone sees all tasks with a line on each."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    declared = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert declared is not None

    _, shown = run_task(project.make("help"), project)

    listed = re.findall(r"^  ([a-z-]+) +[A-Z]", shown, re.MULTILINE)
    assert sorted(listed) == sorted(declared[1].split())


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("CHROMIUM=/nowhere", "chromium"),
        ("FAKETIME=/nowhere", "libfaketime"),
        ("NGINX=/nowhere", "nginx-light"),
        ("PGBOUNCER=/nowhere", "pgbouncer"),
        ("PROMTOOL=/nowhere", "prometheus"),
        ("POSTGRESQL=/nowhere", "postgresql-15"),
    ],
)
def test_system_check_names_what_is_missing(override: str, named: str, project: Project) -> None:
    """A missing package is named together with the task that installs it."""
    code, said = run_task(project.make("system-check", override), project)

    assert code != 0
    assert re.search(rf"Missing:.* {named}.*make system-deps", said)


def test_system_deps_takes_root(project: Project) -> None:
    """An ordinary user is told so before anything is downloaded."""
    nobody = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    code, said = run_task([*nobody, *project.make("system-deps")], project)

    assert code != 0
    assert "sudo make system-deps" in said
