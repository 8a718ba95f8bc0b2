"""The API on a database of the test's own: in this process, or served by the real command."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from market_pipeline.api.app import build_app
from market_pipeline.api.child_runs import ChildRuns
from market_pipeline.api.configuration import Configuration
from market_pipeline.api.dagster_client import DagsterClient
from market_pipeline.api.services import Services
from market_pipeline.readers.serving import open_serving_cache
from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.system.processes import Background, run_in_background, wait_for
from market_pipeline_tests.system.project import SCRIPTS

# Nobody answers there; tests of runs name the Dagster of their own.
NOWHERE = "http://127.0.0.1:9"
START_SECONDS = 300.0
MakeClient = Callable[..., TestClient]


@pytest.fixture
def services(engine: Engine) -> Iterator[Services]:
    """What routes work with: this test's database and a cache in memory."""
    made = make_services(engine)
    yield made
    made.cache.close()


def make_services(engine: Engine, **options: object) -> Services:
    """Return services; options are those of the configuration."""
    configuration = Configuration(**{"dagster_url": NOWHERE, **options})  # type: ignore[arg-type]
    return Services(
        engine,
        open_serving_cache(engine, {}),
        configuration,
        DagsterClient(configuration.dagster_url),
        # What a test asks for in this process runs nowhere.
        children=ChildRuns(["false"]),
    )


@pytest.fixture
def make_client(engine: Engine) -> Iterator[MakeClient]:
    """Makes clients of an app in this process; keywords are those of the configuration."""
    with ExitStack() as clients:

        def make(**options: object) -> TestClient:
            made = make_services(engine, **options)
            clients.callback(made.cache.close)
            client = TestClient(build_app(made), "http://127.0.0.1", raise_server_exceptions=False)
            return clients.enter_context(client)

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    """A client of the app as it is without any setting."""
    return make_client()


@contextmanager
def serve_api(
    environment: Mapping[str, str], folder: Path, scripts: Path = SCRIPTS
) -> Iterator[tuple[httpx.Client, Background]]:
    """Run ``market-pipeline serve`` on a free port, and yield a client of it and its process."""
    port = choose_port()
    command = [str(scripts / "market-pipeline"), "serve"]
    variables = {**environment, "API_PORT": str(port)}
    with (
        run_in_background(command, variables, folder) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        wait_for(lambda: is_alive(client), START_SECONDS, "the API", server)
        yield client, server


def is_alive(client: httpx.Client) -> bool:
    """Tell whether the API answers."""
    try:
        return client.get("/healthz").is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def served(
    engine: Engine, project_environment: Mapping[str, str], tmp_path: Path
) -> Iterator[httpx.Client]:
    """A client of the real command on this test's database."""
    del engine  # Its tables are needed, not its connections.
    with serve_api({**project_environment, "DAGSTER_UI_URL": NOWHERE}, tmp_path) as (client, _):
        yield client
