"""Comparisons of two markets, worked out by hand and against plain pandas."""

import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.domain import comparisons
from market_pipeline.domain.comparisons import COMPARISON_COLUMNS, MEASURES, compute_comparisons
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.sessions import read_sessions

JANUARY = datetime(2024, 1, 1, tzinfo=UTC)
WAVE = [100.0 + n * (n % 3) for n in range(60)]
RIPPLE = [50.0 + n * (n % 4) for n in range(60)]


def bars_of(
    market_id: int, closes: list[float], calendar: str = "24/7", volume: float = 1.0
) -> pd.DataFrame:
    """Build one daily bar for each session from 2024; NaN leaves a session out."""
    sessions = read_sessions(calendar, JANUARY, JANUARY + timedelta(days=300)).head(len(closes))
    spans = {"open_time": sessions["session_date"], "close_time": sessions["close_time"]}
    frame = pd.DataFrame({"market_id": market_id, **spans, "close": closes, "volume": volume})
    return frame[frame["close"].notna()]


def markets_of(*calendars: str, quotes: tuple[str, ...] = ()) -> pd.DataFrame:
    """Describe markets 1, 2, 3 .. by their calendars; quoted in USD unless said."""
    ids = range(1, len(calendars) + 1)
    currencies = quotes or ("USD",) * len(calendars)
    return pd.DataFrame({"market_id": ids, "quote": currencies, "calendar": calendars})


def compare(one: pd.DataFrame, two: pd.DataFrame, days: int, **least: int) -> dict[str, Any]:
    """Compare two always-open markets over one horizon."""
    bars, markets = pd.concat([one, two]), markets_of("24/7", "24/7")
    minimum = {"min_returns": 2, **least}
    table = compute_comparisons(bars, markets, Interval.DAY, [days], **minimum)
    return dict(table.to_dict("records")[0])


def test_every_measure_of_a_pair_by_hand() -> None:
    """Returns 10, -10, 20 and 20, -20, 40 percent move as one; volumes and prices have ratios."""
    one = bars_of(1, [100.0, 110.0, 99.0, 118.8], volume=6.0)
    two = bars_of(2, [10.0, 12.0, 9.6, 13.44], volume=4.0)
    row = compare(one, two, 3)
    assert row["price_ratio"] == pytest.approx(118.8 / 13.44, rel=1e-15)
    assert row["volume_ratio"] == 1.5
    assert row["roi_spread"] == pytest.approx(0.188 - 0.344, rel=1e-12)
    assert row["correlation"] == pytest.approx(1.0, rel=1e-12)
    assert row["as_of"] == pd.Timestamp("2024-01-05", tz="UTC")
    assert (row["n_returns"], row["close_skew_seconds"]) == (3, 0.0)
    assert (row["base_market_id"], row["quote_market_id"]) == (1, 2)
    assert pd.isna(row["reason"])


def test_a_hole_in_either_market_is_left_out_of_both() -> None:
    """Only returns with all four closes count; the wild return over the hole does not."""
    hole = [*WAVE[:40], math.nan, *WAVE[41:]]
    row = compare(bars_of(1, hole), bars_of(2, RIPPLE), 50)
    returns = np.array([[b / a - 1 for a, b in pairwise(closes)] for closes in (hole, RIPPLE)])
    joined = returns[:, 9:][:, np.isfinite(returns[0, 9:])]
    assert row["n_returns"] == 48
    assert row["correlation"] == pytest.approx(np.corrcoef(joined)[0, 1], rel=1e-12)


