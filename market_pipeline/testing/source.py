"""A source of data for tests: a made-up market, and a local server that speaks for it.

Here: a market whose price is a function of time, and HTTP. Not here: any service's own wire format,
which the author of a provider writes, and the tests (``contract.py``).
"""

import json
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from market_pipeline.domain.grids import find_grid, from_micros
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.records import Window


@dataclass(frozen=True, slots=True)
class Candle:
    """A bar of the made-up market.

    Attributes:
        open_time: Its key: the hour, or the session date at 00:00 UTC.
        begins_at: When trading in it begins. close_time: When it ends (UTC).
        open: Prices to the cent. volume: In coins or shares.
    """

    open_time: datetime
    begins_at: datetime
    close_time: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float
    trades: int


@dataclass
class World:
    """A market as it is at a moment.

    Attributes:
        now: The moment; nothing later is known.
        begins_at: The first moment of its history.
        calendar: ``24/7``, or an exchange calendar.
        halted: The span in which nothing is traded, by open_time.
        factor: All prices are multiplied by it: another one is a restated history.
    """

    now: datetime
    begins_at: datetime
    calendar: str = ALWAYS_OPEN
    halted: Window | None = None
    factor: float = 1.0

    def price_at(self, moment: datetime) -> float:
        """Return the price of a moment, to the cent."""
        hours = moment.timestamp() / 3600
        price = 100 + 20 * math.sin(hours / 9) + 10 * math.sin(hours / 700)
        return round(price * self.factor, 2)

    def list_candles(self, interval: Interval) -> list[Candle]:
        """Return the candles that have begun and were traded in, oldest first."""
        window = Window(self.begins_at, self.now)
        grid = find_grid(self.calendar, interval, window).cut(window)
        spans = zip(grid.opens, grid.begins, grid.closes, strict=True)
        moments = [tuple(map(from_micros, span)) for span in spans]
        return [
            self._build_candle(*span)
            for span in moments
            if span[1] <= self.now and not self._is_halted(span[0])
        ]

    def _is_halted(self, moment: datetime) -> bool:
        return self.halted is not None and self.halted.start <= moment < self.halted.end

    def _build_candle(self, open_time: datetime, begins_at: datetime, ends_at: datetime) -> Candle:
        first, last = self.price_at(begins_at), self.price_at(min(ends_at, self.now))
        high, low = round(max(first, last) * 1.01, 2), round(min(first, last) * 0.99, 2)
        number = int(begins_at.timestamp()) // 3600 % 97
        prices = (first, high, low, last)
        return Candle(
            open_time, begins_at, ends_at, *prices, volume=10.5 + number, trades=1 + number
        )


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A request as a server sees it: the path decoded, of each parameter the last value."""

    path: str
    query: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class WireReply:
    """An answer."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def reply_json(value: object, status: int = 200) -> WireReply:
    """Return an answer in JSON."""
    return WireReply(json.dumps(value).encode(), status)


@dataclass
class LocalSource:
    """A server on 127.0.0.1, running from ``with`` to its end.

    Args:
        answer: Returns the right answer to a request.

    Attributes:
        requests: What was asked, in order.
        fault: Replaces every answer, while it is set.
        is_cut: Promises whole answers and sends half of them.
    """

    answer: Callable[[WireRequest], WireReply]
    requests: list[WireRequest] = field(default_factory=list)
    fault: WireReply | None = None
    is_cut: bool = False

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        serve = self._server.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop; may be done again."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        """``http://127.0.0.1:<port>``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: LocalSource


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Else a body waits 40 ms for its headers to be acknowledged.
    server: _Server

    def do_GET(self) -> None:
        owner, parts = self.server.owner, urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        request = WireRequest(unquote(parts.path), query)
        owner.requests.append(request)
        with suppress(ConnectionError):
            self._send(owner.fault or owner.answer(request), is_cut=owner.is_cut)

    def _send(self, reply: WireReply, *, is_cut: bool) -> None:
        self.send_response(reply.status)
        length = {"Content-Type": reply.content_type, "Content-Length": str(len(reply.body))}
        for name, value in {**length, **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body[: len(reply.body) // 2] if is_cut else reply.body)
        self.close_connection = self.close_connection or is_cut

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Keep quiet; what was asked is in ``LocalSource.requests``."""


LONGEST = timedelta(days=400)
"""The history that a test asks for at most."""
