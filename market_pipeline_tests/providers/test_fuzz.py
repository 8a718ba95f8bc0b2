"""D16: whatever a server answers, a parser returns valid records or one ProviderError."""

import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.domain.errors import PermanentProviderError, ProviderError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, PriceSnapshot, Window, build_empty_bar_frame
from market_pipeline.providers import binance, coinbase, coingecko, fred, kraken, yahoo
from market_pipeline.providers.base import Provider
from market_pipeline.providers.binance import BinanceProvider
from market_pipeline.providers.candles import CandleExchange
from market_pipeline.providers.coinbase import CoinbaseProvider
from market_pipeline.providers.coingecko import CoinGeckoProvider
from market_pipeline.providers.fred import FredProvider
from market_pipeline.providers.kraken import KrakenProvider
from market_pipeline.providers.payloads import parse_json
from market_pipeline.providers.yahoo import YahooProvider
from market_pipeline_tests.replay import load_recording, read_recording

NOW = datetime(2024, 6, 1, tzinfo=UTC)
EVER = Window(datetime(2009, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC))
Parser = Callable[[object], object]


def find(provider: Provider, symbol: str) -> Market:
    """Return a market that must be there."""
    market = provider.find_market(symbol)
    assert market is not None
    return market


BITCOIN = find(CoinGeckoProvider({}), "BTC-USD")
MSFT, YAHOO_BTC = (find(YahooProvider({}), symbol) for symbol in ("MSFT", "BTC-USD"))


def parse_coins(body: object) -> None:
    """Parse a page of coins."""
    for one in coingecko.parse_snapshots(body, [BITCOIN]):
        assert one.observed_at.tzinfo is not None


def parse_points(interval: Interval) -> Parser:
    """Return a parser of price points into bars."""

    def parse(body: object) -> None:
        check(coingecko.build_bars(coingecko.parse_points(body, EVER), interval, NOW))

    return parse


def parse_chart(market: Market, interval: Interval) -> Parser:
    """Return a parser of a chart into bars and a price."""

    def parse(body: object) -> None:
        yahoo.parse_snapshot(body, market)
        check(yahoo.parse_bars(body, market, interval, NOW))

    return parse


def parse_candles(exchange: CandleExchange, symbol: str, interval: Interval) -> Parser:
    """Return a parser of candles into bars."""

    def parse(body: object) -> None:
        check(exchange.parse_bars(body, find(exchange, symbol), interval, NOW))

    return parse


def check_price(snapshot: PriceSnapshot) -> None:
    """Assert that a live price has a time in UTC."""
    assert snapshot.observed_at.tzinfo is not None
    assert isinstance(snapshot.price, float)


def parse_coinbase_price(body: object) -> None:
    """Parse a ticker of Coinbase."""
    check_price(coinbase.parse_ticker(body, YAHOO_BTC))


def parse_kraken_prices(body: object) -> None:
    """Parse tickers of Kraken."""
    for snapshot in kraken.parse_tickers(body, [find(KrakenProvider({}), "BTC-EUR")], NOW):
        check_price(snapshot)


def parse_binance_prices(body: object) -> None:
    """Parse tickers of Binance."""
    for snapshot in binance.parse_tickers(body, [find(BinanceProvider({}), "BTC-USDT")]):
        check_price(snapshot)


def check(bars: Any) -> None:
    """Assert that a frame is a bar frame: columns, types, order."""
    assert bars.dtypes.equals(build_empty_bar_frame().dtypes)
    assert bars["open_time"].is_monotonic_increasing
    assert (bars["open_time"] < bars["close_time"]).all()


def shorten(body: dict[str, Any]) -> dict[str, Any]:
    """Return a chart of points cut to a few, so that mutations hit what matters."""
    return {name: rows[:6] for name, rows in body.items()}


def shorten_chart(name: str, granularity: str) -> dict[str, Any]:
    """Return a recorded chart cut to a few rows."""
    body: dict[str, Any] = load_recording(name)
    result = body["chart"]["result"][0]
    result["timestamp"] = result["timestamp"][:4]
    quote = result["indicators"]["quote"][0]
    result["indicators"] = {"quote": [{key: values[:4] for key, values in quote.items()}]}
    result["meta"] |= {"dataGranularity": granularity}
    return body


def shorten_result(name: str) -> dict[str, Any]:
    """Return a recorded answer of Kraken cut to a few rows."""
    body: dict[str, Any] = load_recording(name)
    body["result"] = {key: rows[:4] for key, rows in body["result"].items() if key != "last"}
    return body


