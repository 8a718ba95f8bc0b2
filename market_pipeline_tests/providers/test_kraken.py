"""Kraken, against its recorded answers."""

from datetime import timedelta

import pandas as pd
import pytest

from market_pipeline.domain.errors import PermanentProviderError, TransientProviderError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.providers.kraken import KrakenProvider, is_named, parse_tickers
from market_pipeline.providers.rate_limiter import CallCounter, UnlimitedCalls, use_limiter
from market_pipeline_tests.providers.clocks import QUICK, FakeTime
from market_pipeline_tests.providers.moments import LATER, at, between, find
from market_pipeline_tests.replay import (
    ReplayServer,
    answer_with,
    load_recording,
    make_json_reply,
    read_recording,
)

MINUTES = "kraken/ohlc_xbtusd_1m_2017.json"
UNKNOWN = "kraken/error_unknown_asset_pair_200.json"
PROVIDER = KrakenProvider({"PROVIDER_MARKETS": "kraken:BTC-USDT"})


def make_provider(server: ReplayServer, fake_time: FakeTime) -> KrakenProvider:
    """Return a provider that asks the local server."""
    return KrakenProvider(server.environ, clocks=fake_time.clocks, limits=QUICK)


def parse(body: object, now: str = "2026-01-01") -> pd.DataFrame:
    """Return the bars of an answer."""
    return PROVIDER.parse_bars(body, find(PROVIDER), Interval.HOUR, at(now))


def test_recorded_candles_are_found_under_another_key_than_asked() -> None:
    """``XBTUSD`` was asked, ``XXBTZUSD`` answered, with 720 candles and a key ``last``."""
    bars = parse(load_recording(MINUTES))
    assert len(bars) == 720
    first = bars.iloc[0]
    assert first["open_time"] == pd.Timestamp("2017-08-10T22:02", tz="UTC")
    names = ("open", "high", "low", "close", "volume", "trades")
    assert [first[name] for name in names] == [3449.992, 3449.999, 3449.992, 3449.999, 1.012, 7]
    assert parse(load_recording("kraken/klines_doc_example.json"))["open"].tolist()[0] == 30306.1


def test_recorded_pairs_have_the_names_of_their_markets() -> None:
    """Each recorded pair that the catalogue has, by its short name and by the key of an answer."""
    pairs = load_recording("kraken/asset_pairs_2020s.json")["result"]
    keys = {pair["altname"]: key for key, pair in pairs.items()}
    markets = [find(PROVIDER, symbol) for symbol in PROVIDER.list_symbols()]
    found = [market for market in markets if market.provider_market_id in keys]
    assert len(found) > 15
    for market in found:
        named = [key for key in pairs if is_named(market, key)]
        assert named == [keys[market.provider_market_id]]


@pytest.mark.parametrize("keys", [("XETHZUSD",), (), ("XXBTZUSD", "XETHZUSD")])
def test_an_answer_about_another_pair_is_refused(keys: tuple[str, ...]) -> None:
    """One key beside ``last``, and it is the market's."""
    with pytest.raises(PermanentProviderError, match="asked for XBTUSD"):
        parse({"error": [], "result": {**{key: [] for key in keys}, "last": 1}})


def test_the_plan_says_that_only_720_candles_can_be_had() -> None:
    """29 days of hours and 719 of days, so that no candle is gone when it is asked for."""
    for interval, days in ((Interval.HOUR, 29), (Interval.DAY, 719)):
        terms = PROVIDER.describe_history(find(PROVIDER), interval)
        assert (terms.page, terms.reaches_back) == (timedelta(days=days),) * 2


