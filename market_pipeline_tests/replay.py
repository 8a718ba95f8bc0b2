"""A local provider: replays recorded answers of CoinGecko and Yahoo, and misbehaves on command.

``python -m market_pipeline_tests.replay --port 8900`` serves ``/coingecko``, ``/yahoo`` and, from
the series alone, ``/coinbase``; point COINGECKO_BASE_URL, YAHOO_BASE_URL and COINBASE_BASE_URL
there. Where a recording covers the question its rows are answered (``recordings/PROVENANCE.tsv``
says where each comes from):

* ``coins/markets``: the 100 coins recorded in January 2024;
* ``coins/bitcoin/market_chart/range``: daily points from 2014-02-17 to 2015-01-30;
* ``chart/AAPL``, ``MSFT``, ``TSLA``: the recorded daily rows of each.

Beyond that, bodies in the recorded shape are built from ``recordings/series``: daily points and
rows of bitcoin (2009 to 2026) and of the S&P 500 (1999 to 2018). Hourly bodies are made up: a path
from each day's open over its extremes to its close. ``now``, if given, hides what came later.
"""

import argparse
import csv
import gzip
import json
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from market_pipeline.domain.sessions import read_sessions

RECORDINGS = Path(__file__).parent / "recordings"
DAY_SECONDS = 86_400
JSON = "application/json; charset=utf-8"


def read_recording(name: str) -> bytes:
    """Return a recorded body, for example ``yahoo/chart_inrx_with_null.json``."""
    return (RECORDINGS / name).read_bytes()


def load_recording(name: str) -> Any:
    """Return a recorded body, parsed."""
    return json.loads(read_recording(name))


# What is answered


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, before it is put on the wire."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def make_json_reply(body: object, status: int = 200) -> Reply:
    """Return a JSON answer in compact form."""
    return Reply(json.dumps(body, separators=(",", ":")).encode(), status)


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request as it arrived: the path still percent-encoded."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """A daily bar of a series; ``start`` is its date at 00:00 UTC in epoch seconds."""

    start: int
    open: float
    high: float
    low: float
    close: float
    volume: float

    def list_path(self, count: int) -> list[float]:
        """Return ``count + 1`` prices from open over both extremes to close."""
        inner = [self.low, self.high] if self.close >= self.open else [self.high, self.low]
        corners = [self.open, *inner, self.close]
        return [_interpolate(corners, 3 * step / count) for step in range(count + 1)]


def _interpolate(corners: list[float], position: float) -> float:
    low = min(int(position), len(corners) - 2)
    return corners[low] + (corners[low + 1] - corners[low]) * (position - low)


@cache
def load_series(name: str) -> tuple[Row, ...]:
    """Return the rows of ``recordings/series/<name>.csv``, oldest first."""
    with (RECORDINGS / "series" / f"{name}.csv").open() as file:
        return tuple(_parse_row(record) for record in csv.DictReader(file))


def _parse_row(record: Mapping[str, str]) -> Row:
    cells = {key.lower(): value for key, value in record.items()}
    moment = datetime.strptime(
        cells["date"], "%m/%d/%Y" if "/" in cells["date"] else "%Y-%m-%d"
    ).replace(tzinfo=UTC)
    prices = (float(cells[name]) for name in ("open", "high", "low", "close", "volume"))
    return Row(int(moment.timestamp()), *prices)


# CoinGecko

COIN_SERIES = {"bitcoin": "BTC-USD"}


def answer_coingecko(path: str, query: Mapping[str, str], now: datetime | None) -> Reply:
    """Return the answer to a path under ``/coingecko``."""
    if path == "/ping":
        return Reply(read_recording("coingecko/ping_pro_200.json"))
    if path == "/key":
        return Reply(read_recording("coingecko/key_usage_pro_2024.json"))
    if path == "/coins/markets":
        return _answer_coins(query, now)
    parts = path.strip("/").split("/")
    if parts[0] == "coins" and parts[2:] == ["market_chart", "range"]:
        return _answer_chart(unquote(parts[1]), query, now)
    return make_json_reply({"error": "Incorrect path. Please check the documentation."}, 404)


def _answer_coins(query: Mapping[str, str], now: datetime | None) -> Reply:
    rows = load_recording("coingecko/coins_markets_top100_usd_2024.json")
    if "ids" in query:
        wanted = query["ids"].split(",")
        rows = [row for row in rows if row["id"] in wanted]
    size, page = int(query.get("per_page", 100)), int(query.get("page", 1))
    rows = [_move_coin(row, now) for row in rows[size * (page - 1) : size * page]]
    return make_json_reply(rows)


def _move_coin(row: dict[str, Any], now: datetime | None) -> dict[str, Any]:
    """Return a coin as of ``now`` where there is a series for it."""
    points = list_daily_points(row["id"], now) if now and row["id"] in COIN_SERIES else []
    if now is None or not points:
        return row
    stamp = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return row | {"current_price": points[-1][1], "last_updated": stamp}


def list_daily_points(coin: str, now: datetime | None) -> list[tuple[int, float, float]]:
    """Return (milliseconds, price, 24 h volume) of each midnight: recorded, else a day's close."""
    recorded = load_recording("coingecko/market_chart_range_btc_daily_2014.json")
    pairs = zip(recorded["prices"], recorded["total_volumes"], strict=True)
    points = {ms: (ms, price, volume) for (ms, price), (_, volume) in pairs}
    first, last = min(points), max(points)
    for row in load_series(COIN_SERIES[coin]):
        stamp = (row.start + DAY_SECONDS) * 1000
        if not first <= stamp <= last:
            points[stamp] = (stamp, row.close, row.volume * row.close)
    end = now.timestamp() * 1000 if now else float("inf")
    return [points[stamp] for stamp in sorted(points) if stamp <= end]