CASES: dict[str, tuple[Parser, Any]] = {
    "coinbase": (
        parse_candles(CoinbaseProvider({}), "BTC-USD", Interval.DAY),
        load_recording("coinbase/candles_btceur_1d_2021-01.json")[:4],
    ),
    "coinbase_price": (parse_coinbase_price, load_recording("coinbase/ticker_2015.json")),
    "kraken": (
        parse_candles(KrakenProvider({}), "BTC-USD", Interval.HOUR),
        shorten_result("kraken/ohlc_xbtusd_1m_2017.json"),
    ),
    "kraken_price": (parse_kraken_prices, load_recording("kraken/ticker_xbteur_2014.json")),
    "binance": (
        parse_candles(BinanceProvider({}), "BTC-USDT", Interval.DAY),
        load_recording("binance/klines_btcusdt_1d_2019.json")[:4],
    ),
    "binance_price": (
        parse_binance_prices,
        [load_recording("binance/ticker_24hr_btcusdt.json")],
    ),
    "coins": (parse_coins, load_recording("coingecko/coins_markets_btc_eth_page1_2024.json")),
    "days": (
        parse_points(Interval.DAY),
        shorten(load_recording("coingecko/market_chart_range_btc_daily_2014.json")),
    ),
    "hours": (
        parse_points(Interval.HOUR),
        shorten(load_recording("coingecko/market_chart_range_uni_hourly_7d_2024.json")),
    ),
    "chart_days": (
        parse_chart(MSFT, Interval.DAY),
        shorten_chart("yahoo/chart_msft_1y_dividends_2021.json", "1d"),
    ),
    "chart_hours": (
        parse_chart(MSFT, Interval.HOUR),
        shorten_chart("yahoo/chart_msft_1y_dividends_2021.json", "1h"),
    ),
    "crypto_hours": (
        parse_chart(YAHOO_BTC, Interval.HOUR),
        shorten_chart("yahoo/chart_btcusd_1d_2020-01-01_03.json", "1h"),
    ),
}
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**39), 10**39)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from([0, -1, 1704153600, 1704153600000, 1e308, 1e-308, -1e308, "UTC", "GBp"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
)


def list_places(node: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every node in parsed JSON."""
    children: Any = ()
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list):
        children = enumerate(node)
    return [place, *(p for key, child in children for p in list_places(child, (*place, key)))]


def replace_at(body: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of parsed JSON with one node replaced."""
    if not place:
        return value
    copy = json.loads(json.dumps(body))
    node = copy
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value
    return copy


def run(parser: Parser, body: bytes) -> None:
    """Parse bytes as a provider does; anything but a ProviderError gets out."""
    try:
        parser(parse_json("test", body))
    except ProviderError:
        return


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_d16_a_mutated_answer_gives_records_or_one_error(name: str, data: st.DataObject) -> None:
    """A real answer in which up to three places hold something else."""
    parser, body = CASES[name]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(list_places(body)))
        body = replace_at(body, place, data.draw(values))
    run(parser, json.dumps(body).encode())


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=40, deadline=None)
@given(body=st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
def test_d16_any_bytes_give_records_or_one_error(name: str, body: bytes) -> None:
    """Noise, and any JSON."""
    run(CASES[name][0], body)


@pytest.mark.parametrize("name", CASES)
def test_the_unchanged_answer_is_understood(name: str) -> None:
    """The fuzz starts from answers that parse."""
    parser, body = CASES[name]
    parser(parse_json("test", json.dumps(body).encode()))


@given(body=st.binary(max_size=200))
def test_d9_json_is_parsed_or_refused(body: bytes) -> None:
    """Only one error class leaves the JSON parser."""
    with contextlib.suppress(PermanentProviderError):
        parse_json("test", body)


@settings(max_examples=200, deadline=None)
@given(
    at=st.integers(0, 200),
    removed=st.integers(0, 40),
    added=st.binary(max_size=12) | st.sampled_from([b",", b"\n", b".", b"-", b"1e9", b"\xff"]),
)
def test_d16_a_mutated_csv_gives_bars_or_one_error(at: int, removed: int, added: bytes) -> None:
    """The first lines of a real CSV with other bytes somewhere."""
    body = read_recording("fred/fredgraph_sp500_2016-02-12_2026-02-11.csv")[:200]
    with contextlib.suppress(ProviderError):
        changed = body[:at] + added + body[at + removed :]
        check(fred.parse_bars(changed, find(FredProvider({}), "SPX"), NOW))