def test_an_always_open_market_meets_an_exchange_on_its_sessions() -> None:
    """Between BTC and SPX a return runs from session to session, weekends included in one step."""
    bars = pd.concat([bars_of(1, WAVE), bars_of(2, RIPPLE[:40], "XNYS")])
    table = compute_comparisons(bars, markets_of("24/7", "XNYS"), Interval.DAY, [30])
    row = table.to_dict("records")[0]
    wide = bars.pivot_table(index="open_time", columns="market_id", values="close").dropna()
    wide = wide.loc["2024-01-29":"2024-02-28"]  # type: ignore[misc]
    returns = wide.pct_change().iloc[1:]
    assert row["n_returns"] == len(returns) == 21
    assert row["correlation"] == pytest.approx(returns[1].corr(returns[2]), rel=1e-12)
    assert row["roi_spread"] == pytest.approx((wide.iloc[-1] / wide.iloc[0]).diff().mul(-1)[2])
    assert row["close_skew_seconds"] == 3 * 3600
    assert row["as_of"] == pd.Timestamp("2024-02-29", tz="UTC")


def test_closes_too_far_apart_are_not_compared() -> None:
    """Tokyo closes 18 hours before midnight UTC: a reason, the skew, and no numbers."""
    bars = pd.concat([bars_of(1, WAVE[:40], "XTKS"), bars_of(2, WAVE)])
    table = compute_comparisons(bars, markets_of("XTKS", "24/7"), Interval.DAY, [30])
    row = table.to_dict("records")[0]
    assert row["reason"] == "close_skew"
    assert row["close_skew_seconds"] == -18 * 3600
    assert all(math.isnan(row[measure]) for measure in MEASURES)


@pytest.mark.parametrize(("hours", "reason"), [(2, "close_skew"), (3, None)])
def test_the_skew_limit_itself_is_allowed(hours: int, reason: str | None) -> None:
    """New York closes three hours before midnight in winter: a limit of three hours lets it in."""
    bars = pd.concat([bars_of(1, WAVE), bars_of(2, WAVE[:40], "XNYS")])
    table = compute_comparisons(
        bars, markets_of("24/7", "XNYS"), Interval.DAY, [30], max_skew=timedelta(hours=hours)
    )
    assert table["reason"].astype(object).where(table["reason"].notna(), None).tolist() == [reason]


def test_different_quote_currencies_are_not_compared() -> None:
    """A ratio of dollars to euros is no ratio of markets."""
    bars = pd.concat([bars_of(1, WAVE), bars_of(2, RIPPLE)])
    markets = markets_of("24/7", "24/7", quotes=("USD", "EUR"))
    row = compute_comparisons(bars, markets, Interval.DAY, [30]).to_dict("records")[0]
    assert row["reason"] == "quote_currency_differs"
    assert all(math.isnan(row[measure]) for measure in MEASURES)


def test_too_few_joined_returns_leave_only_the_price_ratio() -> None:
    """Prices of one day have a ratio whatever the history."""
    row = compare(bars_of(1, WAVE), bars_of(2, RIPPLE), 30, min_returns=31)
    assert row["reason"] == "insufficient_data"
    assert row["price_ratio"] == pytest.approx(WAVE[-1] / RIPPLE[-1])
    assert all(math.isnan(row[measure]) for measure in MEASURES[1:])


def test_a_history_shorter_than_the_horizon_is_insufficient() -> None:
    """Sixty closes do not reach 90 days back."""
    row = compare(bars_of(1, WAVE), bars_of(2, RIPPLE), 90)
    assert (row["reason"], row["n_returns"]) == ("insufficient_data", 59)


def test_a_market_that_does_not_vary_has_no_correlation() -> None:
    """Equal steps give a reason; the other measures stand."""
    steady = [0.1 * 1.01**n for n in range(60)]
    row = compare(bars_of(1, steady), bars_of(2, RIPPLE), 30)
    assert row["reason"] == "zero_variance"
    assert math.isnan(row["correlation"])
    assert row["roi_spread"] == pytest.approx(1.01**30 - RIPPLE[59] / RIPPLE[29])


def test_markets_that_never_met_have_a_row_without_a_time() -> None:
    """Without a joined date there is nothing to compare, and no as_of."""
    early, late = [*WAVE[:20], *[math.nan] * 40], [*[math.nan] * 20, *WAVE[:40]]
    row = compare(bars_of(1, early), bars_of(2, late), 30)
    assert row["as_of"] is pd.NaT
    assert (row["reason"], row["n_returns"]) == ("insufficient_data", 0)