def test_what_is_older_than_720_candles_is_refused_unasked(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """Kraken would answer the newest 720, which looks as if nothing had been traded before."""
    fake_time.utc_now = at("2024-01-31T12:00")
    provider = make_provider(server, fake_time)
    market, window = find(provider), between("2023-12-01", "2024-01-01")
    with pytest.raises(
        PermanentProviderError, match=r"only the newest 720 candles of 1h .* 2024-01-01 12"
    ):
        provider.fetch_bars(market, Interval.HOUR, window, LATER)
    assert server.requests == []


def test_a_page_asks_from_a_second_before_its_first_candle(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """Included or not, the candle that opens at the page's start comes."""
    fake_time.utc_now = at("2017-08-11T10:02")
    server.misbehave(answer_with(read_recording(MINUTES)))
    provider = make_provider(server, fake_time)
    window = between("2017-08-11T00:00", "2017-08-11T03:00")
    bars = provider.fetch_bars(find(provider), Interval.HOUR, window, fake_time.utc_now)
    assert bars["open_time"].between(window.start, window.end, inclusive="left").all()
    (seen,) = server.requests
    since = str(int(window.start.timestamp()) - 1)
    assert seen.query == {"pair": "XBTUSD", "interval": "60", "since": since}


def test_a_candle_without_trades_is_a_bar() -> None:
    """Kraken repeats the last price with volume 0: nothing was traded, and nothing is missing."""
    row = [1502402520, "3450.0", "3450.0", "3450.0", "3450.0", "0.0", "0.00000000", 0]
    bars = parse({"error": [], "result": {"XXBTZUSD": [row], "last": 1502402520}})
    assert (bars["volume"].tolist(), bars["trades"].tolist()) == ([0.0], [0.0])


@pytest.mark.parametrize("name", [UNKNOWN, "kraken/error_invalid_asset_pair_200.json"])
def test_an_error_inside_http_200_is_an_error(
    server: ReplayServer, fake_time: FakeTime, name: str
) -> None:
    """Both recorded spellings say that there is no such pair."""
    server.misbehave(answer_with(read_recording(name)))
    provider = make_provider(server, fake_time)
    now = fake_time.utc_now
    with pytest.raises(
        PermanentProviderError, match=r"asset pair\. kraken lists no BTC-USD"
    ) as failure:
        provider.fetch_bars(find(provider), Interval.DAY, Window(now - timedelta(days=2), now), now)
    assert failure.value.status == 404


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("EAPI:Rate limit exceeded", 429),
        ("EGeneral:Too many requests", 429),
        ("EGeneral:Temporary lockout", 429),
        ("EService:Unavailable", 503),
        ("EService:Busy", 503),
    ],
)
def test_a_limit_or_an_outage_inside_http_200_may_pass(
    server: ReplayServer, fake_time: FakeTime, said: str, status: int
) -> None:
    """It is tried again, after a pause that all processes keep."""
    server.misbehave(answer_with(make_json_reply({"error": [said]}).body), times=4)
    provider = make_provider(server, fake_time)
    now = fake_time.utc_now
    window = Window(now - timedelta(days=2), now)
    with use_limiter(CallCounter(UnlimitedCalls())) as counter:
        with pytest.raises(TransientProviderError, match=said) as failure:
            provider.fetch_bars(find(provider), Interval.DAY, window, now)
        assert isinstance(counter, CallCounter)
        assert (counter.calls, counter.throttled, failure.value.status) == (4, 4, status)


def test_any_other_error_is_permanent(server: ReplayServer, fake_time: FakeTime) -> None:
    """Such as an interval that Kraken lacks."""
    body = make_json_reply({"error": ["EGeneral:Invalid arguments"]}).body
    server.misbehave(answer_with(body))
    provider = make_provider(server, fake_time)
    now = fake_time.utc_now
    with pytest.raises(PermanentProviderError, match="EGeneral:Invalid arguments"):
        provider.fetch_bars(find(provider), Interval.DAY, Window(now - timedelta(days=2), now), now)


def test_a_recorded_ticker_is_a_price_and_a_days_volume() -> None:
    """Coins of 24 hours times their average price are the volume in the quote currency."""
    for name, symbol, price, coins, vwap in (
        ("kraken/ticker_xbtusdt_2025.json", "BTC-USDT", 105899.4, None, None),
        ("kraken/ticker_xbteur_2014.json", "BTC-EUR", 560.87711, 600.91850325, 576.77284),
    ):
        now = at("2025-06-01")
        (snapshot,) = parse_tickers(load_recording(name), [find(PROVIDER, symbol)], now)
        assert (snapshot.price, snapshot.observed_at) == (price, now)
        assert coins is None or snapshot.volume_24h == pytest.approx(coins * vwap)


def test_one_bad_pair_costs_no_other_its_price(server: ReplayServer, fake_time: FakeTime) -> None:
    """The list is halved until the bad one is alone: three more requests for one of three."""
    ticker = {"c": ["2.0", "1"], "v": ["1", "10"], "p": ["1", "3"]}
    bodies = [
        read_recording(UNKNOWN),
        make_json_reply({"error": [], "result": {"XXBTZUSD": ticker}}).body,
        read_recording(UNKNOWN),
        read_recording(UNKNOWN),
        make_json_reply({"error": [], "result": {"SOLUSD": ticker}}).body,
    ]
    for body in bodies:
        server.misbehave(answer_with(body))
    provider = make_provider(server, fake_time)
    markets = [find(provider, symbol) for symbol in ("BTC-USD", "ETH-USD", "SOL-USD")]
    snapshots = provider.fetch_snapshots(markets, LATER)
    assert [one.market.symbol for one in snapshots] == ["BTC-USD", "SOL-USD"]
    assert {one.observed_at for one in snapshots} == {fake_time.utc_now}
    asked = [request.query["pair"] for request in server.requests]
    assert asked == ["XBTUSD,ETHUSD,SOLUSD", "XBTUSD", "ETHUSD,SOLUSD", "ETHUSD", "SOLUSD"]
