"""A local exchange in the place of Coinbase: any number of markets, and a gate for answers."""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

NOW = datetime(2026, 3, 2, 0, 20, tzinfo=UTC)
"""Nothing later is known, so that any two runs get the same answers."""


@dataclass
class Exchange:
    """What it is asked, and when it lets answers go.

    Attributes:
        address: Where it listens. asked: The products that were asked for, in order.
        most: How many answers go before the gate holds the others; None: all of them.
    """

    address: str = ""
    asked: list[str] = field(default_factory=list)
    most: int | None = None
    _open: Event = field(default_factory=Event)
    _lock: Lock = field(default_factory=Lock)

    def hold_after(self, answers: int) -> None:
        """Hold every answer after so many more."""
        with self._lock:
            self._open.clear()
            self.most = len(self.asked) + answers

    def release(self) -> None:
        """Let all answers go."""
        self.most = None
        self._open.set()

    def wait_for_turn(self, product: str) -> None:
        """Note a question, and return when it may be answered."""
        with self._lock:
            self.asked.append(product)
            is_held = self.most is not None and len(self.asked) > self.most
        if is_held:
            self._open.wait()


def build_candles(product: str, query: dict[str, int]) -> list[list[float]]:
    """Return candles, newest first; a market's price is its own, and changes with each bar."""
    step, price = query["granularity"], 50 + zlib.crc32(product.encode()) % 900
    last = min(query["end"], int(NOW.timestamp()))
    opens = range(last // step * step, query["start"] - 1, -step)
    return [_build_candle(at, price, at // step % 7) for at in opens]


def _build_candle(at: int, price: int, change: int) -> list[float]:
    first, last = price + change, price + (change + 1) % 7
    return [at, min(first, last) - 1, max(first, last) + 1, first, last, 1.5 + change]


@contextmanager
def serve_exchange() -> Iterator[Exchange]:
    """Serve it on loopback until the block ends."""
    exchange = Exchange()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Else a body waits 40 ms for its headers to be acknowledged.
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            _, _, product, kind = url.path.split("/")
            query = {name: int(values[0]) for name, values in parse_qs(url.query).items()}
            exchange.wait_for_turn(product)
            self._answer(build_candles(product, query) if kind == "candles" else _build_ticker())

        def _answer(self, told: Any) -> None:
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    exchange.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    exchange.release()
    try:
        yield exchange
    finally:
        exchange.release()
        server.shutdown()


def _build_ticker() -> dict[str, str]:
    return {"price": "100.5", "time": NOW.isoformat().replace("+00:00", "Z")}