def test_a_market_without_bars_is_insufficient_in_any_calendar() -> None:
    """The other market's bars are not enough, and nothing raises."""
    markets = markets_of("24/7", "24/7", "XNYS", "XNYS")
    table = compute_comparisons(bars_of(1, WAVE), markets, Interval.DAY, [30])
    assert table["reason"].tolist() == ["insufficient_data"] * 6
    assert table["as_of"].isna().all()


def test_numbers_beyond_a_double_have_a_reason() -> None:
    """A price ratio that overflows is left out, and the correlation still stands."""
    tiny = [close * 1e-320 for close in WAVE]
    row = compare(bars_of(1, [close * 1e300 for close in RIPPLE]), bars_of(2, tiny), 30)
    assert row["reason"] == "out_of_range"
    assert math.isnan(row["price_ratio"])
    assert -1 <= row["correlation"] <= 1


def test_volumes_count_where_both_are_known() -> None:
    """A date with one volume unknown counts for neither; none known or zero gives no ratio."""
    one, two = bars_of(1, WAVE, volume=8.0), bars_of(2, RIPPLE, volume=2.0)
    one.loc[one.index[50], "volume"] = math.nan
    two.loc[two.index[50], "volume"] = 1e9
    assert compare(one, two, 30)["volume_ratio"] == 4.0
    assert math.isnan(compare(one, two.assign(volume=0.0), 30)["volume_ratio"])
    assert math.isnan(compare(one, two.assign(volume=math.nan), 30)["volume_ratio"])
    without = compare(one.drop(columns="volume"), two.drop(columns="volume"), 30)
    assert math.isnan(without["volume_ratio"])
    assert pd.isna(without["reason"])


def test_every_unordered_pair_comes_once_in_market_order() -> None:
    """The base is the market named first, horizon after horizon."""
    bars = pd.concat([bars_of(market, WAVE) for market in (1, 2, 3)])
    markets = markets_of("24/7", "24/7", "24/7").iloc[[2, 0, 1]]
    table = compute_comparisons(bars, markets, Interval.DAY, [7, 30])
    pairs = list(zip(table["base_market_id"], table["quote_market_id"], strict=True))
    assert pairs == [(3, 1), (3, 2), (1, 2)] * 2
    assert table["horizon"].astype(str).tolist() == ["7d"] * 3 + ["30d"] * 3
    assert tuple(table.columns) == COMPARISON_COLUMNS


def test_given_pairs_keep_their_direction() -> None:
    """Benchmarks are compared as asked, and an unknown market is refused."""
    bars = pd.concat([bars_of(1, WAVE), bars_of(2, RIPPLE)])
    markets = markets_of("24/7", "24/7")
    table = compute_comparisons(bars, markets, Interval.DAY, [30], np.array([[2, 1]]))
    assert table["price_ratio"].tolist() == [RIPPLE[-1] / WAVE[-1]]
    with pytest.raises(ValueError, match="market 5"):
        compute_comparisons(bars, markets, Interval.DAY, [30], np.array([[5, 1]]))


@pytest.mark.parametrize("n_markets", [0, 1])
def test_fewer_than_two_markets_make_no_pair(n_markets: int) -> None:
    """The empty table has its columns."""
    markets = markets_of("24/7").head(n_markets)
    table = compute_comparisons(bars_of(1, WAVE).head(60 * n_markets), markets, Interval.DAY, [30])
    assert table.empty
    assert tuple(table.columns) == COMPARISON_COLUMNS


def test_weeks_join_across_calendars_by_their_monday() -> None:
    """A weekly bar of New York meets one of an always-open market, two hours and two days apart."""
    mondays = pd.date_range(JANUARY, periods=60, freq="7D", unit="us")
    weeks = pd.DataFrame({"open_time": mondays, "close": WAVE})
    one = weeks.assign(market_id=1, close_time=mondays + pd.Timedelta(days=7))
    two = weeks.assign(market_id=2, close_time=mondays + pd.Timedelta(days=4, hours=21))
    row = compute_comparisons(
        pd.concat([one, two]), markets_of("24/7", "XNYS"), Interval.WEEK, [365],
        max_skew=timedelta(days=3),
    ).to_dict("records")[0]  # fmt: skip
    assert row["correlation"] == pytest.approx(1.0, rel=1e-12)
    assert row["n_returns"] == 53
    assert row["close_skew_seconds"] == (2 * 24 + 3) * 3600


