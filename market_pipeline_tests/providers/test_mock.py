"""The mock provider: the same question has the same answer, and the answers look like a market."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from market_pipeline.domain.errors import PermanentProviderError, SettingError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window
from market_pipeline.providers.mock import MockProvider
from market_pipeline.providers.mock_prices import _build_walk

NOW = datetime(2024, 3, 15, 15, 47, 13, tzinfo=UTC)
DAY = timedelta(days=1)
KNOWN_CLOSES = [72366.7, 71382.85, 72632.28]


def find(symbol: str) -> Market:
    """Return the market of any symbol."""
    market = MockProvider({}).find_market(symbol)
    assert market is not None
    return market


def fetch(
    symbol: str, interval: Interval, days: float, now: datetime = NOW, seed: str = ""
) -> pd.DataFrame:
    """Return the bars of the days before a moment."""
    window = Window(now - timedelta(days=days), now)
    provider = MockProvider({"MOCK_SEED": seed})
    return provider.fetch_bars(find(symbol), interval, window, now).to_frame()


def test_known_prices_stay_known() -> None:
    """A change of the generator changes everybody's mock data, so it must be meant."""
    bars = fetch("BTC-USD", Interval.DAY, 3)
    assert bars["close"].round(2).tolist() == KNOWN_CLOSES


@pytest.mark.parametrize(
    ("symbol", "running_hour", "volume_24h", "change"),
    [
        (
            "BTC-USD",
            (73106.26, 73116.59, 72632.28, 72632.28, 23186.0),
            81735581513.16,
            0.0061370633,
        ),
        (
            "SPX",
            (4884.998, 4890.056, 4884.998, 4890.056, 194743870.0),
            2.122999372612e13,
            0.000458692,
        ),
    ],
)
def test_known_hours_and_prices_stay_known(
    symbol: str, running_hour: tuple[float, ...], volume_24h: float, change: float
) -> None:
    """Of a market around the clock, and of one with sessions."""
    newest = fetch(symbol, Interval.HOUR, 1).iloc[-1]
    assert tuple(newest[["open", "high", "low", "close", "volume"]]) == running_hour
    (snapshot,) = MockProvider({}).fetch_snapshots([find(symbol)], NOW)
    assert (snapshot.price, snapshot.observed_at) == (running_hour[3], NOW)
    assert snapshot.volume_24h == pytest.approx(volume_24h, rel=1e-6)
    assert snapshot.change_24h_ratio == pytest.approx(change, rel=1e-6)


@settings(max_examples=25)
@given(symbol=st.from_regex(r"[A-Z]{2,5}(-USD)?", fullmatch=True), block=st.integers(25, 80))
def test_a_walk_is_the_same_wherever_it_begins(symbol: str, block: int) -> None:
    """To the last bit: what lies before the days that were asked for is forgotten by then."""
    late, whole = _build_walk(7, symbol, block, block), _build_walk(7, symbol, 0, block)
    asked = slice(late.first_day, None)
    assert (late.log_close == whole.log_close[asked]).all()
    assert (late.volatility == whole.volatility[asked]).all()


@pytest.mark.parametrize("symbol", ["BTC-USD", "SPX", "FOO"])
@pytest.mark.parametrize("interval", [Interval.HOUR, Interval.DAY])
def test_overlapping_windows_agree(symbol: str, interval: Interval) -> None:
    """A bar does not depend on the window that asked for it."""
    many, few = fetch(symbol, interval, 400), fetch(symbol, interval, 9)
    pd.testing.assert_frame_equal(many.tail(len(few)).reset_index(drop=True), few)


@settings(max_examples=25)
@given(
    symbol=st.sampled_from(["BTC-USD", "SPX", "X1"]),
    hours=st.integers(0, 24 * 365 * 30),
    later=st.integers(1, 24 * 400),
)
@example(symbol="SPX", hours=261, later=1)  # 13 minutes after a last hour of 30 minutes
def test_final_bars_never_change(symbol: str, hours: int, later: int) -> None:
    """E6: what was final at one moment is the same at every later one."""
    before = datetime(1995, 1, 1, 0, 13, tzinfo=UTC) + timedelta(hours=hours)
    window = Window(before - 5 * DAY, before)
    provider, market = MockProvider({}), find(symbol)
    for interval in market.intervals:
        early = provider.fetch_bars(market, interval, window, before).to_frame()
        moment = before + timedelta(hours=later)
        late = provider.fetch_bars(market, interval, window, moment).to_frame()
        final = early[early["is_final"]]
        matching = late[late["open_time"].isin(final["open_time"])]
        pd.testing.assert_frame_equal(final.reset_index(drop=True), matching.reset_index(drop=True))


