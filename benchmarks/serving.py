"""Serving: latest values beside a bare route, metrics, readers while bars are loaded."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import httpx

from benchmarks.bar_table import prepare_markets, write_bars
from benchmarks.bars import MARKETS, Span, build_bars
from benchmarks.bench import Bench, Measurement
from benchmarks.database import Database, open_database
from benchmarks.figures import Figure
from benchmarks.jobs import build_environment, run_quietly
from benchmarks.rounds import Way, compare
from market_pipeline.settings import find_project_dir

CONNECTIONS = 100
SECONDS = 4.0
METRIC_MARKETS = 1_000
_SCRIPTS = Path(sys.executable).parent
_START_SECONDS = 60.0
_LATEST = ("latest_vs_bare_route", "latest_p99_vs_bare_route")
_MARKET = "/api/markets/BTC-USD"
_READER_CONNECTIONS = 2


def measure_latest(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield requests a second and the 99th percentile, over those of a bare route."""
    with _serve(bench, "2") as api, ExitStack() as stack:
        body = bench.folder / "latest.json"
        body.write_bytes(httpx.get(f"{api}{_MARKET}/latest").content)
        bare = stack.enter_context(_serve_bare(body))
        urls = {"bare": f"{bare}/latest", "ours": f"{api}{_MARKET}/latest"}
        rounds = [_load_both(bench, urls) for _ in range(bench.rounds)]
    rates = [one["ours"]["requests"] / one["bare"]["requests"] for one in rounds]
    slowest = [one["ours"]["p99_ms"] / one["bare"]["p99_ms"] for one in rounds]
    for name, ratios in zip(_LATEST, (rates, slowest), strict=True):
        if name in wanted:
            yield Figure(name, round(median(ratios), 3), "ratio", len(ratios), {"rounds": rounds})


def _load_both(bench: Bench, urls: dict[str, str]) -> dict[str, dict[str, float]]:
    told = {name: _load(url, CONNECTIONS, SECONDS) for name, url in urls.items()}
    bench.report(str({name: round(one["requests"] / one["seconds"]) for name, one in told.items()}))
    return told


def measure_metrics(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield how long metrics take with the series of a thousand markets, to one who asks alone."""
    del wanted
    with _serve(bench, "2", _add_markets) as api, httpx.Client(timeout=60) as client:

        def fetch() -> None:
            body = client.get(f"{api}/metrics").raise_for_status().text
            if body.count("\nmarket_bars{") != METRIC_MARKETS:
                raise RuntimeError(f"expected the series of {METRIC_MARKETS:,} markets: {body}")

        comparison = compare([Way("metrics", fetch)], bench.rounds * 3, bench.report)
    taken = [seconds * 1_000 for seconds in comparison.seconds["metrics"]]
    detail = {"ms": [round(one, 1) for one in taken], "note": "GET /metrics over loopback"}
    yield Figure("metrics_1000_ms", round(median(taken), 1), "ms", len(taken), detail)


def _add_markets(database: Database) -> None:
    """Add markets with a series each to those that were ingested, up to the most that are shown."""
    database.execute(
        f"""INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base, quote,
                venue, calendar, intervals, price_basis)
            SELECT 'bench', 'M' || n, 'M' || n || '-USD', 'Market ' || n, 'M' || n, 'USD', 'bench',
                '24/7', ARRAY['1h'], 'unadjusted'
            FROM generate_series(1, {METRIC_MARKETS}) n""",
        """INSERT INTO market_data.market_coverage (market_id, "interval", settled, watermark, bars)
            SELECT market_id, '1h', '{}', now(), 8760 FROM market_data.market
            WHERE provider = 'bench'""",
    )


def measure_readers(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield readers' 99th percentile while a full table is loaded, over that of a quiet server."""
    del wanted
    ratios, rounds = [], []
    for _ in range(bench.rounds):
        with _serve(bench, "30") as api:
            url = f"{api}{_MARKET}/aggregates?interval=1h&limit=100"
            idle = _load(url, _READER_CONNECTIONS, SECONDS)
            with open_database(bench.server_url) as database:
                busy = _load_while_writing(bench, database, url)
        ratios.append(busy["p99_ms"] / idle["p99_ms"])
        rounds.append({"idle": idle, "busy": busy})
        bench.report(f"p99 {idle['p99_ms']:.3g} ms idle, {busy['p99_ms']:.3g} ms under load")
    note = "100 bars from the database, over HTTP; the load is in another database of the server"
    detail = {"rounds": rounds, "note": note}
    yield Figure("reader_p99_under_load_vs_idle", median(ratios), "ratio", len(ratios), detail)


def _load_while_writing(bench: Bench, database: Database, url: str) -> dict[str, float]:
    prepare_markets(database)
    bars = build_bars(Span(0, max(bench.rows // MARKETS, 1)))
    writer = threading.Thread(target=write_bars, args=(database, bars))
    writer.start()
    time.sleep(0.5)
    told = _load(url, _READER_CONNECTIONS, SECONDS)
    writer.join()
    return told


def _load(url: str, connections: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.load", url, str(connections), str(seconds)]
    done = subprocess.run(  # noqa: S603 - the project's own
        command, capture_output=True, text=True, check=True, cwd=find_project_dir()
    )
    told: dict[str, float] = json.loads(done.stdout)
    return told


@contextmanager
def _serve(
    bench: Bench, days: str, prepare: Callable[[Database], None] = lambda _: None
) -> Iterator[str]:
    """Serve the API over a database with three markets' history of so many days, and more."""
    home = bench.folder / "serving"
    home.mkdir(exist_ok=True)
    shutil.copy(find_project_dir() / "dagster.yaml", home)
    with open_database(bench.server_url) as database:
        port = _choose_port()
        variables = {"DATABASE_URL": database.url, "DAGSTER_HOME": str(home), "API_PORT": str(port)}
        environment = build_environment({**variables, "INGESTION_LOOKBACK_DAYS": days})
        run_quietly([str(_SCRIPTS / "market-pipeline"), "ingest"], environment, home)
        prepare(database)
        with _run([str(_SCRIPTS / "market-pipeline"), "serve"], environment, port):
            yield f"http://127.0.0.1:{port}"


@contextmanager
def _serve_bare(body: Path) -> Iterator[str]:
    port = _choose_port()
    command = [sys.executable, "-m", "benchmarks.bare_route", str(body), str(port)]
    with _run(command, dict(os.environ), port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _run(command: Sequence[str], environment: dict[str, str], port: int) -> Iterator[None]:
    process = subprocess.Popen(  # noqa: S603 - the project's own
        command, env=environment, cwd=find_project_dir(), stdout=subprocess.DEVNULL
    )
    try:
        _wait_for(port, process)
        yield
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"nobody listens on port {port}")


def _choose_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


LATEST = Measurement("latest values over HTTP", _LATEST, measure_latest)
METRICS = Measurement("metrics over HTTP", ("metrics_1000_ms",), measure_metrics)
READERS = Measurement("readers under load", ("reader_p99_under_load_vs_idle",), measure_readers)
