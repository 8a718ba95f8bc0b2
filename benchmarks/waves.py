"""Runs over a thousand markets and more: a tick, a first load, and two processes side by side."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, event

from benchmarks import empty_job, prepared
from benchmarks.bench import Bench, Measurement
from benchmarks.database import Database, open_database
from benchmarks.figures import Figure
from benchmarks.jobs import build_environment, count_definitions, run_quietly
from benchmarks.prepared import NAME, PreparedProvider
from benchmarks.rounds import Way, compare
from market_pipeline.ingestion.commit import write_markets
from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import Route, build_request
from market_pipeline.providers.base import Provider
from market_pipeline.settings import find_project_dir
from market_pipeline.storage.tables import market_aggregate

MARKETS, HISTORY_DAYS, FILL_DAYS = 1_000, 365, 41
_NOW = datetime(2026, 3, 2, 0, 20, tzinfo=UTC)
_STEP = timedelta(hours=3)
_DAGSTER = Path(sys.executable).parent / "dagster"
_ROOT = Path(__file__).resolve().parents[1]
# What a run before would have stored: bars, coverage, and that all of it was verified.
_HISTORY = (
    """INSERT INTO market_data.market_aggregate (market_id, "interval", open_time, close_time, open,
        high, low, close, volume, volume_kind, source_kind, is_final, known_at, dataset_version)
    SELECT market_id, "interval", at, at + step, price, price, price, price, 1, 'base', 'traded',
        true, at + step, 1
    FROM market_data.market, (VALUES ('1h', INTERVAL '1 hour'), ('1d', INTERVAL '1 day'))
            AS lengths ("interval", step),
        generate_series(TIMESTAMPTZ '{first}', TIMESTAMPTZ '{last}' - step, step) AS at,
        LATERAL (SELECT 100 + extract(hour FROM at AT TIME ZONE 'UTC') AS price) AS prices
    WHERE "interval" = ANY(intervals)""",
    """INSERT INTO market_data.market_coverage (market_id, "interval", settled, watermark,
        first_bar_at, last_bar_at, bars, verified, round, refreshed_at)
    SELECT market_id, "interval", tstzmultirange(tstzrange('{first}', '{last}')), '{last}',
        '{first}', max(open_time), count(*), (SELECT jsonb_object_agg(age, '[["{first}", "{last}"]]'
            ::jsonb) FROM unnest(ARRAY['1', '7', '30', '365']) age),
        '{{"began_at": "{last}", "reached": "{last}", "read_at": "{last}", "skipped": []}}',
        '{last}'
    FROM market_data.market_aggregate GROUP BY market_id, "interval" """,
    "VACUUM ANALYZE market_data.market_aggregate",
)


class Runs:
    """Markets in a database, and the runs over them: each sees three hours more than the last."""

    def __init__(self, database: Database, folder: Path, markets: int = MARKETS) -> None:
        self.database, self._folder = database, folder
        self.provider: Provider = PreparedProvider({})
        self.now = _NOW
        self.symbols = [f"M{number:05}-USD" for number in range(markets)]
        shutil.copy(find_project_dir() / "dagster.yaml", folder)
        prepared.install(folder)
        self.environment = build_environment(
            {
                "DATABASE_URL": database.url,
                "DAGSTER_HOME": str(folder),
                "PYTHONPATH": f"{folder}{os.pathsep}{_ROOT}",
                **count_definitions(),
            }
        )

    @property
    def routes(self) -> list[Route]:
        """The markets, all of one provider."""
        found = [self.provider.find_market(symbol) for symbol in self.symbols]
        return [(self.provider, market) for market in found if market is not None]

    def make_history(self, days: int = HISTORY_DAYS) -> None:
        """Store so many days of bars of each market, as runs would have."""
        with_run = self.open_stream([])
        write_markets(self.database.engine, with_run.run, [market for _, market in self.routes])
        first = (_NOW - timedelta(days=days)).replace(hour=0, minute=0)
        span = {"first": first.isoformat(), "last": _NOW.replace(minute=0).isoformat()}
        for statement in _HISTORY:  # by psql, which waits as long as it takes
            self.database.run_psql("-c", statement.format(**span))

    def step(self) -> None:
        """Let three hours pass."""
        self.now += _STEP

    def open_stream(self, routes: list[Route], days: int = 30) -> BarStream:
        """Return a run of this process, as of now."""
        request = build_request(self.now, self.symbols[:1], NAME, days, self.now.isoformat())
        run = Run(uuid4(), "manual", self.now, request)
        return BarStream(self.database.engine, run, routes)

    def run_job(self) -> None:
        """Run the product's job over all markets in a process of its own."""
        options = {"symbols": self.symbols, "provider": NAME, "window_end": self.now.isoformat()}
        config = self._folder / "run.yaml"
        config.write_text(json.dumps({"resources": {"request": {"config": options}}}))
        self._execute("-m", "market_pipeline.definitions", "-j", "ingest", "-c", str(config))

    def run_empty(self) -> None:
        """Run the job that does nothing."""
        self._execute("-f", str(empty_job.__file__), "-j", "empty")

    def _execute(self, *arguments: str) -> None:
        command = [str(_DAGSTER), "job", "execute", *arguments]
        run_quietly(command, self.environment, self._folder)

    def start_part(self, first: int, count: int) -> "subprocess.Popen[bytes]":
        """Start a process that waits for a line, then runs over some of the markets."""
        command = [
            sys.executable,
            "-m",
            "benchmarks.waves",
            self.database.url,
            self.now.isoformat(),
        ]
        return subprocess.Popen(  # noqa: S603 - this module
            [*command, str(first), str(count)],
            env=self.environment, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip


@contextmanager
def open_runs(bench: Bench, name: str, markets: int = MARKETS) -> Iterator[Runs]:
    """Yield markets in a database of their own, and a folder for their runs."""
    folder = bench.folder / name
    folder.mkdir()
    with open_database(bench.server_url) as database:
        yield Runs(database, folder, markets)


def measure_ticks(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield what a run over a thousand known markets with three new bars each costs."""
    with open_runs(bench, "ticks") as runs:
        bench.report(f"making a year of {MARKETS:,} markets")
        runs.make_history()
        runs.run_job()
        if "tick_1000_vs_empty_job" in wanted:
            tick = Way("tick", runs.run_job, prepare=runs.step)
            comparison = compare([tick, Way("empty", runs.run_empty)], bench.rounds, bench.report)
            yield comparison.build_ratio("tick_1000_vs_empty_job", "tick", "empty")
        yield from _measure_statements(runs, bench.rounds, wanted)
        if "two_processes_vs_one" in wanted:
            yield _compare_processes(runs, bench)


def _measure_statements(runs: Runs, rounds: int, wanted: frozenset[str]) -> Iterator[Figure]:
    locks, counts = list[float](), list[float]()
    for _ in range(rounds):
        runs.step()
        with watch(runs.database.engine) as seen:
            for _ in runs.open_stream(runs.routes):
                pass
        locks.append(seen["locked"] * 1e3 / MARKETS)
        counts.append(seen["statements"] / MARKETS)
    for name, values in (("merge_lock_ms_per_market", locks), ("statements_per_market", counts)):
        if name in wanted:
            yield Figure(name, round(median(values), 4), name.split("_")[1], rounds, {})


@contextmanager
def watch(engine: Engine) -> Iterator[dict[str, float]]:
    """Count the statements of all connections, and the seconds in which the merge lock is held."""
    seen = {"statements": 0.0, "locked": 0.0, "since": 0.0}

    def note(*_: Any) -> None:
        seen["statements"] += 1

    def begin(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "pg_advisory_xact_lock" in statement and not seen["since"]:
            seen["since"] = time.perf_counter()

    def end(_: Any) -> None:
        if seen["since"]:
            seen["locked"] += time.perf_counter() - seen["since"]
        seen["since"] = 0.0

    watched: list[tuple[str, Any]] = [
        ("before_cursor_execute", note),
        ("after_cursor_execute", begin),
        ("commit", end),
    ]
    for name, listener in watched:
        event.listen(engine, name, listener)
    try:
        yield seen
    finally:
        for name, listener in watched:
            event.remove(engine, name, listener)


def _compare_processes(runs: Runs, bench: Bench) -> Figure:
    """Disjoint halves by two processes over all by one."""
    half = MARKETS // 2

    def run_parts() -> None:
        for process in started:
            process.stdin.write(b"go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        for process in started:
            if process.wait():
                raise RuntimeError("a process failed")

    started: list[subprocess.Popen[bytes]] = []

    def prepare(*parts: tuple[int, int]) -> None:
        runs.step()
        started[:] = [runs.start_part(*part) for part in parts]
        for process in started:
            process.stdout.readline()  # type: ignore[union-attr]

    ways = [
        Way("one", run_parts, prepare=lambda: prepare((0, MARKETS))),
        Way("two", run_parts, prepare=lambda: prepare((0, half), (half, half))),
    ]
    comparison = compare(ways, bench.rounds, bench.report)
    return comparison.build_ratio("two_processes_vs_one", "one", "two", "bars alone")


def measure_fill(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield a bare write of a thousand markets by a thousand hours over the run that loads them."""
    del wanted
    with open_runs(bench, "fill") as runs:
        engine = runs.database.engine

        def forget() -> None:
            runs.database.execute(
                "TRUNCATE market_data.market, market_data.ingestion_run, "
                "market_data.dataset_version RESTART IDENTITY CASCADE",
                "CHECKPOINT",
            )

        def forget_bars() -> None:
            runs.database.execute(f"TRUNCATE {table} CASCADE", "CHECKPOINT")

        def load() -> None:
            stream = runs.open_stream(runs.routes, FILL_DAYS)
            write_markets(engine, stream.run, [market for _, market in runs.routes])
            for _ in stream:
                pass

        def keep() -> None:
            runs.database.run_psql("-c", f"\\copy {table} TO '{file}' (FORMAT binary)")

        file, table = bench.folder / "fill" / "bars.bin", market_aggregate.fullname
        forget()
        load()
        keep()
        copy = ["-c", f"\\copy {table} FROM '{file}' (FORMAT binary)"]
        ways = [
            Way("bare", lambda: runs.database.run_psql(*copy), prepare=forget_bars),
            Way("run", load, prepare=forget),
        ]
        comparison = compare(ways, bench.rounds, bench.report)
        yield comparison.build_ratio("fill_1000_vs_bare_write", "bare", "run")


TICKS = Measurement(
    "a run over a thousand markets",
    (
        "tick_1000_vs_empty_job",
        "merge_lock_ms_per_market",
        "statements_per_market",
        "two_processes_vs_one",
    ),
    measure_ticks,
)
FILL = Measurement("a first load of a thousand markets", ("fill_1000_vs_bare_write",), measure_fill)


def _run_part(url: str, now: str, first: str, count: str) -> None:
    """Run over some of the markets once a line comes: what ``start_part`` starts."""
    from market_pipeline.storage.server.engine import DatabaseAddress, open_engine

    engine, moment = (
        open_engine(DatabaseAddress(url, is_embedded=True)),
        datetime.fromisoformat(now),
    )
    provider: Provider = PreparedProvider({})
    symbols = [f"M{number:05}-USD" for number in range(int(first), int(first) + int(count))]
    routes: list[Route] = [(provider, m) for s in symbols if (m := provider.find_market(s))]
    request = build_request(moment, symbols[:1], NAME, 30, now)
    stream = BarStream(engine, Run(uuid4(), "manual", moment, request), routes)
    print("ready", flush=True)  # noqa: T201 - read by the other process
    sys.stdin.readline()
    for _ in stream:
        pass


if __name__ == "__main__":
    _run_part(*sys.argv[1:])
