"""The API on a database that hangs: it answers in seconds, and needs no restart afterwards."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.schema import upgrade_schema
from market_pipeline_tests.api.conftest import NOWHERE, serve_api
from market_pipeline_tests.conftest import make_environment
from market_pipeline_tests.storage.tcp_server import TcpServer, run_tcp_server
from market_pipeline_tests.system.processes import wait_for

pytestmark = pytest.mark.faults

PATHS = (
    "/", "/api/markets", "/api/markets/BTC-USD/latest", "/api/markets/BTC-USD/aggregates",
    "/api/runs", "/readyz",
)  # fmt: skip
# Without deadlines an answer never comes; on a busy machine it may take some seconds more.
PATIENCE_SECONDS = 20.0


@pytest.fixture(scope="module")
def hanging() -> Iterator[TcpServer]:
    """A server of this module's own, with the market tables."""
    with run_tcp_server() as server:
        url = server.make_url(scheme="postgresql+psycopg2")
        engine = open_engine(DatabaseAddress(url, is_embedded=False))
        upgrade_schema(engine)
        engine.dispose()
        yield server


def ask(client: httpx.Client, path: str) -> tuple[int, float, str]:
    """Return status, seconds and text of an answer."""
    begun = time.monotonic()
    answer = client.get(path)
    return answer.status_code, time.monotonic() - begun, answer.text


def test_b9_pages_are_answered_while_the_database_hangs(hanging: TcpServer, tmp_path: Path) -> None:
    """503 with the cause, on pages in progress and new ones; 200 again without a restart."""
    environment = {**make_environment(hanging.make_url(), tmp_path), "DAGSTER_UI_URL": NOWHERE}
    with serve_api(environment, tmp_path) as (client, _):
        assert ask(client, "/api/markets")[0] == 200
        with hanging.suspend(), ThreadPoolExecutor(len(PATHS)) as pool:
            for _ in range(2):
                answers = list(pool.map(lambda path: ask(client, path), PATHS))
                assert [status for status, _, _ in answers] == [503] * len(PATHS)
                assert max(seconds for _, seconds, _ in answers) < PATIENCE_SECONDS
        assert "does not answer: it hangs" in answers[1][2]
        wait_for(lambda: ask(client, "/readyz")[0] == 200, PATIENCE_SECONDS, "the database")
