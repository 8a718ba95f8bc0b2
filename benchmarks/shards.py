"""What shards gain: one worker against two, and a queueing model of where the next limit is.

Workers are processes with the code loaded, as Celery's are. A tick's work is that of its shards:
the bars of all markets, from a provider whose answers cost nothing. All workers together have as
many fetch workers, whatever their number.

The model is a closed network, solved by mean value analysis: a shard does its own work (a delay, as
it has a core of its own), then uses the database's cores (a queue), then holds the merge lock (a
queue for one). What a provider allows bounds all of it from outside.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from uuid import uuid4

import psutil

from benchmarks.bench import Bench, Measurement
from benchmarks.figures import Figure
from benchmarks.prepared import NAME, PreparedProvider
from benchmarks.rounds import Way, compare
from benchmarks.waves import Runs, open_runs, watch
from market_pipeline.domain.ticks import split_symbols
from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request

MARKETS, FETCH_WORKERS, HISTORY_DAYS = 2_000, 4, 40
_ROOT = Path(__file__).resolve().parents[1]
_FIGURES = (
    "two_shards_vs_one", "worker_cpu_ms_per_market", "server_cpu_ms_per_market",
    "shard_lock_ms_per_market",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Costs:
    """What a market costs in a tick, in milliseconds, and a run by itself, in seconds.

    Attributes:
        worker_ms: Processor time of the run. server_ms: Processor time of PostgreSQL.
        lock_ms: How long the merge lock is held. run_seconds: A run that does nothing.
        calls: Requests to the provider.
    """

    worker_ms: float
    server_ms: float
    lock_ms: float
    run_seconds: float = 2.0
    calls: float = 3.0


# By this benchmark, on a quiet machine.
MEASURED = Costs(worker_ms=3.2, server_ms=0.43, lock_ms=0.58)


@dataclass(frozen=True, slots=True)
class Forecast:
    """How long a tick takes, and what bounds it.

    Attributes:
        seconds: From its first run to the last shard's end. limit: What is busiest.
        lock_share, server_share: Of the time in which the lock and the server's cores are busy.
    """

    seconds: float
    limit: str
    lock_share: float
    server_share: float


def forecast(
    costs: Costs,
    markets: int,
    shards: int,
    server_cores: int = 2,
    calls_per_second: float | None = None,
) -> Forecast:
    """Return how long a tick takes whose shards have a core each.

    Args:
        costs: As measured.
        markets: Of the tick.
        shards: Runs at a time.
        server_cores: Cores of the database.
        calls_per_second: What the provider allows to all hosts; None: any number.
    """
    lock, cores = costs.lock_ms / 1e3, costs.server_ms / 1e3 / server_cores
    # The server works while the lock is held: that part is not waited for twice.
    outside = max(cores - lock / server_cores, 0.0)
    waits = {"the merge lock": lock, "the database's processor": outside}
    rate = _find_throughput(costs.worker_ms / 1e3, list(waits.values()), shards)
    seconds = costs.run_seconds + markets / rate
    shares = {name: rate * service for name, service in waits.items()}
    shares["the database's processor"] = rate * cores
    limit = max(shares, key=shares.__getitem__)
    if shares[limit] < 0.7:  # Below that, another worker still gains most of itself.
        limit = "the workers"
    asked = markets * costs.calls / calls_per_second if calls_per_second else 0.0
    if asked > seconds:
        seconds, limit = asked, "the provider"
    return Forecast(seconds, limit, shares["the merge lock"], shares["the database's processor"])


def build_table() -> list[str]:
    """Return the table of docs/scaling.md: what the model says at sizes that were not tried."""
    lines = [
        "| markets | shards | a tick | busiest | merge lock | database |",
        "|---|---|---|---|---|---|",
    ]
    for markets in (1_000, 10_000, 100_000):
        for shards in (1, 2, 4, 8, 16):
            told = forecast(MEASURED, markets, shards)
            lines.append(
                f"| {markets:,} | {shards} | {told.seconds:.0f} s | {told.limit} | "
                f"{told.lock_share:.0%} | {told.server_share:.0%} |"
            )
    return lines


def _find_throughput(delay: float, services: list[float], customers: int) -> float:
    """Return markets a second, by exact mean value analysis of a closed network."""
    queues, rate = [0.0] * len(services), 0.0
    for number in range(1, customers + 1):
        stays = [service * (1 + queue) for service, queue in zip(services, queues, strict=True)]
        rate = number / (delay + sum(stays))
        queues = [rate * stay for stay in stays]
    return rate


def measure(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield what two workers gain, and what a market costs worker, server and lock."""
    with open_runs(bench, "shards", MARKETS) as runs:
        bench.report(f"making {HISTORY_DAYS} days of {MARKETS:,} markets")
        runs.make_history(HISTORY_DAYS)
        yield from _measure_costs(runs, bench, wanted)
        if "two_shards_vs_one" in wanted:
            ways = [_build_way(runs, "one", 1), _build_way(runs, "two", 2)]
            comparison = compare(ways, bench.rounds, bench.report)
            note = f"{MARKETS:,} markets, {FETCH_WORKERS} fetch workers in all, 2 cores for all"
            yield comparison.build_ratio("two_shards_vs_one", "one", "two", note)


