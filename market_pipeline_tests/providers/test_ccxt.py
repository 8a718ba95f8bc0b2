"""Exchanges through ccxt: the real library against a local server."""

import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

import ccxt
import pytest

from market_pipeline.domain.errors import (
    PermanentProviderError,
    SettingError,
    TransientProviderError,
)
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.providers import ccxt_exchanges
from market_pipeline.providers.base import Provider
from market_pipeline.providers.ccxt_exchanges import CcxtProvider, list_exchange_ids, read_meaning
from market_pipeline.providers.http import Clocks, HttpResponse
from market_pipeline.providers.registry import (
    is_provider_name,
    list_provider_names,
    load_provider,
    route_markets,
)
from market_pipeline.settings import parse_provider_names, read_provider_call_limits
from market_pipeline.testing import HttpProviderContract, WireReply, WireRequest, World, reply_json
from market_pipeline_tests.providers.clocks import FakeTime
from market_pipeline_tests.providers.moments import at, find
from market_pipeline_tests.replay import ReplayServer, answer_with, make_json_reply

PAIRS = [
    {
        "name": f"{base}/USD{suffix}",
        "market_symbol": f"{base.lower()}usd{suffix.lower()}",
        "base_currency": base,
        "base_decimals": 8,
        "counter_currency": "USD",
        "counter_decimals": 2,
        "minimum_order_value": "10",
        "trading": "Enabled",
        "instant_order_counter_decimals": 2,
        "instant_and_market_orders": "Enabled",
        "market_type": kind,
    }
    for base, suffix, kind in [
        ("BTC", "", "SPOT"),
        ("ETH", "", "SPOT"),
        ("XRP", "-PERP", "PERPETUAL"),
    ]
]


def connect(address: str, clocks: Clocks, exchange_id: str = "bitstamp") -> CcxtProvider:
    """Return an exchange whose requests go to a local address."""
    provider = CcxtProvider({}, exchange_id, clocks=clocks)
    provider.exchange.urls["api"] = {"public": address, "private": address}
    return provider


class TestBitstamp(HttpProviderContract):
    """The conformance suite, on the real library."""

    symbol: ClassVar[str] = "BTC-USD"

    def connect(self, address: str, clocks: Clocks) -> Provider:
        """Return the provider of an address."""
        return connect(address, clocks)

    def answer(self, request: WireRequest, world: World) -> WireReply:
        """Answer as Bitstamp: its pairs, candles from a start to an end, both included, tickers."""
        if request.path.startswith("/v2/ohlc/btcusd/"):
            return reply_json({"data": {"pair": "BTC/USD", "ohlc": self.list_rows(request, world)}})
        if request.path.startswith("/v2/ticker/"):
            stamp = {"timestamp": str(int(world.now.timestamp())), "pair": "BTC/USD"}
            price = {"last": str(world.price_at(world.now)), "volume": "3.5", "vwap": "10"}
            rows = [{**stamp, **price}]
            return reply_json(rows if request.path == "/v2/ticker/" else rows[0])
        return reply_json(PAIRS)

    def list_rows(self, request: WireRequest, world: World) -> list[dict[str, str]]:
        """Return the candles of a request."""
        start, end, step = (int(request.query[name]) for name in ("start", "end", "step"))
        names = ("open", "high", "low", "close", "volume")
        rows = [
            {name: str(getattr(one, name)) for name in names}
            | {"timestamp": str(int(one.open_time.timestamp()))}
            for one in world.list_candles(Interval.HOUR if step == 3600 else Interval.DAY)
        ]
        inside = [row for row in rows if start <= int(row["timestamp"]) <= end]
        return inside[: int(request.query["limit"])]

    def answer_unknown(self, request: WireRequest) -> WireReply:
        """Answer pairs without the one that is asked for."""
        del request
        return reply_json(PAIRS[1:])


