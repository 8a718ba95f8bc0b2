"""How fast a run asks a server that takes its time, beside a bare client with as many workers."""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from unittest import mock
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx

from benchmarks.bench import Bench, Measurement
from benchmarks.database import Database, open_database
from benchmarks.figures import Figure
from benchmarks.rounds import Way, compare
from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.registry import route_markets
from market_pipeline.settings import read_fetch_workers

MARKETS, ANSWER_SECONDS, DAYS = 60, 0.2, 1
_NOW = datetime(2026, 3, 2, 0, 20, tzinfo=UTC)


class _SlowExchange(BaseHTTPRequestHandler):
    """Answers each question about candles after a while; the prices never change."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        time.sleep(ANSWER_SECONDS)
        asked = {
            name: int(values[0]) for name, values in parse_qs(urlsplit(self.path).query).items()
        }
        step = asked["granularity"]
        last = min(asked["end"], int(_NOW.timestamp()))
        opens = range(last // step * step, asked["start"] - 1, -step)
        body = json.dumps([[at, 99, 101, 100, 100, 1] for at in opens]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Stay silent."""


@contextmanager
def _serve() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _SlowExchange)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def measure_fetching(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield the time of a run over the time in which a bare client gets the same answers."""
    del wanted
    symbols = [f"M{number:03}-USD" for number in range(MARKETS)]
    with _serve() as address, open_database(bench.server_url) as database:
        environ = {
            "COINBASE_BASE_URL": address,
            "PROVIDER_MARKETS": ",".join(f"coinbase:{symbol}" for symbol in symbols),
            "PROVIDER_CALLS_PER_MINUTE": "coinbase=100000",
        }
        with mock.patch.dict(os.environ, environ):
            ways = [
                Way("run", lambda: _ingest(database, symbols), prepare=lambda: _forget(database)),
                Way("bare", lambda: _ask(address, symbols)),
            ]
            comparison = compare(ways, bench.rounds, bench.report)
    note = f"{MARKETS} markets, two answers each, {read_fetch_workers()} workers"
    yield comparison.build_ratio("fetch_vs_bare_client", "run", "bare", note)


def _ingest(database: Database, symbols: list[str]) -> None:
    request = build_request(_NOW, symbols, "coinbase", DAYS, _NOW.isoformat())
    routes = route_markets(symbols, ["coinbase"], os.environ)
    for _ in BarStream(database.engine, Run(uuid4(), "manual", _NOW, request), routes):
        pass


def _ask(address: str, symbols: list[str]) -> None:
    """Get as many answers of the same size, and parse them."""
    start, end = (int((_NOW - timedelta(days=days)).timestamp()) for days in (DAYS + 6, 0))

    def get(question: tuple[str, int]) -> object:
        symbol, step = question
        query = {"granularity": step, "start": start, "end": end}
        return client.get(f"{address}/products/{symbol}/candles", params=query).json()

    questions = [(symbol, step) for symbol in symbols for step in (3_600, 86_400)]
    with httpx.Client() as client, ThreadPoolExecutor(read_fetch_workers()) as pool:
        list(pool.map(get, questions))


def _forget(database: Database) -> None:
    database.execute(
        "TRUNCATE market_data.market, market_data.ingestion_run, market_data.dataset_version "
        "RESTART IDENTITY CASCADE"
    )


MEASUREMENT = Measurement("asking a slow server", ("fetch_vs_bare_client",), measure_fetching)
