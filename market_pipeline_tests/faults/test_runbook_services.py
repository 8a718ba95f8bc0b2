"""Entries of RUNBOOK.md about the API: it dies, hangs, or never began."""

import os
import shutil
import signal
import socket

import httpx
import pytest

from market_pipeline_tests.api.conftest import NOWHERE, serve_api
from market_pipeline_tests.commands import ROOT, SCRIPTS
from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.storage.tcp_server import run_tcp_server
from market_pipeline_tests.system.processes import (
    run_in_background,
    wait_for,
)
from market_pipeline_tests.test_runbook import ENTRIES, Stack
from market_pipeline_tests.test_runbook import stack as stack  # noqa: PLC0414

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1_800)]
INGEST = "market-pipeline ingest"
WAIT_SECONDS = 600.0
NO_ANSWER, NO_CONNECTION = 28, 7


@pytest.fixture
def installed(stack: Stack) -> Stack:
    """A project folder with Dagster's two files."""
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, stack.folder)
    stack.set(DAGSTER_HOME=str(stack.folder))
    return stack


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
            serving.signal_all(signal.SIGKILL)
        with serve_api(os.environ, installed.folder) as (client, _):
            assert '"ok"' in curl(installed, "Verify", client.base_url.port)


def test_a_webserver_that_hangs_is_named(installed: Stack) -> None:
    """Dagster's webserver takes calls and answers none; without it the API runs the job itself."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", choose_port()))
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
