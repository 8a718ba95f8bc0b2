"""Binance, against its recorded answers."""

from typing import Any

import pandas as pd
import pytest

from market_pipeline.domain.errors import PermanentProviderError, TransientProviderError
from market_pipeline.domain.intervals import Interval
from market_pipeline.providers.binance import BinanceProvider, parse_tickers
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

YEAR = "binance/klines_btcusdt_1d_2019.json"
PAGES = ("binance/klines_btcusdt_1h_page1.json", "binance/klines_btcusdt_1h_page2.json")
PROVIDER = BinanceProvider({})


def make_provider(server: ReplayServer, fake_time: FakeTime) -> BinanceProvider:
    """Return a provider that asks the local server."""
    return BinanceProvider(server.environ, clocks=fake_time.clocks, limits=QUICK)


def parse(body: object, interval: Interval = Interval.DAY, now: str = "2026-01-01") -> pd.DataFrame:
    """Return the bars of an answer."""
    return PROVIDER.parse_bars(body, find(PROVIDER, "BTC-USDT"), interval, at(now))


def fetch(provider: BinanceProvider, start: str, end: str) -> pd.DataFrame:
    """Return the days of BTC-USDT."""
    return provider.fetch_bars(find(provider, "BTC-USDT"), Interval.DAY, between(start, end), LATER)


def test_a_recorded_year_is_365_days_with_their_trades() -> None:
    """2019-01-01 opened at 3701.23; 23741.687033 bitcoins in 154227 trades."""
    bars = parse(load_recording(YEAR))
    assert bars["open_time"].tolist() == pd.date_range("2019-01-01", periods=365, tz="UTC").tolist()
    names = ("open", "high", "low", "close", "volume", "trades")
    values = [bars.iloc[0][name] for name in names]
    assert values == [3701.23, 3810.16, 3642.0, 3797.14, 23741.687033, 154227]
    assert bars["is_final"].all()


def test_two_recorded_pages_are_joined_where_the_answer_was_cut(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """An answer is cut after 1,000 hours; the next page begins where it ended."""
    for name in PAGES:
        server.misbehave(answer_with(read_recording(name)))
    provider = make_provider(server, fake_time)
    window = between("2020-04-30T21:00", "2020-07-01T04:00")
    bars = provider.fetch_bars(find(provider, "BTC-USDT"), Interval.HOUR, window, LATER)
    assert len(bars) == 1468
    gaps = bars["open_time"][bars["open_time"].diff() > pd.Timedelta(hours=1)]
    assert gaps.tolist() == [pd.Timestamp("2020-06-28T05:00", tz="UTC")]  # an outage, recorded
    assert bars["open_time"].is_monotonic_increasing
    first, second = (request.query for request in server.requests)
    assert first["startTime"] == "1588280400000"
    assert (int(first["endTime"]) + 1, second["limit"]) == (int(second["startTime"]), "1000")
    assert second["startTime"] == "1591880400000"


@pytest.mark.parametrize(("second", "is_final"), [("59", False), ("60", True)])
def test_a_candle_is_final_a_minute_after_its_close(second: str, is_final: bool) -> None:
    """The recorded year's last day, a second before and then."""
    now = pd.Timestamp("2020-01-01T00:00:00") + pd.Timedelta(seconds=int(second))
    assert parse(load_recording(YEAR), now=str(now))["is_final"].tolist()[-1] is is_final


def test_candles_of_another_length_are_refused() -> None:
    """Days where hours were asked for would pass for the hours of midnight."""
    with pytest.raises(PermanentProviderError, match="asked for candles of 1h"):
        parse(load_recording(YEAR), Interval.HOUR)


def test_a_symbol_that_is_not_listed_is_said_with_the_cure(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """The recorded body of a 400 names the cause."""
    server.misbehave(answer_with(read_recording("binance/error_invalid_symbol_fapi_400.json"), 400))
    with pytest.raises(PermanentProviderError, match=r"symbol\.\. binance lists no BTC-USDT"):
        fetch(make_provider(server, fake_time), "2024-01-01", "2024-01-02")


def test_a_refused_location_is_said_plainly(server: ReplayServer, fake_time: FakeTime) -> None:
    """The recorded 451: another provider is the cure."""
    body = read_recording("binance/error_restricted_location_451.json")
    server.misbehave(answer_with(body, 451))
    with pytest.raises(PermanentProviderError, match="name another provider"):
        fetch(make_provider(server, fake_time), "2024-01-01", "2024-01-02")


def test_a_ban_is_waited_for_as_a_limit(server: ReplayServer, fake_time: FakeTime) -> None:
    """418 follows a 429 that was ignored; asking on would make it longer."""
    server.misbehave(answer_with(b"", 418, headers={"Retry-After": "180"}), times=9)
    provider = make_provider(server, fake_time)
    for said in ("binance has banned this address: wait, lower PROVIDER_CALLS", "pause"):
        with pytest.raises(TransientProviderError, match=said):
            fetch(provider, "2024-01-01", "2024-01-02")
    sent = len(server.requests)
    assert sent <= 3
    with pytest.raises(TransientProviderError, match="pause"):
        fetch(provider, "2024-01-01", "2024-01-02")
    assert len(server.requests) == sent


@pytest.mark.parametrize(("used", "pauses"), [("5400", 0), ("5401", 1), ("", 0), ("many", 0)])
def test_a_weight_nearly_used_up_makes_all_processes_pause(
    server: ReplayServer, fake_time: FakeTime, used: str, pauses: int
) -> None:
    """The header counts what other programs of the same address use, too."""
    server.misbehave(answer_with(read_recording(YEAR), headers={"X-MBX-USED-WEIGHT-1M": used}))
    provider = make_provider(server, fake_time)
    with use_limiter(CallCounter(UnlimitedCalls())) as counter:
        assert len(fetch(provider, "2019-01-01", "2020-01-01")) == 365
        assert isinstance(counter, CallCounter)
        assert counter.throttled == pauses


def test_the_budget_counts_calls_of_weight_two() -> None:
    """6,000 a minute are 3,000 calls; half of them are left to others."""
    assert PROVIDER.calls_per_minute == 1500


def test_a_recorded_ticker_is_price_volume_and_change() -> None:
    """The volume is in the quote currency; the time is the end of the rolling day."""
    body = load_recording("binance/ticker_24hr_btcusdt.json")
    (snapshot,) = parse_tickers([body], [find(PROVIDER, "BTC-USDT")])
    assert (snapshot.price, snapshot.volume_24h) == (6705.82, 392659910.6266075)
    assert snapshot.change_24h_ratio == pytest.approx(-0.02427)
    assert snapshot.observed_at == at("2020-04-15T22:54:38.494")


def test_twenty_prices_come_in_one_request(server: ReplayServer, fake_time: FakeTime) -> None:
    """The names are a JSON list; an answer may leave some out."""
    row: dict[str, Any] = load_recording("binance/ticker_24hr_btcusdt.json")
    server.misbehave(answer_with(make_json_reply([row | {"symbol": "ETHUSDT"}, row]).body))
    server.misbehave(answer_with(b"[]"))
    provider = make_provider(server, fake_time)
    markets = [find(provider, symbol) for symbol in provider.list_symbols()[:21]]
    found = [one.market.symbol for one in provider.fetch_snapshots(markets, LATER)]
    assert found == ["BTC-USDT", "ETH-USDT"]
    assert server.requests[0].query["symbols"].startswith('["BTCUSDT","ETHUSDT",')
    assert [request.query["symbols"].count(",") for request in server.requests] == [19, 0]