def _list_hourly_points(coin: str) -> Iterable[tuple[int, float, float]]:
    for row in load_series(COIN_SERIES[coin]):
        for hour, price in enumerate(row.list_path(24)[1:]):
            stamp = row.start + (hour + 1) * 3600 + 40 + 9 * hour  # a little after the full hour
            yield stamp * 1000, price, row.volume * row.close


def _answer_chart(coin: str, query: Mapping[str, str], now: datetime | None) -> Reply:
    known = {row["id"] for row in load_recording("coingecko/coins_markets_top100_usd_2024.json")}
    if coin not in known:
        return make_json_reply({"error": "Could not find coin with the given id"}, 404)
    start, end = int(query["from"]) * 1000, int(query["to"]) * 1000
    is_daily = query.get("interval") == "daily" or end - start > 90 * DAY_SECONDS * 1000
    points: Iterable[tuple[int, float, float]] = ()
    if coin in COIN_SERIES:
        points = list_daily_points(coin, now) if is_daily else _list_hourly_points(coin)
    limit = min(end, now.timestamp() * 1000) if now else end
    inside = [point for point in points if start <= point[0] <= limit]
    if now and is_daily and inside and start <= now.timestamp() * 1000 <= end:
        inside.append((int(now.timestamp() * 1000), *inside[-1][1:]))  # the last point is "now"
    return make_json_reply(
        {
            "prices": [[ms, price] for ms, price, _ in inside],
            "market_caps": [[ms, None] for ms, _, _ in inside],
            "total_volumes": [[ms, volume] for ms, _, volume in inside],
        }
    )


# Coinbase Exchange


