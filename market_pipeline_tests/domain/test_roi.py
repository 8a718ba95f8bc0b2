"""ROI statistics, worked out by hand and held by properties."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.roi import MEASURES, ROI_COLUMNS, ROI_DTYPES, compute_roi_statistics
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.domain.volatility import compute_rolling_volatility

FIRST = datetime(2024, 1, 1, tzinfo=UTC)
ALWAYS = {1: "24/7"}
Prices = Sequence[float] | npt.NDArray[np.float64]


def bars_of(closes: Prices, market_id: int = 1) -> pd.DataFrame:
    """Build one always-open daily bar for each close; NaN leaves a day out."""
    opens = pd.date_range(FIRST, periods=len(closes), freq="D", unit="us")
    spans = {"open_time": opens, "close_time": opens + pd.Timedelta(days=1)}
    frame = pd.DataFrame({"market_id": market_id, **spans, "close": np.array(closes, dtype=float)})
    return frame[frame["close"].notna()]


def compute(closes: Prices, days: int, **options: float) -> dict[str, Any]:
    """Compute the one row of one market and horizon."""
    least: dict[str, Any] = {"min_returns": 2, **options}
    table = compute_roi_statistics(bars_of(closes), ALWAYS, Interval.DAY, [days], **least)
    return dict(table.to_dict("records")[0])


def at(day: int) -> pd.Timestamp:
    """Name the close of the n-th bar."""
    return pd.Timestamp(FIRST + timedelta(days=day + 1))


def test_every_measure_of_four_returns_by_hand() -> None:
    """Closes 100, 110, 99, 108.9, 98.01: returns +10, -10, +10, -10 percent."""
    row = compute([100.0, 110.0, 99.0, 108.9, 98.01], 4)
    assert row["roi"] == pytest.approx(-0.0199, rel=1e-12)
    assert row["annualised_volatility"] == pytest.approx(math.sqrt(0.04 / 3 * 365), rel=1e-12)
    assert row["realised_volatility"] == pytest.approx(
        math.log(1.1 / 0.9) / 2 * math.sqrt(4 / 3 * 365), rel=1e-12
    )
    assert row["sharpe"] == pytest.approx(0.0, abs=1e-12)
    assert row["sortino"] == pytest.approx(0.0, abs=1e-12)
    assert row["max_drawdown"] == pytest.approx(-0.109, rel=1e-12)
    assert (row["n_returns"], row["n_missing"], row["annualisation_factor"]) == (4, 0, 365.0)


def test_sharpe_and_sortino_by_hand() -> None:
    """Returns 4, -1, 3 percent: mean 2, deviation sqrt 7, downside sqrt(1/3), all in percent."""
    row = compute([100.0, 104.0, 102.96, 106.0488], 3)
    assert row["sharpe"] == pytest.approx(2 / math.sqrt(7) * math.sqrt(365), rel=1e-12)
    assert row["sortino"] == pytest.approx(2 * math.sqrt(3) * math.sqrt(365), rel=1e-12)


def test_risk_free_rate_and_mar_are_annual_and_compound() -> None:
    """A rate of 1.01^365 - 1 a year is one percent a day, and leaves its mark in the method."""
    daily_percent = 1.01**365 - 1
    row = compute(
        [100.0, 104.0, 102.96, 106.0488],
        3,
        risk_free_annual=daily_percent,
        mar_annual=daily_percent,
    )
    assert row["sharpe"] == pytest.approx(1 / math.sqrt(7) * math.sqrt(365), rel=1e-10)
    assert row["sortino"] == pytest.approx(1 / math.sqrt(4 / 3) * math.sqrt(365), rel=1e-10)
    assert row["method"] == f"simple;rf={daily_percent!r};mar={daily_percent!r};A=365;min=2"


def test_annualised_return_and_calmar_by_hand() -> None:
    """Twice the price after 73 days is 2^5 - 1 a year; half lost on the way is a Calmar of 62."""
    closes = [100.0, 50.0, *np.linspace(50.0, 200.0, 72)]
    row = compute(closes, 73)
    assert row["roi"] == 1.0
    assert row["annualised_return"] == pytest.approx(31.0, rel=1e-12)
    assert row["max_drawdown"] == -0.5
    assert row["calmar"] == pytest.approx(62.0, rel=1e-12)


def test_the_drawdown_names_its_peak_trough_and_recovery() -> None:
    """The peak is the last high before the deepest fall, the recovery the first close as high."""
    row = compute([10.0, 9.0, 12.0, 12.0, 6.0, 6.0, 11.0, 12.0, 13.0, 9.0], 9)
    assert row["max_drawdown"] == -0.5
    assert row["drawdown_peak_at"] == at(3)
    assert row["drawdown_trough_at"] == at(4)
    assert row["drawdown_recovered_at"] == at(7)


def test_a_drawdown_that_lasts_has_no_recovery() -> None:
    """A missing time says that the peak was not reached again."""
    row = compute([10.0, 12.0, 6.0, 11.0], 3)
    assert row["drawdown_trough_at"] == at(2)
    assert row["drawdown_recovered_at"] is pd.NaT


def test_a_rising_market_has_no_drawdown_and_says_so() -> None:
    """Zero drawdown is a fact; Calmar and Sortino have nothing to divide by."""
    row = compute([*(100.0 + n * n for n in range(31))], 30)
    assert row["max_drawdown"] == 0.0
    assert row["drawdown_peak_at"] is pd.NaT
    assert math.isnan(row["calmar"])
    assert math.isnan(row["sortino"])
    assert row["reasons"] == "sortino: no_downside; calmar: no_downside"


@pytest.mark.parametrize("growth", [1.0, 1.01, 0.99])
def test_equal_returns_have_no_variance(growth: float) -> None:
    """Rounding noise of steady growth is not volatility, and no Sharpe ratio comes of it."""
    row = compute([0.3 * growth**n for n in range(31)], 30)
    assert row["roi"] == pytest.approx(growth**30 - 1, rel=1e-12, abs=1e-12)
    for measure in ("annualised_volatility", "realised_volatility", "sharpe"):
        assert math.isnan(row[measure])
        assert f"{measure}: zero_variance" in row["reasons"]


def test_a_short_horizon_is_not_annualised() -> None:
    """A week's return to the power of 52 is no annual return."""
    row = compute([100.0, 101.0, 99.0, 100.0, 104.0, 100.0, 101.0, 102.0], 7)
    assert row["reasons"] == "annualised_return: short_horizon; calmar: short_horizon"
    assert row["roi"] == pytest.approx(0.02)


