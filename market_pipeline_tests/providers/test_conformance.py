"""The conformance suite, run on every provider of this package."""

import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from market_pipeline.domain.intervals import Interval
from market_pipeline.providers.base import Provider
from market_pipeline.providers.binance import BinanceProvider
from market_pipeline.providers.coinbase import CoinbaseProvider
from market_pipeline.providers.coingecko import CoinGeckoProvider
from market_pipeline.providers.file import FileProvider
from market_pipeline.providers.fred import FredProvider
from market_pipeline.providers.http import Clocks
from market_pipeline.providers.kraken import KrakenProvider
from market_pipeline.providers.mock import MockProvider
from market_pipeline.providers.yahoo import YahooProvider
from market_pipeline.testing import (
    Candle,
    HttpProviderContract,
    ProviderContract,
    WireReply,
    WireRequest,
    World,
    reply_json,
)

INTERVALS = {
    "3600": Interval.HOUR,
    "86400": Interval.DAY,
    "60": Interval.HOUR,
    "1440": Interval.DAY,
}


def seconds(moment: datetime) -> int:
    """Return epoch seconds."""
    return int(moment.timestamp())


class TestMock(ProviderContract):
    """The provider that makes its prices up."""

    now: ClassVar[datetime] = datetime(2024, 6, 12, 17, 20, tzinfo=UTC)

    def make_provider(self) -> Provider:
        """Return it without faults."""
        return MockProvider({})


class TestFile(ProviderContract):
    """The provider that reads files: days of the made-up market."""

    @pytest.fixture
    def _prepare(self, tmp_path: Path) -> None:
        world = World(self.now, begins_at=self.now - timedelta(days=90))
        rows = [
            f"{one.open_time:%Y-%m-%d},{one.open},{one.high},{one.low},{one.close},{one.volume}"
            for one in world.list_candles(Interval.DAY)
        ]
        text = "\n".join(["open_time,open,high,low,close,volume", *rows])
        (tmp_path / f"{self.symbol}.csv").write_text(text)
        self.folder = tmp_path

    def make_provider(self) -> Provider:
        """Return a provider of the folder."""
        return FileProvider({"FILE_PROVIDER_PATH": str(self.folder)})


class TestCoinbase(HttpProviderContract):
    """Coinbase Exchange."""

    def connect(self, address: str, clocks: Clocks) -> Provider:
        """Return the provider of an address."""
        return CoinbaseProvider({"COINBASE_BASE_URL": address}, clocks=clocks)

    def answer(self, request: WireRequest, world: World) -> WireReply:
        """Answer candles newest first, both ends included, or a ticker."""
        if request.path == "/products/BTC-USD/ticker":
            time = world.now.isoformat().replace("+00:00", "Z")
            return reply_json({"price": f"{world.price_at(world.now):.8f}", "time": time})
        step, start, end = (int(request.query[name]) for name in ("granularity", "start", "end"))
        if (end - start) // step >= 300:
            return reply_json({"message": "Count of aggregations requested exceeds 300"}, 400)
        rows = [
            [seconds(one.open_time), one.low, one.high, one.open, one.close, one.volume]
            for one in world.list_candles(INTERVALS[str(step)])
            if start <= seconds(one.open_time) <= end
        ]
        return reply_json(rows[::-1])


class TestKraken(HttpProviderContract):
    """Kraken."""

    def connect(self, address: str, clocks: Clocks) -> Provider:
        """Return the provider of an address."""
        return KrakenProvider({"KRAKEN_BASE_URL": address}, clocks=clocks)

    def answer(self, request: WireRequest, world: World) -> WireReply:
        """Answer the newest 720 candles since a moment, or a ticker, under the long name."""
        if request.path == "/0/public/Ticker":
            price = [str(world.price_at(world.now)), "1.0"]
            return self.wrap({"c": price, "v": price, "p": price})
        since = int(request.query["since"])
        rows = [
            [seconds(one.open_time), *map(str, self.list_cells(one)), one.trades]
            for one in world.list_candles(INTERVALS[request.query["interval"]])[-720:]
            if seconds(one.open_time) > since
        ]
        return self.wrap(rows)

    def list_cells(self, one: Candle) -> list[float]:
        """Return prices, average price and volume."""
        return [one.open, one.high, one.low, one.close, one.close, one.volume]

    def wrap(self, node: Any) -> WireReply:
        """Return a result."""
        return reply_json({"error": [], "result": {"XXBTZUSD": node, "last": 1}})

    def answer_unknown(self, request: WireRequest) -> WireReply:
        """Answer an error with HTTP 200."""
        del request
        return reply_json({"error": ["EQuery:Unknown asset pair"]})


class TestBinance(HttpProviderContract):
    """Binance."""

    symbol: ClassVar[str] = "BTC-USDT"

    def connect(self, address: str, clocks: Clocks) -> Provider:
        """Return the provider of an address."""
        return BinanceProvider({"BINANCE_BASE_URL": address}, clocks=clocks)

    def answer(self, request: WireRequest, world: World) -> WireReply:
        """Answer klines, cut after 1,000, or tickers."""
        if request.path == "/api/v3/ticker/24hr":
            price = str(world.price_at(world.now))
            row = {"lastPrice": price, "quoteVolume": "1.5", "priceChangePercent": "-2.4"}
            names = json.loads(request.query["symbols"])
            stamp = {"closeTime": seconds(world.now) * 1000}
            return reply_json([{"symbol": name, **row, **stamp} for name in names])
        start, end = (int(request.query[name]) for name in ("startTime", "endTime"))
        candles = world.list_candles(Interval(request.query["interval"]))
        inside = [one for one in candles if start <= seconds(one.open_time) * 1000 <= end]
        return reply_json([self.list_cells(one) for one in inside[: int(request.query["limit"])]])

    def list_cells(self, one: Candle) -> list[Any]:
        """Return the twelve cells of a kline."""
        opens, closes = seconds(one.open_time) * 1000, seconds(one.close_time) * 1000 - 1
        numbers = map(str, (one.open, one.high, one.low, one.close, one.volume))
        return [opens, *numbers, closes, "1.0", one.trades, "1.0", "1.0", "0"]

    def answer_unknown(self, request: WireRequest) -> WireReply:
        """Answer the code of an unknown symbol."""
        del request
        return reply_json({"code": -1121, "msg": "Invalid symbol."}, 400)