def test_a_colon_is_a_hyphen_in_storage() -> None:
    """A colon stands between provider and symbol; settings and options take both spellings."""
    assert parse_provider_names("CCXT:Bitstamp,ccxt-bitstamp,yahoo") == ("ccxt-bitstamp", "yahoo")
    limits = read_provider_call_limits({"PROVIDER_CALLS_PER_MINUTE": "ccxt:bitstamp=30"})
    assert limits == {"ccxt-bitstamp": 30}
    ((provider, market),) = route_markets(["BTC-USD"], ["ccxt-bitstamp"], {})
    assert (provider.name, market.provider, market.venue) == ("ccxt-bitstamp",) * 2 + ("bitstamp",)
    assert market.provider_market_id == "BTC/USD"
    assert is_provider_name("ccxt-bitstamp")


def test_ccxt_is_not_imported_until_an_exchange_is_used() -> None:
    """Neither for the list of names, nor for the row of the family, nor to check a name."""
    code = """
import sys
from market_pipeline.providers.registry import *
from market_pipeline.providers.registry import is_provider_name
list_provider_names(), load_provider("ccxt", {}).explain_missing_settings()
assert is_provider_name("ccxt-kraken") and not is_provider_name("ccxt-nobody")
route_markets(["BTC-USD"], ["coinbase"], {"INGESTION_PROVIDER": "coinbase,ccxt:bitstamp"})
assert "ccxt" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_unknown_exchange_is_refused_with_near_ones() -> None:
    """Before anything is imported or asked."""
    with pytest.raises(SettingError, match=r"no exchange 'bitstmp': expected .*bitstamp"):
        load_provider("ccxt-bitstmp", {})
    assert "bitstamp" in list_exchange_ids()
    assert set(list_exchange_ids()) == set(ccxt.exchanges)


def test_without_the_extra_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, and in the list of providers."""
    monkeypatch.setattr(ccxt_exchanges, "find_spec", lambda _: None)
    with pytest.raises(SettingError, match=r"needs ccxt: install it with: pip install"):
        load_provider("ccxt-bitstamp", {})
    assert "market-pipeline[ccxt]" in str(load_provider("ccxt", {}).explain_missing_settings())
    assert "ccxt" in list_provider_names()


@pytest.mark.parametrize(
    ("exchange_id", "reason"),
    [
        ("coincheck", "coincheck has no candles: name another exchange"),
        ("luno", "set CCXT_PAGE_LIMIT"),
        ("", "name an exchange, such as ccxt:bitstamp"),
    ],
)
def test_an_exchange_that_cannot_be_used_says_why(exchange_id: str, reason: str) -> None:
    """It serves nothing, and the message of the run holds the reason."""
    assert reason in str(CcxtProvider({}, exchange_id).explain_missing_settings())


def test_a_page_limit_is_declared_or_set_and_never_guessed() -> None:
    """A wrong one would lose bars without a word."""
    market = find(CcxtProvider({}, "bitstamp"))
    declared = CcxtProvider({"CCXT_PAGE_LIMIT": "7"}, "bitstamp")
    assert declared.describe_history(market, Interval.HOUR).page == timedelta(hours=1000)
    chosen = CcxtProvider({"CCXT_PAGE_LIMIT": "90"}, "luno")
    assert chosen.explain_missing_settings() is None
    assert chosen.describe_history(market, Interval.DAY).page == timedelta(days=90)
    with pytest.raises(SettingError, match="CCXT_PAGE_LIMIT='many'"):
        CcxtProvider({"CCXT_PAGE_LIMIT": "many"}, "luno")
    now = at("2024-01-02")
    with pytest.raises(PermanentProviderError, match="set CCXT_PAGE_LIMIT"):
        CcxtProvider({}, "luno").fetch_bars(
            market, Interval.DAY, Window(at("2024-01-01"), now), now
        )


def test_its_rate_is_the_budgets_and_its_own_limiter_is_off() -> None:
    """Two limiters would not know of each other's processes."""
    provider = CcxtProvider({}, "bitstamp")
    assert provider.calls_per_minute == 60_000 / ccxt.bitstamp().rateLimit
    assert provider.exchange.enableRateLimit is False


def test_a_future_is_no_spot_market(server: ReplayServer, fake_time: FakeTime) -> None:
    """Nor is a pair that is not listed one: both name the cure."""
    server.misbehave(answer_with(make_json_reply(PAIRS).body), times=9)
    provider = connect(server.address, fake_time.clocks)
    now = at("2024-01-02")
    for symbol in ("XRP-USD", "FOO-USD"):
        market = find(provider, symbol)
        with pytest.raises(PermanentProviderError, match=f"bitstamp lists no {symbol}: name a"):
            provider.fetch_bars(market, Interval.DAY, Window(at("2024-01-01"), now), now)
    assert provider.find_market("SPX") is None