def test_a_return_too_large_for_a_year_is_left_out() -> None:
    """Growth that overflows a double when annualised gives a reason, not infinity."""
    row = compute([1.0, 0.5, *(2.0 * 1e9**n for n in range(29))], 30)
    assert math.isnan(row["annualised_return"])
    assert "annualised_return: out_of_range" in row["reasons"]
    assert row["roi"] > 1e250


def test_a_history_that_starts_inside_the_horizon_has_no_statistics() -> None:
    """Thirty returns are no ROI of a year, however many they are."""
    row = compute(np.linspace(100.0, 120.0, 31), 365)
    assert row["reasons"] == "insufficient_data"
    assert all(math.isnan(row[measure]) for measure in MEASURES)
    assert row["drawdown_peak_at"] is pd.NaT
    assert (row["n_returns"], row["as_of"], row["first_bar_at"]) == (30, at(30), at(0))


@pytest.mark.parametrize(("least", "reasons"), [(30, True), (31, False)])
def test_thirty_returns_need_thirty_one_closes(least: int, reasons: bool) -> None:
    """The base close is one more than the returns, and the least number of returns is enough."""
    closes = [100.0, 99.0] + [100.0 + n for n in range(29)]
    row = compute(closes, 30, min_returns=least)
    assert (row["reasons"] != "insufficient_data") is reasons
    assert row["n_returns"] == 30


def test_a_week_has_a_lower_bar_than_longer_horizons() -> None:
    """Six returns of seven are enough for a week, sixteen of thirty are too few for thirty days."""
    table = compute_roi_statistics(
        bars_of([100.0 + n % 3 for n in range(40)]).iloc[[0, *range(9, 19), *range(32, 40)]],
        ALWAYS,
        Interval.DAY,
        [7, 30],
    )
    assert table["reasons"].str.contains("insufficient").tolist() == [False, True]


def test_a_hole_is_left_out_and_counted() -> None:
    """Three days missing are one return missing; ROI and drawdown still see both sides."""
    row = compute([100.0, 110.0, np.nan, np.nan, np.nan, 55.0, 66.0], 6)
    assert (row["n_returns"], row["n_missing"]) == (2, 1)
    assert row["roi"] == pytest.approx(-0.34)
    assert row["max_drawdown"] == -0.5
    assert row["annualised_volatility"] == pytest.approx(math.sqrt(0.005 * 365), rel=1e-12)