class TestFred(HttpProviderContract):
    """FRED: closes of sessions."""

    symbol: ClassVar[str] = "SPX"
    exact: ClassVar[list[str]] = ["close"]

    def connect(self, address: str, clocks: Clocks) -> Provider:
        """Return the provider of an address."""
        return FredProvider({"FRED_BASE_URL": address}, clocks=clocks)

    def answer(self, request: WireRequest, world: World) -> WireReply:
        """Answer the dates of a span, each with a close when its session is over."""
        first, last = request.query["cosd"], request.query["coed"]
        rows = [
            f"{one.open_time:%Y-%m-%d},{one.close}"
            for one in world.list_candles(Interval.DAY)
            if first <= f"{one.open_time:%Y-%m-%d}" <= last and one.close_time <= world.now
        ]
        text = "\n".join(["observation_date,SP500", *rows, "2024-06-19,"])
        return WireReply(f"{text}\n".encode(), content_type="text/csv")


class TestCoinGecko(HttpProviderContract):
    """CoinGecko: bars made of price points."""

    exact: ClassVar[list[str]] = ["open", "close"]

    def connect(self, address: str, clocks: Clocks) -> Provider:
        """Return the provider of an address, on the plan with full history."""
        environ = {"COINGECKO_BASE_URL": address, "COINGECKO_PLAN": "pro"}
        return CoinGeckoProvider(environ, clocks=clocks)

    def answer(self, request: WireRequest, world: World) -> WireReply:
        """Answer the prices at the bounds of candles and that of now, or a page of coins."""
        if request.path == "/coins/markets":
            return reply_json([self.build_coin(world)])
        start, end = (int(request.query[name]) for name in ("from", "to"))
        interval = Interval.DAY if "interval" in request.query else Interval.HOUR
        candles = world.list_candles(interval)
        moments = {one.open_time for one in candles} | {
            min(one.close_time, world.now) for one in candles
        }
        points = [
            [seconds(moment) * 1000, world.price_at(moment)]
            for moment in sorted(moments)
            if start <= seconds(moment) <= end
        ]
        return reply_json({"prices": points, "total_volumes": points})

    def build_coin(self, world: World) -> dict[str, Any]:
        """Return a coin of the page of coins."""
        names = ("price_change_percentage_24h", "total_volume", "market_cap")
        return {
            "id": "bitcoin",
            "current_price": world.price_at(world.now),
            "last_updated": world.now.isoformat(),
            **dict.fromkeys(names, 1.0),
        }


class TestYahoo(HttpProviderContract):
    """Yahoo: an index with sessions."""

    symbol: ClassVar[str] = "SPX"
    zone: ClassVar[str] = "America/New_York"

    def connect(self, address: str, clocks: Clocks) -> Provider:
        """Return the provider of an address."""
        return YahooProvider({"YAHOO_BASE_URL": address}, clocks=clocks)

    def answer(self, request: WireRequest, world: World) -> WireReply:
        """Answer a chart of float32 prices, the running day stamped with the clock."""
        interval = request.query["interval"]
        start, end = (int(request.query.get(name, 0)) for name in ("period1", "period2"))
        candles = {
            self.find_stamp(one, interval, world): one
            for one in world.list_candles(Interval(interval))
        }
        inside = {stamp: one for stamp, one in candles.items() if start <= stamp < end}
        meta = {
            "symbol": request.path.rpartition("/")[2],
            "currency": "USD",
            "exchangeTimezoneName": self.zone,
            "dataGranularity": interval,
            "regularMarketPrice": world.price_at(world.now),
            "regularMarketTime": seconds(world.now),
        }
        result: dict[str, Any] = {"meta": meta, "indicators": {"quote": [{}]}}
        if inside:
            result["timestamp"] = list(inside)
            result["indicators"]["quote"] = [self.list_columns(list(inside.values()))]
        return reply_json({"chart": {"result": [result], "error": None}})

    def find_stamp(self, one: Candle, interval: str, world: World) -> int:
        """Return the begin of a bar; the running day is stamped with the clock."""
        is_running = interval == "1d" and one.close_time > world.now
        return seconds(world.now if is_running else one.begins_at)

    def list_columns(self, candles: list[Candle]) -> dict[str, list[float]]:
        """Return prices as float32 in doubles, and volumes."""
        names = ("open", "high", "low", "close")
        columns = {
            name: [struct.unpack("f", struct.pack("f", getattr(one, name)))[0] for one in candles]
            for name in names
        }
        return {**columns, "volume": [one.volume for one in candles]}

    def answer_unknown(self, request: WireRequest) -> WireReply:
        """Answer the error of a chart."""
        del request
        error = {"code": "Not Found", "description": "No data found, symbol may be delisted"}
        return reply_json({"chart": {"result": None, "error": error}}, 404)


class TestYahooPair(TestYahoo):
    """Yahoo: a pair that is always open."""

    symbol: ClassVar[str] = "BTC-USD"
    zone: ClassVar[str] = "UTC"