@pytest.mark.parametrize(
    ("kind", "meaning"),
    [
        (ccxt.DDoSProtection, 429),
        (ccxt.RateLimitExceeded, 429),
        (ccxt.OnMaintenance, 503),
        (ccxt.RequestTimeout, 503),
        (ccxt.BadSymbol, 404),
        (ccxt.BadRequest, 400),
        (ccxt.NotSupported, 400),
        (ccxt.PermissionDenied, 401),
        (ccxt.RestrictedLocation if hasattr(ccxt, "RestrictedLocation") else ccxt.BadSymbol, None),
        (KeyError, 500),
    ],
)
def test_every_error_of_ccxt_has_a_meaning(kind: type[Exception], meaning: int | None) -> None:
    """By its class, or the nearest base."""
    expected = (451, 404) if meaning is None else (meaning,)
    assert read_meaning(kind("said")) in expected


def raise_error(error: Exception) -> Any:
    """Return a function that raises an error, whatever it is given."""

    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "meaning"),
    [
        (ccxt.DDoSProtection("slow down"), 200, 429),
        (ccxt.RateLimitExceeded("slow down"), 400, 429),
        (ccxt.DDoSProtection("banned"), 418, 429),
        (ccxt.ExchangeNotAvailable("down"), 200, 503),
        (ccxt.ExchangeNotAvailable("a bad request, by default"), 400, 400),
        (ccxt.ExchangeNotAvailable("no such place, by default"), 404, 404),
        (ccxt.BadSymbol("no such pair"), 200, 404),
    ],
)
def test_a_limit_is_recognised_in_all_its_classes(
    error: Exception, status: int, meaning: int
) -> None:
    """400 and 404 stay permanent, although ccxt calls them a network error."""
    provider = CcxtProvider({}, "bitstamp")
    provider.exchange.handle_errors = raise_error(error)
    assert provider._read_status(HttpResponse(status, {}, b"{}")) == meaning


def test_a_limit_inside_http_200_is_waited_for(server: ReplayServer, fake_time: FakeTime) -> None:
    """Tried again four times, then it may pass."""
    server.misbehave(answer_with(b"{}"), times=9)
    provider = connect(server.address, fake_time.clocks)
    provider.exchange.handle_errors = raise_error(ccxt.DDoSProtection("slow down"))
    now = at("2024-01-02")
    with pytest.raises(TransientProviderError):
        provider.fetch_bars(find(provider), Interval.DAY, Window(at("2024-01-01"), now), now)
    assert len(server.requests) == 4


def test_a_location_that_is_refused_is_said_with_the_cure() -> None:
    """In ccxt's own class for it."""
    provider = CcxtProvider({}, "bitstamp")
    kind = type("RestrictedLocation", (ccxt.ExchangeError,), {})
    provider.exchange.fetch_tickers = raise_error(kind("not here"))
    provider.exchange.load_markets = lambda: {"BTC/USD": {"spot": True}}
    with pytest.raises(PermanentProviderError, match="does not serve this machine's location"):
        provider.fetch_snapshots([find(provider)], at("2024-01-02"))


def test_only_gets_are_sent() -> None:
    """Some exchanges ask for public data by POST; the error names the cure."""
    with pytest.raises(PermanentProviderError, match="asks by POST, only GET is sent"):
        CcxtProvider({}, "bitstamp")._send("https://example.org/info", "POST")


def test_a_ticker_without_a_time_is_of_the_moment_it_was_asked_for() -> None:
    """A price is needed; all else may be missing."""
    provider = CcxtProvider({}, "bitstamp")
    market, now = find(provider), at("2024-01-02")
    snapshot = provider._parse({"last": 5, "timestamp": None}, market, now)
    assert snapshot is not None
    assert (snapshot.price, snapshot.observed_at, snapshot.volume_24h) == (5.0, now, None)
    assert provider._parse({"timestamp": 1}, market, now) is None
    assert provider._parse(SimpleNamespace(), market, now) is None
