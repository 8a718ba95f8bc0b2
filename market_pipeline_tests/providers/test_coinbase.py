"""Coinbase Exchange, against its recorded answers."""

import pandas as pd
import pytest

from market_pipeline.domain.errors import PermanentProviderError, TransientProviderError
from market_pipeline.domain.intervals import Interval
from market_pipeline.providers.coinbase import CoinbaseProvider, parse_ticker
from market_pipeline_tests.providers.clocks import QUICK, FakeTime
from market_pipeline_tests.providers.moments import LATER, at, between, find
from market_pipeline_tests.replay import (
    ReplayServer,
    answer_with,
    load_recording,
    make_json_reply,
    read_recording,
    throttle,
)

DAYS = "coinbase/candles_btceur_1d_2021-01.json"
PROVIDER = CoinbaseProvider({})


def make_provider(server: ReplayServer, fake_time: FakeTime) -> CoinbaseProvider:
    """Return a provider that asks the local server."""
    return CoinbaseProvider(server.environ, clocks=fake_time.clocks, limits=QUICK)


def parse(body: object, interval: Interval = Interval.DAY, now: str = "2026-01-01") -> pd.DataFrame:
    """Return the bars of an answer."""
    return PROVIDER.parse_bars(body, find(PROVIDER), interval, at(now))


def test_recorded_days_come_oldest_first_with_low_and_high_where_they_belong() -> None:
    """``[time, low, high, open, close, volume]``: 2021-01-01 opened at 23706.73, low 23512.7."""
    bars = parse(load_recording(DAYS))
    assert bars["open_time"].tolist() == pd.date_range("2021-01-01", periods=7, tz="UTC").tolist()
    first = bars.iloc[0]
    prices = [first[name] for name in ("open", "high", "low", "close", "volume")]
    assert prices == [23706.73, 24250.0, 23512.7, 24070.97, 1830.04655405]
    assert (first["volume_kind"], first["source_kind"]) == ("base", "traded")
    assert (bars["close_time"] - bars["open_time"]).unique().tolist() == [pd.Timedelta(days=1)]


def test_the_noise_of_summed_volumes_is_left_out() -> None:
    """The recorded 4.727521520000001 coins are 4.72752152; prices keep every digit."""
    bars = parse(load_recording("coinbase/candles_btcusd_1m_2018.json"), Interval.HOUR)
    assert bars["volume"].tolist()[-2:] == [4.72752152, 2.85107455]
    assert bars["close"].tolist()[-2:] == [10106.01, 10120.21]


@pytest.mark.parametrize(("second", "is_final"), [("04:59", False), ("05:00", True)])
def test_a_candle_is_final_five_minutes_after_its_close(second: str, is_final: bool) -> None:
    """The running candle has no mark: the clock decides."""
    bars = parse(load_recording(DAYS), now=f"2021-01-08T00:{second}")
    assert bars["is_final"].tolist() == [True] * 6 + [is_final]


@pytest.mark.parametrize(
    ("window", "start", "end"),
    [
        (("2021-01-01", "2021-10-28"), "2021-01-01", "2021-10-27"),  # 300 days
        (("2021-01-01T05:00", "2021-01-02T05:00"), "2021-01-02", "2021-01-03"),  # one
    ],
)
def test_a_page_asks_for_its_first_and_its_last_candle(
    server: ReplayServer, fake_time: FakeTime, window: tuple[str, str], start: str, end: str
) -> None:
    """Both ends are included, 300 candles are the most, and the end lies after the start."""
    server.misbehave(answer_with(b"[]"))
    provider = make_provider(server, fake_time)
    provider.fetch_bars(find(provider), Interval.DAY, between(*window), LATER)
    (seen,) = server.requests
    assert seen.path == "/coinbase/products/BTC-USD/candles"
    stamps = {
        name: str(int(at(text).timestamp())) for name, text in (("start", start), ("end", end))
    }
    assert seen.query == {"granularity": "86400", **stamps}


def test_what_was_not_asked_for_is_left_out(server: ReplayServer, fake_time: FakeTime) -> None:
    """Seven days come, two were wanted; a day without trades is no row, and no error."""
    server.misbehave(answer_with(read_recording(DAYS)))
    server.misbehave(answer_with(b"[]"))
    provider = make_provider(server, fake_time)
    window = between("2021-01-03", "2021-01-05")
    counts = [
        len(provider.fetch_bars(find(provider), Interval.DAY, window, LATER)) for _ in range(2)
    ]
    assert counts == [2, 0]