@pytest.mark.parametrize("symbol", ["BTC-USD", "SPX"])
def test_a_day_is_what_its_hours_add_up_to(symbol: str) -> None:
    """Open of the first, close of the last, extremes and sum; the running day too."""
    days = fetch(symbol, Interval.DAY, 40).set_index("open_time")
    hours = fetch(symbol, Interval.HOUR, 41)
    grouped = hours.groupby(hours["open_time"].dt.floor("D"))
    built = grouped.agg(
        {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    )
    pd.testing.assert_frame_equal(
        days[built.columns], built.loc[days.index], check_freq=False, check_exact=True
    )


def test_e4_the_running_bar_holds_what_has_happened() -> None:
    """Later in the hour a bar can only have grown; its open stays."""
    early = fetch("BTC-USD", Interval.HOUR, 1, NOW).iloc[-1]
    late = fetch("BTC-USD", Interval.HOUR, 1, NOW + timedelta(minutes=10)).iloc[-1]
    assert early["open_time"] == late["open_time"] == pd.Timestamp("2024-03-15T15:00", tz="UTC")
    assert not early["is_final"]
    assert not late["is_final"]
    assert early["open"] == late["open"]
    assert early["high"] <= late["high"]
    assert early["low"] >= late["low"]
    assert early["volume"] < late["volume"]


def test_spx_trades_in_its_sessions() -> None:
    """Hours begin at the open (14:30 or 13:30 UTC), the last is short; no weekends or holidays."""
    hours = fetch("SPX", Interval.HOUR, 30.5)
    by_date = hours.groupby(hours["open_time"].dt.date)["open_time"]
    assert set(by_date.min().dt.strftime("%H:%M")) == {"14:30", "13:30"}
    assert (hours["open_time"].dt.day_of_week < 5).all()
    assert hours["open_time"].dt.strftime("%m-%d").isin(["02-19"]).sum() == 0  # Presidents' Day
    closed = hours[hours["open_time"] < "2024-03-15"]
    lasts = closed.groupby(closed["open_time"].dt.date).last()
    assert set(lasts["close_time"].dt.strftime("%H:%M")) == {"21:00", "20:00"}
    assert ((lasts["close_time"] - lasts["open_time"]) == pd.Timedelta(minutes=30)).all()
    days = fetch("SPX", Interval.DAY, 30)
    assert (days["open_time"] == days["open_time"].dt.floor("D")).all()
    assert days["close_time"].iloc[-1] == pd.Timestamp("2024-03-15T20:00", tz="UTC")


def test_e12_a_half_day_ends_early() -> None:
    """The day after Thanksgiving has four hourly bars and closes at 18:00 UTC."""
    hours = fetch("SPX", Interval.HOUR, 1, datetime(2023, 11, 25, tzinfo=UTC))
    assert hours["open_time"].dt.strftime("%H:%M").tolist() == ["14:30", "15:30", "16:30", "17:30"]
    assert hours["close_time"].iloc[-1] == pd.Timestamp("2023-11-24T18:00", tz="UTC")


@pytest.mark.parametrize(("symbol", "low", "high"), [("BTC-USD", 2e4, 1.6e5), ("SPX", 3e3, 9e3)])
def test_prices_look_like_a_market(symbol: str, low: float, high: float) -> None:
    """Levels are plausible over decades; returns have fat tails and volatility that clusters."""
    closes = fetch(symbol, Interval.DAY, 30 * 365)["close"]
    returns = np.log(closes).diff().dropna()
    assert low < closes.min() < closes.max() < high
    assert returns.kurt() > 1.5
    assert returns.abs().autocorr(1) > 0.08
    assert abs(returns.autocorr(1)) < 0.06


def test_every_bar_is_possible() -> None:
    """E8: high and low enclose open and close, prices are positive, volumes not negative."""
    for symbol in ("BTC-USD", "SPX", "X9"):
        for interval in (Interval.HOUR, Interval.DAY):
            bars = fetch(symbol, interval, 700)
            assert (bars["high"] >= bars[["open", "close"]].max(axis=1)).all()
            assert (bars["low"] <= bars[["open", "close"]].min(axis=1)).all()
            assert (bars["low"] > 0).all()
            assert (bars["volume"] >= 0).all()
            assert bars["open_time"].is_monotonic_increasing
            assert bars["open_time"].is_unique


def test_the_seed_and_the_symbol_tell_markets_apart() -> None:
    """Two seeds, or two symbols, give two histories."""
    base = fetch("X1", Interval.DAY, 30)["close"]
    assert not base.equals(fetch("X2", Interval.DAY, 30)["close"])
    assert not base.equals(fetch("X1", Interval.DAY, 30, seed="8")["close"])
    assert base.equals(fetch("X1", Interval.DAY, 30, seed="7")["close"])


def test_a_snapshot_is_the_close_of_the_running_bar() -> None:
    """Price, bars and snapshot tell one story; a day's change compares with a day ago."""
    provider, market = MockProvider({}), find("BTC-USD")
    (snapshot,) = provider.fetch_snapshots([market], NOW)
    (before,) = provider.fetch_snapshots([market], NOW - DAY)
    assert snapshot.price == fetch("BTC-USD", Interval.HOUR, 1)["close"].iloc[-1]
    assert snapshot.observed_at == NOW
    assert snapshot.change_24h_ratio == pytest.approx(snapshot.price / before.price - 1)


def test_a_snapshot_of_a_closed_market_is_its_last_close() -> None:
    """On a Sunday the price is Friday's, and says so."""
    sunday = datetime(2024, 3, 17, 12, tzinfo=UTC)
    (snapshot,) = MockProvider({}).fetch_snapshots([find("SPX")], sunday)
    friday = fetch("SPX", Interval.DAY, 5, sunday).iloc[-1]
    assert (snapshot.price, snapshot.observed_at) == (friday["close"], friday["close_time"])


@pytest.mark.parametrize(
    "end", [datetime(1980, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC)]
)
def test_windows_before_its_history_or_far_ahead_are_answered(end: datetime) -> None:
    """No history before 1990; a clock decades ahead works."""
    bars = fetch("BTC-USD", Interval.DAY, 30, end)
    assert len(bars) == (0 if end.year < 1990 else 30)


def test_a_wrong_seed_is_a_wrong_setting() -> None:
    """The message names the variable, its value and what is accepted."""
    with pytest.raises(SettingError, match="MOCK_SEED='seven': expected a whole number"):
        MockProvider({"MOCK_SEED": "seven"})


def test_weeks_are_built_elsewhere() -> None:
    """The provider serves hours and days only."""
    with pytest.raises(PermanentProviderError, match="no bars of 1w"):
        fetch("BTC-USD", Interval.WEEK, 30)
