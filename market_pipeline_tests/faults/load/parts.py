"""The parts under load: servers, Dagster with its daemon, the API, and loads of a million bars."""

import asyncio
import os
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
from sqlalchemy import Engine

from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline_tests.api.conftest import is_alive
from market_pipeline_tests.cache.valkey import Valkey
from market_pipeline_tests.commands import ROOT, SCRIPTS, run_command
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.faults.load.answers import Notes
from market_pipeline_tests.faults.load.clients import SYMBOLS
from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.storage.tcp_server import TcpServer, run_tcp_server
from market_pipeline_tests.system.processes import (
    Background,
    find_marked,
    read_command_line,
    run_in_background,
    wait_for,
)

START_SECONDS = 300.0
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'market-pipeline%'"
LOAD_MARKETS, LOAD_END = 4, datetime(2026, 1, 1, tzinfo=UTC)
_BROKEN = re.compile(r"fault [0-9a-f]{32} at|Exception in ASGI|exception was never retrieved")
_BARS_A_DAY = 24 + 1 + 1 / 7


@dataclass
class Parts:
    """What runs, and where."""

    server: TcpServer
    valkey: Valkey
    dev: Background
    engine: Engine
    environment: Mapping[str, str]
    folder: Path
    address: str
    bars: int
    loads: list[list[str]] = field(default_factory=list)

    @property
    def load_start(self) -> datetime:
        """The Monday on which a load's history begins: a backfill takes whole weeks."""
        start = LOAD_END - timedelta(days=int(self.bars / LOAD_MARKETS / _BARS_A_DAY))
        return start - timedelta(days=start.weekday())

    def find_api(self) -> psutil.Process:
        """Return the API's process."""
        (pid,) = (pid for pid in find_marked(self.dev.mark) if " serve" in read_command_line(pid))
        return psutil.Process(pid)

    def list_faults(self) -> list[str]:
        """Return the lines of the log by which the API says that something broke in it."""
        return [line[:500] for line in self.dev.read_log().splitlines() if _BROKEN.search(line)]

    def run(self, *command: str) -> None:
        """Run a command to its end, which must be a good one."""
        done = run_command(*command, environment=self.environment, folder=self.folder)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stderr[-2000:]}"


@contextmanager
def run_parts(folder: Path, bars: int) -> Iterator[Parts]:
    """Start everything on a small installation with some history; nothing is left of it."""
    with ExitStack() as stack:
        server = stack.enter_context(run_tcp_server())
        valkey = Valkey().start()
        stack.callback(valkey.close)
        port, api_port = choose_port(), choose_port()
        environment = _build_environment(folder, server.make_url(), valkey.url, api_port)
        options = ("--lookback-days", "400")
        first = run_command(
            "market-pipeline", "ingest", *options, environment=environment, folder=folder
        )
        assert first.returncode == 0, first.stderr
        command = [str(SCRIPTS / "market-pipeline"), "dev", "--port", str(port)]
        dev = stack.enter_context(run_in_background(command, environment, folder))
        url = server.make_url(scheme="postgresql+psycopg2")
        engine = open_engine(DatabaseAddress(url, is_embedded=False))
        stack.callback(engine.dispose)
        address = f"http://127.0.0.1:{api_port}"
        with httpx.Client(base_url=address, trust_env=False, timeout=10) as client:
            wait_for(lambda: _is_ready(client), START_SECONDS, "the API and Dagster", dev)
        yield Parts(server, valkey, dev, engine, environment, folder, address, bars)


def _build_environment(folder: Path, database: str, redis: str, api_port: int) -> dict[str, str]:
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, folder)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {
        **kept, "DATABASE_URL": database, "REDIS_URL": redis, "API_PORT": str(api_port),
        "DAGSTER_HOME": str(folder), "STATE_DIR": str(folder / "state"),
        "INGESTION_MARKETS": ",".join(SYMBOLS), "INGESTION_SCHEDULE_ENABLED": "true",
        "INGESTION_CRON_EXPRESSION": "* * * * *", "INGEST_WAIT_SECONDS": "20",
    }  # fmt: skip


def _is_ready(client: httpx.Client) -> bool:
    return is_alive(client) and client.get("/readyz").json()["status"] == "ok"


async def load_bars(parts: Parts, notes: Notes, until: float) -> list[str]:
    """Load the bars of new markets, again and again; return what went wrong without an excuse.

    A load that lost its database is begun again by the same command, as its message says.
    """
    start, end, wrong = parts.load_start.date().isoformat(), LOAD_END.date().isoformat(), []
    while not parts.loads or time.time() < until:
        symbols = [f"LOAD{len(parts.loads)}{letter}-USD" for letter in "ABCD"[:LOAD_MARKETS]]
        parts.loads.append(symbols)
        options = ["--from", start, "--to", end, "--symbols", ",".join(symbols)]
        command = [str(SCRIPTS / "market-pipeline"), "backfill", *options]
        code = 1
        while code:
            began = time.time()
            code, words = await _run(command, parts)
            if code and not notes.is_excused(began, time.time()):
                wrong.append(f"a load ended with {code}: {words}")
                break
    return wrong


async def _run(command: list[str], parts: Parts) -> tuple[int, str]:
    with run_in_background(command, parts.environment, parts.folder) as running:
        while running.process.poll() is None:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(0.5)
        return running.process.returncode, running.read_last_words()[-500:]


@dataclass(frozen=True)
class Sizes:
    """What the API holds: descriptors, threads, and sessions of all processes."""

    descriptors: int
    threads: int
    sessions: int

    @classmethod
    def measure(cls, parts: Parts) -> "Sizes":
        """Look at it now."""
        api, sessions = parts.find_api(), read_column(parts.engine, SESSIONS)
        return cls(api.num_fds(), api.num_threads(), int(str(sessions[0])))


async def watch_memory(parts: Parts, seen: list[tuple[float, int]], until: float) -> None:
    """Note the API's resident bytes each second.

    Raises:
        AssertionError: A part ended by itself.
    """
    api = parts.find_api()
    while time.time() < until:
        parts.dev.check_running()
        seen.append((time.time(), api.memory_info().rss))
        await asyncio.sleep(1)


def compare_thirds(seen: list[tuple[float, int]]) -> tuple[int, int, int]:
    """Return the median bytes of the first and of the last third after a warm-up, and the most."""
    sizes = [size for _, size in seen[len(seen) // 5 :]]
    third = max(len(sizes) // 3, 1)
    return int(statistics.median(sizes[:third])), int(statistics.median(sizes[-third:])), max(sizes)
