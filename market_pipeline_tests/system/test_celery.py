"""Several machines, as far as one can be them: Celery workers, a broker, PostgreSQL over TCP."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from market_pipeline_tests.cache.valkey import Valkey
from market_pipeline_tests.commands import ROOT
from market_pipeline_tests.databases import create_database
from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.storage.tcp_server import TcpServer, run_tcp_server
from market_pipeline_tests.system.dagster_ui import DagsterUI
from market_pipeline_tests.system.exchange import NOW, Exchange, serve_exchange
from market_pipeline_tests.system.processes import (
    Background,
    run_in_background,
    wait_for,
)
from market_pipeline_tests.system.project import SCRIPTS, Project, read_query

pytestmark = [pytest.mark.system, pytest.mark.timeout(3_000)]
SYMBOLS = [f"M{number:03}-USD" for number in range(300)]
SHARDS = 4
WAIT_SECONDS = 900.0
INGEST = ("ingest", "--window-end", NOW.isoformat(), "--json")
COMMITTED = "SELECT count(*) FROM market_data.ingestion_run_market"
ERRORS = "SELECT shard, run_id::text, error FROM market_data.ingestion_run WHERE error IS NOT NULL"
PARTS = "SELECT shard, outcome, run_id::text FROM market_data.ingestion_run ORDER BY started_at"


@dataclass
class Cluster:
    """The processes of all machines, which share a database and a broker and no folder.

    Attributes:
        project: The environment of the daemon, the webserver and commands. broker: Valkey.
        exchange: Who is asked for bars. url: The database. workers: By name.
    """

    project: Project
    broker: Valkey
    exchange: Exchange
    url: str
    stack: ExitStack
    workers: dict[str, Background] = field(default_factory=dict)

    def start_worker(self, name: str) -> None:
        """Start a worker that runs one run at a time, in a folder of its own."""
        folder = self.project.folder / name
        folder.mkdir()
        environment = {**self.project.environment, "STATE_DIR": str(folder)}
        environment["PYTHONPATH"] = str(ROOT / "deploy/celery")
        command = [
            str(SCRIPTS / "celery"), "-A", "dagster_celery.app", "worker", "-Q", "dagster",
            "-c", "1", "-n", f"{name}@here", "--loglevel", "info",
        ]  # fmt: skip
        self.workers[name] = self.stack.enter_context(
            run_in_background(command, environment, folder)
        )
        wait_for(
            lambda: " ready." in self.workers[name].read_log(), WAIT_SECONDS, f"worker {name}",
            self.workers[name],
        )  # fmt: skip

    def kill_worker(self, name: str) -> None:
        """End a worker and its child at once, as a machine that stops."""
        self.workers[name].signal_all(signal.SIGKILL)

    def read(self, query: str) -> list[tuple[Any, ...]]:
        """Return a query's rows."""
        return read_query(self.url, query)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The database, the broker, the exchange, webserver, daemon and two workers."""
    with ExitStack() as stack:
        server = stack.enter_context(run_tcp_server())
        broker = Valkey("--maxmemory-policy", "noeviction").start()
        stack.callback(broker.close)
        exchange = stack.enter_context(serve_exchange())
        url = stack.enter_context(create_server_database(server))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mp-celery-")))
        shutil.copy(ROOT / "deploy/celery/dagster.yaml", folder)
        shutil.copy(ROOT / "workspace.yaml", folder)
        project = Project(folder, describe_settings(url, broker, exchange))
        made = Cluster(project, broker, exchange, url, stack)
        assert project.run("market-pipeline", "db", "upgrade").returncode == 0
        start_dagster(made)
        for name in ("first", "second"):
            made.start_worker(name)
        yield made


@contextmanager
def create_server_database(server: TcpServer) -> Iterator[str]:
    """Yield the address of an empty database, as DATABASE_URL has it."""
    with create_database(server.make_url(scheme="postgresql+psycopg2")) as address:
        yield address.replace("+psycopg2", "", 1)


def describe_settings(url: str, broker: Valkey, exchange: Exchange) -> dict[str, str]:
    """Return the settings that all processes share."""
    return {
        "DATABASE_URL": url,
        "CELERY_BROKER_URL": broker.url,
        "CELERY_RESULT_URL": broker.url.replace("/0", "/1"),
        "INGESTION_SHARDS": str(SHARDS),
        "INGESTION_PROVIDER": "coinbase",
        "INGESTION_MARKETS": ",".join(SYMBOLS),
        "INGESTION_LOOKBACK_DAYS": "30",
        "COMPARISON_BENCHMARKS": SYMBOLS[0],
        "PROVIDER_MARKETS": ",".join(f"coinbase:{symbol}" for symbol in SYMBOLS),
        "PROVIDER_CALLS_PER_MINUTE": "coinbase=100000",
        "COINBASE_BASE_URL": exchange.address,
        "FETCH_WORKERS": "2",
    }


def start_dagster(cluster: Cluster) -> None:
    """Start the webserver and the daemon."""
    folder, environment, port = cluster.project.folder, cluster.project.environment, choose_port()
    web = [str(SCRIPTS / "dagster-webserver"), "-p", str(port), "-w", "workspace.yaml"]
    serving = cluster.stack.enter_context(run_in_background(web, environment, folder))
    ui = DagsterUI(f"http://127.0.0.1:{port}", serving)
    wait_for(ui.is_ready, WAIT_SECONDS, "Dagster's webserver", serving)
    daemon = [str(SCRIPTS / "dagster-daemon"), "run", "-w", "workspace.yaml"]
    beating = cluster.stack.enter_context(run_in_background(daemon, environment, folder))
    beats = "SELECT count(*) FROM dagster.daemon_heartbeats"
    wait_for(lambda: cluster.read(beats)[0][0] > 3, WAIT_SECONDS, "Dagster's daemon", beating)


def read_bars(url: str) -> list[tuple[Any, ...]]:
    """Return every bar, by the names of its market."""
    return read_query(
        url,
        """SELECT symbol, "interval", open_time, open, high, low, close, volume, is_final
        FROM market_data.market_aggregate JOIN market_data.market USING (market_id)
        ORDER BY 1, 2, 3""",
    )


def read_statistics(url: str) -> list[tuple[Any, ...]]:
    """Return every statistic."""
    return read_query(
        url,
        """SELECT symbol, "interval", horizon, as_of, method, roi, sharpe, max_drawdown, reason
        FROM market_data.market_roi_statistic JOIN market_data.market USING (market_id)
        ORDER BY 1, 2, 3, 4, 5""",
    )


def test_a_killed_worker_costs_no_market(cluster: Cluster, tcp_alone: str) -> None:
    """Its shard is retried, the next tick is whole, and what is stored is what one run stores."""
    cluster.exchange.hold_after(700)
    with run_in_background(
        [str(SCRIPTS / "market-pipeline"), *INGEST],
        cluster.project.environment,
        cluster.project.folder,
    ) as command:
        wait_for(lambda: len(cluster.exchange.asked) >= 700, WAIT_SECONDS, "questions", command)
        wait_for(lambda: cluster.read(COMMITTED)[0][0] > 0, WAIT_SECONDS, "a commit", command)
        cluster.kill_worker("first")
        cluster.exchange.release()
        code = command.process.wait(WAIT_SECONDS)
    assert code in (0, 3), command.read_last_words()
    derived = cluster.read("SELECT outcome, error FROM market_data.ingestion_run WHERE shard = 0")
    assert derived == [("ok", None)]
    parts = cluster.read(PARTS)
    assert len([shard for shard, *_ in parts if shard]) > SHARDS, "no shard was retried"
    cluster.start_worker("third")
    again = cluster.project.run("market-pipeline", *INGEST)
    assert again.returncode == 0, cluster.read(ERRORS)

    alone = Project(cluster.project.folder, {**cluster.project.settings})
    alone = alone.with_settings(DATABASE_URL=tcp_alone, INGESTION_SHARDS="1")
    done = alone.run("market-pipeline", *INGEST)
    assert done.returncode == 0, done.stderr
    assert read_bars(cluster.url) == read_bars(tcp_alone)
    assert read_statistics(cluster.url) == read_statistics(tcp_alone)
    stored = "SELECT count(DISTINCT market_id) FROM market_data.market_aggregate"
    assert cluster.read(stored) == [(len(SYMBOLS),)]
    assert cluster.read("SELECT * FROM market_data.fetch_claim") == []


@pytest.fixture
def tcp_alone(cluster: Cluster) -> Iterator[str]:
    """Another database of the same server."""
    admin = cluster.url.replace("postgresql:", "postgresql+psycopg2:")
    with create_database(admin) as made:
        yield made.replace("+psycopg2", "", 1)


def test_a_broker_that_is_away_ends_the_tick_and_no_later_one(cluster: Cluster) -> None:
    """The tick says what it could not reach, an alert is raised, and the next tick is good."""
    cluster.broker.kill()
    failed = cluster.project.run("market-pipeline", *INGEST)
    assert failed.returncode == 1
    raised = (
        "SELECT message FROM market_data.alert WHERE kind = 'run_failed' AND cleared_at IS NULL"
    )
    ((message,),) = cluster.read(raised)
    assert "5 of 5 runs failed" in message
    assert f"connecting to 127.0.0.1:{cluster.broker.port}. Connection refused" in message, message
    cluster.broker.start()
    good = wait_for(
        lambda: cluster.project.run("market-pipeline", *INGEST).returncode == 0,
        WAIT_SECONDS, "a good tick",
    )  # fmt: skip
    assert good
    assert cluster.read(raised) == []


@pytest.mark.parametrize("missing", ["DATABASE_URL", "CELERY_BROKER_URL"])
def test_a_worker_without_its_settings_does_not_start(cluster: Cluster, missing: str) -> None:
    """It names the variable before it takes a run from the queue."""
    command = [str(SCRIPTS / "celery"), "-A", "dagster_celery.app", "worker", "-Q", "dagster"]
    environment = {**cluster.project.environment, "PYTHONPATH": str(ROOT / "deploy/celery")}
    del environment[missing]
    with run_in_background(command, environment, cluster.project.folder) as worker:
        assert worker.process.wait(WAIT_SECONDS) == 1
        assert f"Error: {missing} is not set for this worker" in worker.read_log()
