"""Dagster's webserver and daemon and the API, as they run beside each other, on one database."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from market_pipeline_tests.api.conftest import serve_api
from market_pipeline_tests.commands import ROOT
from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.system.dagster_ui import DagsterUI
from market_pipeline_tests.system.processes import Background, run_in_background, wait_for
from market_pipeline_tests.system.project import SCRIPTS, read_query

CRON_SECRET = "only-cron-knows-this-one"  # noqa: S105 - the test's own
_START_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs, and how to ask it.

    Attributes:
        api: A client of the API. ui: Dagster. environment: Of all processes. folder: Theirs.
        daemon: Dagster's daemon, by its process group.
        without_daemon: What POST /api/ingest answered before there was a daemon.
    """

    api: httpx.Client
    ui: DagsterUI
    environment: dict[str, str]
    folder: Path
    without_daemon: httpx.Response
    daemon: Background

    def read(self, query: str) -> list[tuple[Any, ...]]:
        """Return a query's rows."""
        return read_query(self.environment["DATABASE_URL"], query)

    def count_runs(self) -> int:
        """Return how many runs Dagster has recorded."""
        return len(self.ui.list_runs())


@contextmanager
def run_stack(database_url: str, folder: Path, **variables: str) -> Iterator[Stack]:
    """Start Dagster's webserver, the API, and then the daemon."""
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, folder)
    port = choose_port()
    environment = _build_environment(database_url, folder, port, variables)
    webserver = [str(SCRIPTS / "dagster-webserver"), "-h", "127.0.0.1", "-p", str(port)]
    daemon = [str(SCRIPTS / "dagster-daemon"), "run"]
    with (
        run_in_background(webserver, environment, folder) as serving,
        serve_api(environment, folder) as (api, _),
    ):
        ui = DagsterUI(f"http://127.0.0.1:{port}", serving)
        wait_for(ui.is_ready, _START_SECONDS, "Dagster's webserver", serving)
        without_daemon = api.post("/api/ingest")
        with run_in_background(daemon, environment, folder) as beating:
            wait_for(lambda: _beats(ui), _START_SECONDS, "Dagster's daemon", beating)
            yield Stack(api, ui, environment, folder, without_daemon, beating)


@contextmanager
def serve_another(stack: Stack) -> Iterator[tuple[httpx.Client, Background]]:
    """Start one more API process on the same stack."""
    with serve_api(stack.environment, stack.folder) as served:
        yield served


def _build_environment(
    database_url: str, folder: Path, port: int, variables: dict[str, str]
) -> dict[str, str]:
    import os

    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {
        **kept,
        "PYTHONDONTWRITEBYTECODE": "1",
        "DATABASE_URL": database_url.replace("+psycopg2", ""),
        "DAGSTER_HOME": str(folder),
        "STATE_DIR": str(folder / "state"),
        "DAGSTER_UI_URL": f"http://127.0.0.1:{port}",
        "CRON_SECRET": CRON_SECRET,
        "INGEST_WAIT_SECONDS": "290",
        **variables,
    }


_DAEMONS = """{ instance { daemonHealth { allDaemonStatuses {
  daemonType required lastHeartbeatTime } } } }"""


def _beats(ui: DagsterUI) -> bool:
    told = ui.query(_DAEMONS)["instance"]["daemonHealth"]["allDaemonStatuses"]
    return all(one["lastHeartbeatTime"] for one in told if one["required"])
