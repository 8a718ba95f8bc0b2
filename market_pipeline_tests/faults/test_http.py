"""Clients that go away, and an API that is restarted under load."""

import signal
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine

from market_pipeline_tests.api.conftest import NOWHERE, serve_api
from market_pipeline_tests.databases import hold_up_writers, read_column
from market_pipeline_tests.faults.installations import Disturbed
from market_pipeline_tests.faults.invariants import assert_invariants
from market_pipeline_tests.ingestion.installation import MARCH
from market_pipeline_tests.system.processes import wait_for

WAIT_SECONDS = 300.0
ENDED = "SELECT outcome FROM market_data.ingestion_run WHERE ended_at IS NOT NULL"
WAITING = """SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'"""


@pytest.fixture
def alone(project_environment: Mapping[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of an API that starts its runs itself."""
    return {**project_environment, "DAGSTER_UI_URL": NOWHERE, "STATE_DIR": str(tmp_path / "state")}


@pytest.mark.faults
def test_g4_a_client_that_goes_away_ends_no_run_and_keeps_no_connection(
    engine: Engine, alone: dict[str, str], tmp_path: Path
) -> None:
    """The run that it asked for ends well, and whoever asks the same gets its answer."""
    with serve_api(alone, tmp_path) as (client, server):
        body = b'{"symbols": ["BTC-USD"]}'
        head = f"POST /api/ingest HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address) as gone:
            gone.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            runs = "SELECT run_id FROM market_data.ingestion_run"
            wait_for(lambda: read_column(engine, runs), WAIT_SECONDS, "the run", server)
        wait_for(lambda: read_column(engine, ENDED), WAIT_SECONDS, "its end", server)
        assert read_column(engine, ENDED) == ["ok"]
        (run_id,) = read_column(engine, runs)
        told = f"/api/ingest/{run_id}"
        wait_for(lambda: client.get(told).json()["status"] == "success", WAIT_SECONDS, "its answer")
        assert _count_connections(server.process.pid, address[1]) <= 1
    assert_invariants(engine, is_repaired=True, is_closed=True)


def _count_connections(pid: int, port: int) -> int:
    import psutil

    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    found = [one for process in processes for one in process.net_connections("tcp")]
    return sum(one.laddr.port == port and one.status == "ESTABLISHED" for one in found)


@pytest.mark.faults
def test_g10_a_stop_under_load_answers_what_it_has_accepted(
    engine: Engine, database_url: str, alone: dict[str, str], tmp_path: Path
) -> None:
    """Requests in the middle of their work are answered; the next process goes on."""
    Disturbed(engine).ingest(MARCH)
    path = "/api/markets/BTC-USD/aggregates?interval=1d"
    with serve_api(alone, tmp_path) as (client, server):
        with ThreadPoolExecutor(4) as pool:
            with hold_up_writers(database_url):
                asked = [pool.submit(_ask, str(client.base_url), path) for _ in range(4)]
                wait_for(lambda: len(read_column(engine, WAITING)) == 4, WAIT_SECONDS, "requests")
                server.process.send_signal(signal.SIGTERM)
                wait_for(lambda: not _is_open(client), WAIT_SECONDS, "the end of accepting")
            answers = [one.result(WAIT_SECONDS) for one in asked]
        assert server.process.wait(WAIT_SECONDS) in (0, -signal.SIGTERM)
    assert {answer.status_code for answer in answers} == {200}
    with serve_api(alone, tmp_path) as (client, _):
        assert client.get(path).json() == answers[0].json()


def _ask(address: str, path: str) -> httpx.Response:
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        return client.get(path)


def _is_open(client: httpx.Client) -> bool:
    try:
        socket.create_connection((client.base_url.host, client.base_url.port), 1).close()
    except OSError:
        return False
    return True
