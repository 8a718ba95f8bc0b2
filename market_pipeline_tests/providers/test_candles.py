"""The common part of exchanges with candles: catalogue, pages and errors."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.domain.errors import PermanentProviderError, SettingError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.providers.binance import BinanceProvider
from market_pipeline.providers.candles import CandleExchange, split_pages
from market_pipeline.providers.coinbase import CoinbaseProvider
from market_pipeline.providers.kraken import KrakenProvider
from market_pipeline.providers.registry import route_markets
from market_pipeline_tests.providers.clocks import QUICK, FakeTime
from market_pipeline_tests.providers.moments import LATER, at, between, find
from market_pipeline_tests.replay import ReplayServer, answer_with, read_recording

EXCHANGES = (CoinbaseProvider, KrakenProvider, BinanceProvider)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_markets_are_added_by_a_setting(exchange: type[CandleExchange]) -> None:
    """Its own entries alone; the symbol's spelling does not matter."""
    text = f"{exchange.name}: zec-usdt,coinbase:ZEC-USD,kraken:ZEC-USD,binance:ZEC-BTC"
    provider = exchange(
        {"PROVIDER_MARKETS": text.replace("coinbase: zec-usdt", "coinbase:ZEC-GBP")}
    )
    added = set(provider.list_symbols()) - set(exchange.symbols)
    assert len(added) == 2
    assert all(find(provider, symbol).base == "ZEC" for symbol in added)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ZEC-USD", "expected provider:SYMBOL"),
        ("kraken:", "malformed"),
        ("kraken:SPX", "kraken:SPX: expected COIN-QUOTE, quoted in one of"),
        ("kraken:ZEC-DOGE", "expected COIN-QUOTE"),
        ("kraken:XBT-USD", "XBT is its name of BTC: use the common name"),
    ],
)
def test_a_market_that_cannot_be_is_refused_by_name(text: str, message: str) -> None:
    """An exchange's own name of a coin would be a second market of the same coin."""
    with pytest.raises(SettingError, match=message) as failure:
        KrakenProvider({"PROVIDER_MARKETS": text})
    assert str(failure.value).startswith("PROVIDER_MARKETS")


def test_a_coin_that_two_exchanges_mean_differently_is_the_same_here() -> None:
    """What Kraken calls LUNA is LUNC elsewhere, and its LUNA2 is LUNA."""
    provider = KrakenProvider({"PROVIDER_MARKETS": "kraken:LUNA-USD,kraken:LUNC-USD"})
    names = {find(provider, f"{coin}-USD").provider_market_id for coin in ("LUNA", "LUNC")}
    assert find(provider, "LUNA-USD").provider_market_id == "LUNA2USD"
    assert names == {"LUNA2USD", "LUNAUSD"}


def test_tether_is_not_the_dollar() -> None:
    """Binance serves no market in dollars, so BTC-USD goes to another provider, under its name."""
    assert BinanceProvider({}).find_market("BTC-USD") is None
    routes = route_markets(["BTC-USD", "BTC-USDT"], ["binance", "coinbase"], {})
    assert [(p.name, m.symbol, m.quote) for p, m in routes] == [
        ("coinbase", "BTC-USD", "USD"),
        ("binance", "BTC-USDT", "USDT"),
    ]


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_an_interval_that_it_lacks_is_refused(
    exchange: type[CandleExchange], server: ReplayServer
) -> None:
    """Nobody is asked."""
    provider = exchange(server.environ)
    market = find(provider, exchange.symbols[0])
    with pytest.raises(PermanentProviderError, match="has no bars of 1w: expected 1h or 1d"):
        provider.fetch_bars(market, Interval.WEEK, between("2024-01-01", "2024-02-01"), LATER)
    assert server.requests == []


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_refused_location_is_said_with_the_cure(
    exchange: type[CandleExchange], server: ReplayServer, fake_time: FakeTime
) -> None:
    """451 is permanent: another try from the same place changes nothing."""
    server.misbehave(answer_with(b'{"msg": "restricted location"}', 451), times=9)
    provider = exchange(server.environ, clocks=fake_time.clocks, limits=QUICK)
    market = find(provider, exchange.symbols[0])
    with pytest.raises(PermanentProviderError) as failure:
        provider.fetch_bars(
            market, Interval.DAY, between("2024-01-01", "2024-01-02"), at("2024-01-03")
        )
    assert f"restricted location. {exchange.name} does not serve this machine's location" in str(
        failure.value
    )
    assert (failure.value.status, len(server.requests)) == (451, 1)


@given(
    start=st.datetimes(
        at("2020-01-01").replace(tzinfo=None), at("2024-01-01").replace(tzinfo=None)
    ),
    hours=st.floats(0, 500),
    ahead=st.floats(-100, 700),
    most=st.integers(1, 300),
    interval=st.sampled_from([Interval.HOUR, Interval.DAY]),
)
def test_pages_hold_every_bar_of_a_window_once(
    start: object, hours: float, ahead: float, most: int, interval: Interval
) -> None:
    """Whole bars, none that begins after the clock, and never more than one answer holds."""
    begin = at(str(start))
    window, now = Window(begin, begin + timedelta(hours=hours)), begin + timedelta(hours=ahead)
    pages = list(split_pages(window, interval, now, most))
    opens = [
        page.start + k * interval.duration
        for page in pages
        for k in range(int((page.end - page.start) / interval.duration))
    ]
    midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    grid = [midnight + k * interval.duration for k in range(600)]
    assert opens == [one for one in grid if window.start <= one < window.end and one <= now]
    assert all(page.end - page.start <= most * interval.duration for page in pages)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize(
    "name",
    [
        "coinbase/candles_btceur_1d_2021-01.json",
        "kraken/ohlc_xbtusd_1m_2017.json",
        "binance/klines_btcusdt_1d_2019.json",
        "coingecko/market_chart_range_btc_daily_2014.json",
        "yahoo/chart_btcusd_1d_2020-01-01_03.json",
        "fred/fredgraph_sp500_2016-02-12_2026-02-11.csv",
    ],
)
def test_another_sources_answer_is_refused(
    exchange: type[CandleExchange], name: str, server: ReplayServer, fake_time: FakeTime
) -> None:
    """A proxy or an address that was mixed up is seen, and no bar is made of it."""
    kind = "application/json" if name.endswith("json") else "text/csv"
    server.misbehave(answer_with(read_recording(name), content_type=kind))
    provider = exchange(server.environ, clocks=fake_time.clocks, limits=QUICK)
    market, now = find(provider, exchange.symbols[0]), fake_time.utc_now
    window = Window(now - timedelta(days=2), now)
    if name.startswith(exchange.name):
        assert provider.fetch_bars(market, Interval.DAY, window, now).empty
    else:
        with pytest.raises(PermanentProviderError):
            provider.fetch_bars(market, Interval.DAY, window, now)