def answer_coinbase(path: str, query: Mapping[str, str], now: datetime | None) -> Reply:
    """Return the answer to a path under ``/coinbase``: candles and price of bitcoin."""
    clock = now.timestamp() if now else math.inf
    rows = [row for row in load_series("BTC-USD") if row.start <= clock]
    if path == "/products/BTC-USD/ticker":
        time = (now or datetime.now(UTC)).astimezone(UTC).isoformat().replace("+00:00", "Z")
        return make_json_reply({"price": str(rows[-1].close), "time": time})
    if path != "/products/BTC-USD/candles":
        return Reply(read_recording("coinbase/error_not_found_404.json"), 404)
    step, start, end = (int(query[name]) for name in ("granularity", "start", "end"))
    if (end - start) // step >= 300:
        return Reply(read_recording("coinbase/error_too_many_aggregations_400.json"), 400)
    candles = (one for row in rows for one in _list_candles(row, step))
    return make_json_reply([one for one in candles if start <= one[0] <= min(end, clock)][::-1])


def _list_candles(row: Row, step: int) -> Iterable[list[float]]:
    """Yield time, low, high, open, close and volume of the candles of a day."""
    if step == DAY_SECONDS:
        return [[row.start, row.low, row.high, row.open, row.close, row.volume]]
    path = [round(price, 2) for price in row.list_path(24)]
    return [
        [
            row.start + hour * step,
            *sorted(path[hour : hour + 2]),
            *path[hour : hour + 2],
            row.volume,
        ]
        for hour in range(24)
    ]


# Yahoo

CHARTS = {
    "AAPL": "yahoo/yfrs_chart_aapl.json",
    "MSFT": "yahoo/chart_msft_1y_dividends_2021.json",
    "TSLA": "yahoo/chart_tsla_recent_2021.json",
}
BUILT_CHARTS = {"^GSPC": ("SPX", "XNYS"), "BTC-USD": ("BTC-USD", "24/7")}
QUOTE_FIELDS = ("open", "high", "low", "close", "volume")
ChartRow = tuple[int, dict[str, float | None]]


def answer_yahoo(path: str, query: Mapping[str, str], now: datetime | None) -> Reply:
    """Return the answer to a path under ``/yahoo``."""
    symbol = unquote(path.rpartition("/")[2])
    if not path.startswith("/v8/finance/chart/"):
        return Reply(read_recording("yahoo/error_missing_query_400.json"), 400)
    if symbol in CHARTS:
        meta, rows = _load_chart(CHARTS[symbol])
    elif symbol in BUILT_CHARTS:
        since = int(query.get("period1", -1e10))
        rows = list_chart_rows(symbol, query.get("interval", "1d"), now, since)
        meta = _build_meta(symbol)
    else:
        return make_json_reply(
            build_chart_error("Not Found", "No data found, symbol may be delisted"), 404
        )
    return make_json_reply(_build_chart(meta, rows, query, now))


def build_chart_error(code: str, description: str) -> dict[str, Any]:
    """Return the body in which the chart API reports an error."""
    return {"chart": {"result": None, "error": {"code": code, "description": description}}}


def _load_chart(name: str) -> tuple[dict[str, Any], list[ChartRow]]:
    result = load_recording(name)["chart"]["result"][0]
    columns = result["indicators"]["quote"][0]
    values = zip(*(columns[name] for name in QUOTE_FIELDS), strict=True)
    rows = [
        (stamp, dict(zip(QUOTE_FIELDS, row, strict=True)))
        for stamp, row in zip(result["timestamp"], values, strict=True)
    ]
    return result["meta"], rows


def _build_meta(symbol: str) -> dict[str, Any]:
    if symbol == "BTC-USD":
        body = load_recording("yahoo/chart_btcusd_1d_2020-01-01_03.json")
        return dict(body["chart"]["result"][0]["meta"])
    meta, _ = _load_chart(CHARTS["AAPL"])
    names = {"longName": "S&P 500", "shortName": "S&P 500", "exchangeName": "SNP"}
    return meta | names | {"symbol": symbol, "fullExchangeName": "SNP", "instrumentType": "INDEX"}