def test_sessions_annualise_by_252_and_skip_weekends() -> None:
    """In New York 30 days before 15 February 2024 is Tuesday 16 January, 22 sessions earlier."""
    days = pd.bdate_range("2024-01-02", "2024-02-15", tz="UTC", unit="us")
    close = 100.0 + np.arange(len(days)) % 4
    frame = pd.DataFrame({"market_id": 1, "open_time": days, "close_time": days, "close": close})
    table = compute_roi_statistics(frame, {1: "XNYS"}, Interval.DAY, [30])
    assert table["annualisation_factor"].tolist() == [252.0]
    assert table["first_bar_at"].tolist() == [pd.Timestamp("2024-01-16", tz="UTC")]
    assert (table["n_returns"].tolist(), table["n_missing"].tolist()) == ([22], [0])


def test_there_is_one_row_per_market_and_horizon_in_order() -> None:
    """Markets of different calendars come by their id, horizons as asked for."""
    bars = pd.concat([bars_of([1.0] * 9, market) for market in (3, 1, 2)])
    calendars = {3: "24/7", 1: "XNYS", 2: "24/7", 9: "24/7"}
    table = compute_roi_statistics(bars, calendars, Interval.DAY, [30, 7])
    assert list(zip(table["market_id"], table["horizon"], strict=True)) == [
        (1, "30d"), (1, "7d"), (2, "30d"), (2, "7d"), (3, "30d"), (3, "7d"),
    ]  # fmt: skip
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == dict(ROI_DTYPES)


def test_no_bars_give_no_rows() -> None:
    """The empty table has its columns and dtypes."""
    table = compute_roi_statistics(bars_of([]), ALWAYS, Interval.DAY, [30])
    assert tuple(table.columns) == ROI_COLUMNS
    assert table.empty


prices = st.lists(st.floats(0.5, 2.0), min_size=61, max_size=61)
HORIZON = 60