def _measure_costs(runs: Runs, bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    measured: dict[str, list[float]] = {name: [] for name in _FIGURES[1:]}
    for _ in range(bench.rounds):
        runs.step()
        with watch(runs.database.engine) as seen, _count_processor(runs) as spent:
            for _ in runs.open_stream(runs.routes):
                pass
        for name, seconds in zip(measured, (*spent, seen["locked"]), strict=True):
            measured[name].append(seconds * 1e3 / MARKETS)
    for name, values in measured.items():
        if name in wanted:
            yield Figure(name, round(median(values), 4), "ms", bench.rounds, {})


@contextmanager
def _count_processor(runs: Runs) -> Iterator[list[float]]:
    """Count the processor seconds of this process and of the server, those that ended included."""
    backend = int(runs.database.ask("SELECT pg_backend_pid()"))
    server = psutil.Process(backend).parent()
    before, spent = _read_processor(server), list[float]()
    yield spent
    spent += [after - first for after, first in zip(_read_processor(server), before, strict=True)]


def _read_processor(server: psutil.Process | None) -> tuple[float, float]:
    own = psutil.Process().cpu_times()
    living = [server, *server.children()] if server is not None else []
    times = [process.cpu_times() for process in living]
    ended = sum(times[0][2:4]) if times else 0.0
    return own.user + own.system, ended + sum(time.user + time.system for time in times)


def _build_way(runs: Runs, name: str, shards: int) -> Way:
    started: list[subprocess.Popen[bytes]] = []

    def prepare() -> None:
        runs.step()
        started[:] = [_start_worker(runs, shard, shards) for shard in range(1, shards + 1)]
        for process in started:
            process.stdout.readline()  # type: ignore[union-attr]

    def work() -> None:
        for process in started:  # All at once: communicate() waits for the end of its process.
            process.stdin.write(b"go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        for process in started:
            process.communicate()
        if any(process.returncode for process in started):
            raise RuntimeError("a worker failed")

    return Way(name, work, prepare=prepare)


def _start_worker(runs: Runs, shard: int, shards: int) -> "subprocess.Popen[bytes]":
    """Start a process that waits for a line, then carries out its shard."""
    command = [sys.executable, "-m", "benchmarks.shards", runs.database.url, runs.now.isoformat()]
    environment = {**runs.environment, "FETCH_WORKERS": str(FETCH_WORKERS // shards)}
    return subprocess.Popen(  # noqa: S603 - this module
        [*command, str(shard), str(shards), str(len(runs.symbols))],
        env=environment, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


MEASUREMENT = Measurement("shards of a tick", _FIGURES, measure)


def _run_shard(url: str, now: str, shard: str, shards: str, markets: str) -> None:
    """Carry out a shard once a line comes: what ``_start_worker`` starts."""
    from market_pipeline.storage.server.engine import DatabaseAddress, open_engine

    engine = open_engine(DatabaseAddress(url, is_embedded=True))
    moment, provider = datetime.fromisoformat(now), PreparedProvider(os.environ)
    symbols = [f"M{number:05}-USD" for number in range(int(markets))]
    chosen = split_symbols(symbols, int(shards))[int(shard)]
    routes = [(provider, found) for one in chosen if (found := provider.find_market(one))]
    request = build_request(moment, chosen[:1], NAME, 30, now)
    stream = BarStream(engine, Run(uuid4(), "manual", moment, request), routes)
    print("ready", flush=True)  # noqa: T201 - read by the other process
    sys.stdin.readline()
    for _ in stream:
        pass


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _run_shard(*sys.argv[1:])
    else:
        print("\n".join(build_table()))  # noqa: T201 - the table of docs/scaling.md