def test_too_many_candles_are_refused_in_the_exchanges_own_words(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """The recorded 400 is quoted; it is never tried again."""
    body = read_recording("coinbase/error_too_many_aggregations_400.json")
    server.misbehave(answer_with(body, 400))
    provider = make_provider(server, fake_time)
    with pytest.raises(PermanentProviderError, match="HTTP 400: granularity too small"):
        provider.fetch_bars(
            find(provider), Interval.DAY, between("2021-01-01", "2021-01-02"), LATER
        )
    assert len(server.requests) == 1


def test_a_product_that_is_not_listed_is_said_with_the_cure(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """For bars and for a live price alike."""
    reply = answer_with(read_recording("coinbase/error_not_found_404.json"), 404)
    server.misbehave(reply, times=2)
    provider = make_provider(server, fake_time)
    expected = "coinbase lists no BTC-USD: name a provider that does before it"
    with pytest.raises(PermanentProviderError, match=expected):
        provider.fetch_bars(
            find(provider), Interval.DAY, between("2021-01-01", "2021-01-02"), LATER
        )
    with pytest.raises(PermanentProviderError, match=expected):
        provider.fetch_snapshots([find(provider)], LATER)


def test_a_throttled_request_is_tried_again(server: ReplayServer, fake_time: FakeTime) -> None:
    """Four times; then the failure is one that may pass."""
    server.misbehave(throttle("3"), times=4)
    provider = make_provider(server, fake_time)
    with pytest.raises(TransientProviderError, match="429"):
        provider.fetch_bars(
            find(provider), Interval.DAY, between("2021-01-01", "2021-01-02"), LATER
        )
    assert fake_time.slept == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("name", "price", "time"),
    [
        ("coinbase/ticker_2015.json", 246.28, "2015-04-08T20:49:06.506997"),
        ("coinbase/ticker_btcusdt_2024.json", 73367.8, "2024-03-13T11:10:41.270099"),
    ],
)
def test_a_recorded_ticker_is_a_price_and_its_time(name: str, price: float, time: str) -> None:
    """Its volume counts coins, and a snapshot's volume is in the quote currency: none."""
    snapshot = parse_ticker(load_recording(name), find(PROVIDER))
    assert (snapshot.price, snapshot.observed_at) == (price, at(time))
    assert snapshot.volume_24h is None


def test_prices_are_asked_for_market_by_market(server: ReplayServer, fake_time: FakeTime) -> None:
    """One that fails has none, and does not stop the others."""
    known, unknown = (f"/coinbase/products/{symbol}" for symbol in ("BTC-USD", "ETH-USD"))
    server.misbehave(answer_with(read_recording("coinbase/ticker_2015.json")), path=known)
    body = read_recording("coinbase/error_not_found_404.json")
    server.misbehave(answer_with(body, 404), path=unknown)
    provider = make_provider(server, fake_time)
    markets = [find(provider, symbol) for symbol in ("BTC-USD", "ETH-USD")]
    assert [one.market.symbol for one in provider.fetch_snapshots(markets, LATER)] == ["BTC-USD"]


def test_recorded_products_have_the_ids_of_their_markets() -> None:
    """The id is base and quote, as the catalogue spells it."""
    for product in load_recording("coinbase/products_partial.json"):
        symbol = f"{product['base_currency']}-{product['quote_currency']}"
        provider = CoinbaseProvider({"PROVIDER_MARKETS": f"coinbase:{symbol}"})
        market = find(provider, symbol)
        assert market.provider_market_id == product["id"]
        assert (market.base, market.quote) == (product["base_currency"], product["quote_currency"])


def test_another_sources_answer_is_refused(server: ReplayServer, fake_time: FakeTime) -> None:
    """Candles under a key, or as text, are not Coinbase Exchange's."""
    provider = make_provider(server, fake_time)
    for body in ({"candles": []}, [["1609459200", "1", "2", "1", "2", "3"]], [[1609459200, 1]]):
        server.misbehave(answer_with(make_json_reply(body).body))
        with pytest.raises(PermanentProviderError):
            provider.fetch_bars(
                find(provider), Interval.DAY, between("2021-01-01", "2021-01-02"), LATER
            )


def test_stamps_in_milliseconds_are_refused() -> None:
    """They would lie in the year 53000."""
    with pytest.raises(PermanentProviderError, match="another unit"):
        parse([[1609459200000, 1, 2, 1, 2, 3]])