@settings(max_examples=40, deadline=None)
@given(prices, st.floats(1e-6, 1e6))
def test_scaling_prices_changes_nothing(closes: list[float], scale: float) -> None:
    """Statistics do not depend on the unit of the currency."""
    row = compute(closes, HORIZON)
    scaled = compute([scale * close for close in closes], HORIZON)
    assert str(row["reasons"]) == str(scaled["reasons"])
    for measure in MEASURES:
        assert scaled[measure] == pytest.approx(row[measure], rel=1e-6, abs=1e-9, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(prices, prices, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(
    one: list[float], two: list[float], shuffle: Random
) -> None:
    """Bars may come in any order."""
    bars = pd.concat([bars_of(one, 1), bars_of(two, 2)], ignore_index=True)
    mixed = bars.iloc[shuffle.sample(range(len(bars)), len(bars))]
    calendars = {1: "24/7", 2: "24/7"}
    tables = [
        compute_roi_statistics(frame, calendars, Interval.DAY, [30, 60]) for frame in (bars, mixed)
    ]
    pd.testing.assert_frame_equal(*tables)


@settings(max_examples=40, deadline=None)
@given(prices)
def test_two_halves_make_the_whole(closes: list[float]) -> None:
    """ROI multiplies, and no part falls further than the whole."""
    whole = compute(closes, 60)
    parts = [compute(closes[:31], 30), compute(closes, 30)]
    product = math.prod(1 + part["roi"] for part in parts)
    assert 1 + whole["roi"] == pytest.approx(product, rel=1e-12)
    assert whole["max_drawdown"] <= min(part["max_drawdown"] for part in parts)


wild = st.one_of(
    st.just(1.0), st.floats(), st.floats(1e-300, 1e300), st.sampled_from([5e-324, 1.7e308, 1e-12])
)


@settings(max_examples=80, deadline=None)
@given(st.lists(wild, min_size=1, max_size=45), st.sampled_from([1, 7, 30, 40]))
def test_e15_what_is_missing_has_a_reason_and_nothing_is_infinite(
    closes: list[float], days: int
) -> None:
    """However degenerate the input, each measure is a number, or NaN with its reason."""
    table = compute_roi_statistics(bars_of(closes), ALWAYS, Interval.DAY, [days], min_returns=2)
    for row in table.to_dict("records"):
        for measure in MEASURES:
            assert not math.isinf(row[measure])
            explained = row["reasons"] == "insufficient_data" or f"{measure}: " in str(
                row["reasons"]
            )
            assert explained == math.isnan(row[measure])
        assert math.isnan(row["max_drawdown"]) or -1 <= row["max_drawdown"] <= 0


@pytest.mark.parametrize(
    ("days", "missing", "is_enough"), [(30, 6, True), (30, 7, False), (7, 0, True), (7, 2, False)]
)
def test_four_fifths_of_what_the_calendar_expects_are_needed(
    days: int, missing: int, is_enough: bool
) -> None:
    """Of thirty returns twenty-four, of seven six; a hole costs one return more than its days."""
    closes = np.array([100.0 + n % 5 for n in range(days + 1)])
    closes[3 : 3 + missing - 1] = np.nan
    table = compute_roi_statistics(bars_of(closes), ALWAYS, Interval.DAY, [days])
    assert table["n_returns"].tolist() == [days - missing]
    assert (table["reasons"][0] != "insufficient_data") is is_enough
    assert table["method"].tolist() == ["simple;rf=0;mar=0;A=365;min=0.8/5"]


def test_a_number_that_is_set_counts_instead() -> None:
    """Ten returns of thirty are enough where ten are asked for; the method says so."""
    closes = [100.0, *[np.nan] * 19, *(100.0 + n % 5 for n in range(11))]
    table = compute_roi_statistics(
        bars_of(closes), ALWAYS, Interval.DAY, [30], risk_free_annual=0.0412345678, min_returns=10
    )
    assert table["n_returns"].tolist() == [10]
    assert table["sharpe"].notna().all()
    assert table["method"].tolist() == ["simple;rf=0.0412345678;mar=0;A=365;min=10"]


@pytest.mark.parametrize(("calendar", "before"), [("XNYS", 0.02), ("XSHG", 0.2), ("XTKS", 0.1)])
def test_holidays_do_not_take_a_complete_market_its_month(calendar: str, before: float) -> None:
    """Over all sessions of eight years every 30d statistic is there; twenty returns were not."""
    sessions = read_sessions(calendar, FIRST - timedelta(days=2922), FIRST)
    closes = np.exp(np.cumsum(np.random.default_rng(3).normal(0, 0.01, len(sessions))))
    spans = {"open_time": sessions["session_date"], "close_time": sessions["close_time"]}
    bars = pd.DataFrame({"market_id": 1, **spans, "close": closes})
    options: Any = (bars, 1, calendar, Interval.DAY, 30)
    rolled = compute_rolling_volatility(*options).iloc[30:]
    old = compute_rolling_volatility(*options, min_returns=20).iloc[30:]
    assert rolled["reason"].isna().all()
    assert old["reason"].notna().mean() > before


def test_a_row_does_not_depend_on_the_other_markets() -> None:
    """To the last bit: a longer or older history beside it changes no sum."""
    draws = np.random.default_rng(5)
    walks = np.exp(np.cumsum(draws.normal(0, 0.03, (4, 500)), axis=1))
    walks[1, :130] = walks[2, 400:] = walks[3, 60:90] = np.nan
    bars = pd.concat([bars_of(list(walk), n) for n, walk in enumerate(walks)])
    calendars = dict.fromkeys(range(4), "24/7")
    horizons = [7, 30, 365]
    together = compute_roi_statistics(bars, calendars, Interval.DAY, horizons)
    alone = [
        compute_roi_statistics(bars[bars["market_id"] == n], {n: "24/7"}, Interval.DAY, horizons)
        for n in range(4)
    ]
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True), check_exact=True)


def test_a_row_names_the_newest_version_of_its_own_window() -> None:
    """A bar before the base close, or of another market, does not count."""
    bars = bars_of([100.0 + n % 5 for n in range(60)]).assign(dataset_version=2)
    bars.iloc[3, bars.columns.get_loc("dataset_version")] = 9  # type: ignore[index]
    bars.iloc[55, bars.columns.get_loc("dataset_version")] = 4  # type: ignore[index]
    table = compute_roi_statistics(bars, ALWAYS, Interval.DAY, [3, 30, 59])
    assert table["dataset_version"].tolist() == [2, 4, 9]