@cache
def _load_sessions(series: str, calendar: str) -> dict[int, tuple[int, int]]:
    """Return each date's open and close in epoch seconds."""
    rows = load_series(series)
    first, last = (datetime.fromtimestamp(rows[i].start, UTC) for i in (0, -1))
    frame = read_sessions(calendar, first, last + timedelta(days=1))
    columns = (frame[name].astype("int64") // 1_000_000 for name in frame.columns)
    return {date: (opens, closes) for date, opens, closes in zip(*columns, strict=True)}


def list_chart_rows(
    symbol: str, interval: str, now: datetime | None, since: float = -math.inf
) -> list[ChartRow]:
    """Return the rows of a built chart; a session running at ``now`` comes last, stamped so.

    Days that end before ``since`` (epoch seconds) are left out: hours of all would take a second.
    """
    series, calendar = BUILT_CHARTS[symbol]
    sessions = _load_sessions(series, calendar)
    clock = int(now.timestamp()) if now else None
    rows: list[ChartRow] = []
    for row in load_series(series):
        if row.start + 2 * DAY_SECONDS < since:
            continue
        opens, closes = sessions.get(row.start, (row.start, row.start + DAY_SECONDS))
        if clock is not None and opens >= clock:
            break
        rows += _list_session_rows(row, opens, closes, interval, clock)
    return rows


def _list_session_rows(
    row: Row, opens: int, closes: int, interval: str, clock: int | None
) -> list[ChartRow]:
    is_running = clock is not None and clock < closes
    if interval == "1d":
        prices = {name: getattr(row, name) for name in QUOTE_FIELDS}
        return [(clock if is_running and clock else opens, prices)]
    count = -(-(closes - opens) // 3600)
    path = row.list_path(count)
    hours = [(opens + hour * 3600, path[hour], path[hour + 1]) for hour in range(count)]
    return [
        (stamp, _build_bar(a, b, row.volume / count))
        for stamp, a, b in hours
        if clock is None or stamp < clock
    ]


def _build_bar(first: float, last: float, volume: float) -> dict[str, float | None]:
    high, low = max(first, last), min(first, last)
    return {"open": first, "high": high, "low": low, "close": last, "volume": volume}


def _find_last_trade(symbol: str, stamp: int, now: datetime | None) -> int:
    """Return the close of a row's session, or the clock while it runs."""
    closes = _load_sessions(*BUILT_CHARTS[symbol])[stamp // DAY_SECONDS * DAY_SECONDS][1]
    return closes if now is None else min(closes, int(now.timestamp()))


def _build_chart(
    meta: dict[str, Any], rows: list[ChartRow], query: Mapping[str, str], now: datetime | None
) -> dict[str, Any]:
    start, end = int(query.get("period1", -1e10)), int(query.get("period2", 1e10))
    latest = rows[-1:]
    inside = [row for row in rows if start <= row[0] < end] if "period1" in query else latest
    meta = meta | {"dataGranularity": query.get("interval", "1d"), "range": query.get("range", "")}
    if latest and meta["symbol"] in BUILT_CHARTS:
        meta |= {"regularMarketPrice": latest[0][1]["close"]}
        meta |= {"regularMarketTime": _find_last_trade(meta["symbol"], latest[0][0], now)}
    result: dict[str, Any] = {"meta": meta, "indicators": {"quote": [{}]}}
    if inside:
        columns = {name: [prices[name] for _, prices in inside] for name in QUOTE_FIELDS}
        columns |= {name: list(map(_send_float32, columns[name])) for name in QUOTE_FIELDS[:4]}
        result["timestamp"] = [stamp for stamp, _ in inside]
        result["indicators"] = {
            "quote": [columns],
            "adjclose": [{"adjclose": columns["close"]}],
        }
    return {"chart": {"result": [result], "error": None}}


def _send_float32(value: float | None) -> float | None:
    """Return a number as Yahoo sends it; what was recorded so stays as it is."""
    return None if value is None else float(struct.unpack("f", struct.pack("f", value))[0])


# How the wire misbehaves

Fault = Callable[["_Handler", Reply], None]


def answer_with(
    body: bytes = b"",
    status: int = 200,
    content_type: str = JSON,
    headers: Mapping[str, str] | None = None,
) -> Fault:
    """Answer something else."""
    reply = Reply(body, status, content_type, headers or {})
    return lambda handler, _: handler.send(reply)


def throttle(retry_after: str | None) -> Fault:
    """Answer 429 as CoinGecko was recorded to, with a ``Retry-After`` of one's choice."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return answer_with(read_recording("coingecko/rate_limited_429.json"), 429, headers=headers)


def edit_json(change: Callable[[Any], Any]) -> Fault:
    """Answer with the right body after a change to its parsed form."""

    def fault(handler: "_Handler", reply: Reply) -> None:
        body = json.dumps(change(json.loads(reply.body))).encode()
        handler.send(replace(reply, body=body))

    return fault


def cut_gzip(missing_bytes: int) -> Fault:
    """Answer gzip without its last bytes, under a Content-Length that fits; 8 bytes are the CRC."""

    def fault(handler: "_Handler", reply: Reply) -> None:
        handler.send_head(
            reply, {"Content-Encoding": "gzip"}, gzip.compress(reply.body)[:-missing_bytes]
        )

    return fault


def send_gzip(body: bytes) -> Fault:
    """Answer bytes as they are, declared to be gzip."""
    return lambda handler, reply: handler.send_head(reply, {"Content-Encoding": "gzip"}, body)


def shorten_body() -> Fault:
    """Promise the whole body and close after half of it."""

    def fault(handler: "_Handler", reply: Reply) -> None:
        handler.begin(reply, {"Content-Length": str(len(reply.body))})
        handler.wfile.write(reply.body[: len(reply.body) // 2])
        handler.close_connection = True

    return fault


def leave_unframed() -> Fault:
    """Answer without any length, the end of the connection being the end of the body."""

    def fault(handler: "_Handler", reply: Reply) -> None:
        handler.begin(reply, {"Connection": "close"})
        handler.wfile.write(reply.body)
        handler.close_connection = True

    return fault


def reset_connection(after_bytes: int = 0) -> Fault:
    """Reset the connection (RST), before the answer or inside its body."""

    def fault(handler: "_Handler", reply: Reply) -> None:
        if after_bytes:
            handler.begin(reply, {"Content-Length": str(len(reply.body))})
            handler.wfile.write(reply.body[:after_bytes])
            handler.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.close_connection = True

    return fault


def drip(seconds_per_byte: float, *, in_headers: bool) -> Fault:
    """Send headers or body one byte at a time (slow loris)."""

    def fault(handler: "_Handler", reply: Reply) -> None:
        if in_headers:
            slow = b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 10_000
        else:
            handler.begin(reply, {"Content-Length": str(len(reply.body))})
            handler.wfile.flush()
            slow = reply.body
        handler.drip(slow, seconds_per_byte)

    return fault


def speak_http_1_0() -> Fault:
    """Answer in HTTP/1.0, with a length, and close."""

    def fault(handler: "_Handler", reply: Reply) -> None:
        head = (
            f"HTTP/1.0 200 OK\r\nContent-Type: {JSON}\r\nContent-Length: {len(reply.body)}\r\n\r\n"
        )
        handler.wfile.write(head.encode() + reply.body)
        handler.close_connection = True

    return fault


def send_chunked(*, with_interim: bool = True) -> Fault:
    """Answer in chunks with a trailer, after a 103 interim answer."""

    def fault(handler: "_Handler", reply: Reply) -> None:
        if with_interim:
            handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n")
        handler.begin(reply, {"Transfer-Encoding": "chunked", "Trailer": "X-Sum"})
        for start in range(0, len(reply.body), 1000):
            chunk = reply.body[start : start + 1000]
            handler.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        handler.wfile.write(b"0\r\nX-Sum: 1\r\n\r\n")

    return fault


def close_after_answer() -> Fault:
    """Answer properly, then close a connection that was said to stay open."""

    def fault(handler: "_Handler", reply: Reply) -> None:
        handler.send(reply)
        handler.close_connection = True

    return fault


# The server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Else a body waits 40 ms for its headers to be acknowledged.
    server: "_Server"

    def do_GET(self) -> None:
        owner = self.server.owner
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = owner.take_fault(SeenRequest(parts.path, query, headers))
        reply = owner.answer(parts.path, query)
        with suppress(ConnectionError):
            (fault or _Handler.send)(self, reply)

    def send(self, reply: Reply) -> None:
        """Answer as a well-behaved server does, gzip where the client takes it."""
        if "gzip" in self.headers.get("Accept-Encoding", "") and reply.body:
            self.send_head(reply, {"Content-Encoding": "gzip"}, gzip.compress(reply.body, 1))
        else:
            self.send_head(reply, {}, reply.body)

    def send_head(self, reply: Reply, headers: Mapping[str, str], body: bytes) -> None:
        self.begin(reply, {**headers, "Content-Length": str(len(body))})
        self.wfile.write(body)

    def begin(self, reply: Reply, headers: Mapping[str, str]) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Type": reply.content_type, **reply.headers, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def drip(self, data: bytes, seconds_per_byte: float) -> None:
        self.close_connection = True
        for byte in data:
            if self.server.owner.stopping.wait(seconds_per_byte):
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Keep quiet; what was asked is in ``ReplayServer.requests``."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: "ReplayServer"

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: clients that hang up are what the tests are about."""


@dataclass
class ReplayServer:
    """The server, running from ``with`` to its end.

    Attributes:
        port: Where it listens on 127.0.0.1; 0 takes a free one.
        now: Hides what came after this moment; None shows everything.
        requests: What was asked, in order.
    """

    port: int = 0
    now: datetime | None = None
    requests: list[SeenRequest] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    _faults: list[tuple[str, Fault]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: _Server | None = None

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.owner = self
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stopping.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    @property
    def address(self) -> str:
        """``http://127.0.0.1:<port>``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """The variables that point the providers here, CoinGecko on the plan with full history."""
        return {
            "COINGECKO_BASE_URL": f"{self.address}/coingecko",
            "YAHOO_BASE_URL": f"{self.address}/yahoo",
            "COINGECKO_PLAN": "pro",
            "COINBASE_BASE_URL": f"{self.address}/coinbase",
            "KRAKEN_BASE_URL": f"{self.address}/kraken",
            "BINANCE_BASE_URL": f"{self.address}/binance",
            "FRED_BASE_URL": f"{self.address}/fred",
        }

    def misbehave(self, fault: Fault, *, times: int = 1, path: str = "/") -> None:
        """Apply a fault to the next requests whose path begins so; faults queue up."""
        with self._lock:
            self._faults += [(path, fault)] * times

    def take_fault(self, request: SeenRequest) -> Fault | None:
        """Note a request, and return the fault that waits for it."""
        with self._lock:
            self.requests.append(request)
            for position, (path, fault) in enumerate(self._faults):
                if request.path.startswith(path):
                    del self._faults[position]
                    return fault
        return None

    def answer(self, path: str, query: Mapping[str, str]) -> Reply:
        """Return the right answer."""
        routes = {
            "/coingecko": answer_coingecko,
            "/coinbase": answer_coinbase,
            "/yahoo": answer_yahoo,
        }
        for prefix, answer in routes.items():
            if path.startswith(f"{prefix}/"):
                return answer(path.removeprefix(prefix), query, self.now)
        return make_json_reply({"error": "not found"}, 404)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=8900)
    parser.add_argument("--now", type=datetime.fromisoformat, help="hide what came later")
    options = parser.parse_args()
    now = options.now.replace(tzinfo=options.now.tzinfo or UTC) if options.now else None
    with ReplayServer(options.port, now) as server, suppress(KeyboardInterrupt):
        lines = [f"{name}={value}" for name, value in server.environ.items()]
        print(*lines, sep="\n", flush=True)  # noqa: T201 - the command's output
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