def model_correlation(one: npt.NDArray[np.float64], two: npt.NDArray[np.float64]) -> float:
    """Correlate the joined returns of two rows the plain way."""
    returns = np.array([row[1:] / row[:-1] - 1 for row in (one, two)])
    return float(np.corrcoef(returns[:, np.isfinite(returns).all(axis=0)])[0, 1])


@pytest.mark.parametrize("block", [7, 60_000])
def test_many_pairs_agree_with_one_by_one(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and matrix products give what a loop over pairs gives, with holes and late ends."""
    monkeypatch.setattr(comparisons, "_BLOCK_PAIRS", block)
    rng = np.random.default_rng(7)
    closes = np.exp(np.cumsum(rng.normal(0, 0.03, (9, 60)), axis=1))
    closes[rng.random(closes.shape) < 0.04] = np.nan
    closes[2, 55:] = np.nan
    closes[4] = np.exp(np.cumsum(rng.normal(0, 0.03, 60)))
    bars = pd.concat([bars_of(n + 1, list(row)) for n, row in enumerate(closes)])
    markets = markets_of(*["24/7"] * 9)
    table = compute_comparisons(bars, markets, Interval.DAY, [40], min_returns=2)
    assert len(table) == 36
    for row in table.to_dict("records"):
        one, two = closes[row["base_market_id"] - 1], closes[row["quote_market_id"] - 1]
        joined = np.flatnonzero(np.isfinite(one) & np.isfinite(two))
        last = joined[-1]
        base = joined[joined <= last - 40][-1]
        span = slice(base, last + 1)
        spread = one[last] / one[base] - two[last] / two[base]
        assert row["correlation"] == pytest.approx(
            model_correlation(one[span], two[span]), rel=1e-10
        )
        assert row["roi_spread"] == pytest.approx(spread, rel=1e-12)
        assert row["price_ratio"] == one[last] / two[last]


wild = st.one_of(st.just(1.0), st.floats(), st.floats(1e-300, 1e300))
tame = st.floats(0.5, 2.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(wild, wild), min_size=1, max_size=12), st.integers(1, 8))
def test_e15_what_is_missing_has_a_reason_and_nothing_is_infinite(
    closes: list[tuple[float, float]], days: int
) -> None:
    """However degenerate the input, a measure is a number, or NaN in a row with a reason."""
    one, two = (bars_of(n + 1, [pair[n] for pair in closes]) for n in (0, 1))
    row = compare(one, two, days)
    for measure in ("price_ratio", "roi_spread", "correlation"):
        assert math.isfinite(row[measure]) or isinstance(row["reason"], str)
        assert not math.isinf(row[measure])
    assert math.isnan(row["correlation"]) or -1 <= row["correlation"] <= 1


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(tame, tame), min_size=31, max_size=31),
    st.floats(1e-3, 1e3),
    st.randoms(use_true_random=False),
)
def test_scaling_a_market_and_shuffling_rows_changes_no_correlation(
    closes: list[tuple[float, float]], scale: float, shuffle: Random
) -> None:
    """Neither the unit of a price nor the order of rows matters."""
    one, two = (bars_of(n + 1, [pair[n] for pair in closes]) for n in (0, 1))
    plain = compare(one, two, 30)
    scaled = one.assign(close=one["close"] * scale)
    changed = compare(scaled.sample(frac=1, random_state=shuffle.randrange(99)), two, 30)
    for measure in ("correlation", "roi_spread", "volume_ratio"):
        assert changed[measure] == pytest.approx(plain[measure], abs=1e-9, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(tame, tame), min_size=31, max_size=31))
def test_swapping_base_and_quote_mirrors_the_row(closes: list[tuple[float, float]]) -> None:
    """Ratios invert, the spread changes its sign, the correlation stays."""
    bars = pd.concat([bars_of(n + 1, [pair[n] for pair in closes]) for n in (0, 1)])
    pairs = np.array([[1, 2], [2, 1]])
    table = compute_comparisons(bars, markets_of("24/7", "24/7"), Interval.DAY, [30], pairs)
    there, back = table.to_dict("records")
    assert there["price_ratio"] * back["price_ratio"] == pytest.approx(1.0)
    assert there["roi_spread"] == pytest.approx(-back["roi_spread"])
    assert there["correlation"] == pytest.approx(back["correlation"], nan_ok=True)


def make_walks(n_markets: int, n_days: int) -> pd.DataFrame:
    """Return bars of random walks with holes, late starts and early ends."""
    draws = np.random.default_rng(11)
    closes = np.exp(np.cumsum(draws.normal(0, 0.03, (n_markets, n_days)), axis=1))
    closes[1, 10:12] = closes[2, -3:] = closes[3, :20] = np.nan
    return pd.concat([bars_of(n + 1, list(row), volume=n + 0.1) for n, row in enumerate(closes)])


def test_a_row_does_not_depend_on_what_else_is_compared() -> None:
    """To the last bit: neither other pairs nor their histories change a sum."""
    bars = make_walks(7, 120)
    bars.loc[bars["market_id"] == 5, "volume"] = math.nan
    together = compute_comparisons(bars, markets_of(*["24/7"] * 7), Interval.DAY, [7, 30, 90])
    for base, quote in [(1, 2), (2, 3), (3, 4), (5, 6), (6, 7)]:
        markets = markets_of(*["24/7"] * 7).iloc[[base - 1, quote - 1]]
        chosen = bars[bars["market_id"].isin([base, quote])]
        alone = compute_comparisons(chosen, markets, Interval.DAY, [7, 30, 90])
        rows = together.query("base_market_id == @base and quote_market_id == @quote")
        for name in COMPARISON_COLUMNS:
            assert rows[name].astype(str).tolist() == alone[name].astype(str).tolist(), name


def test_the_newest_version_is_that_of_the_joined_dates_of_both() -> None:
    """A weekend of the coin, the time before the base could lie, and what came later count not."""
    one = bars_of(1, [100.0 + n % 5 for n in range(60)]).assign(dataset_version=2)
    two = bars_of(2, [50.0 + n % 4 for n in range(40)], "XNYS").assign(dataset_version=3)
    days = one["open_time"].dt.strftime("%Y-%m-%d")
    markets = markets_of("24/7", "XNYS")

    def find_version(day: str) -> list[int]:
        bars = pd.concat([one.assign(dataset_version=np.where(days == day, 9, 2)), two])
        return compute_comparisons(bars, markets, Interval.DAY, [30])["dataset_version"].tolist()

    assert find_version("2024-02-20") == [9]
    for saturday_or_early in ("2024-02-17", "2024-01-10"):
        assert find_version(saturday_or_early) == [3]


def test_the_joined_calendar_says_how_many_returns_are_expected() -> None:
    """Twenty-one joined sessions in thirty days: seventeen returns are enough, sixteen are not."""
    one, two = bars_of(1, WAVE), bars_of(2, RIPPLE[:40], "XNYS")
    markets = markets_of("24/7", "XNYS")
    for missing, reason in ((3, None), (4, "insufficient_data")):
        bars = pd.concat([one, two.drop(index=two.index[25 : 25 + missing])])
        row = compute_comparisons(bars, markets, Interval.DAY, [30]).to_dict("records")[0]
        assert row["n_returns"] == 21 - missing - 1
        assert (None if pd.isna(row["reason"]) else row["reason"]) == reason
        assert row["method"] == "simple;skew=21600;min=0.8/5"
        assert row["first_bar_at"] == pd.Timestamp("2024-01-29T21:00Z")
