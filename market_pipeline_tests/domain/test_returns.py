"""Matrices of closes on their calendar's grid, and the windows horizons cut out of them."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.returns import (
    build_session_matrices,
    compute_mean_and_std,
    compute_period_rate,
    cut_windows,
)
from market_pipeline.domain.sessions import read_sessions

JANUARY = datetime(2024, 1, 1, tzinfo=UTC)


def bars_of(calendar: str, closes: list[float], market_id: int = 1) -> pd.DataFrame:
    """Build one daily bar for each session from 2024; NaN leaves a session out."""
    sessions = read_sessions(calendar, JANUARY, JANUARY + timedelta(days=900)).head(len(closes))
    frame = pd.DataFrame(
        {
            "market_id": market_id,
            "open_time": sessions["session_date"],
            "close_time": sessions["close_time"],
            "close": closes,
        }
    )
    return frame[frame["close"].notna()]


def test_a_weekend_is_no_hole_on_an_exchange_and_a_missing_session_is() -> None:
    """Friday and Monday are adjacent in New York; a return over a missing Thursday is left out."""
    closes = [10.0, 11.0, np.nan, 12.0, 15.0]  # 2, 3, 4, 5 and 8 January 2024
    (matrix,) = build_session_matrices(bars_of("XNYS", closes), {1: "XNYS"}, Interval.DAY)
    (window,) = cut_windows(matrix, [6])
    np.testing.assert_array_equal(matrix.closes, [closes])
    np.testing.assert_allclose(window.ratios, [[1.1, np.nan, np.nan, 1.25]])
    assert (window.n_returns.tolist(), window.n_missing.tolist()) == ([2], [1])


def test_every_market_ends_at_its_own_last_bar() -> None:
    """The last column of a window is each market's last close, however old."""
    bars = pd.concat([bars_of("24/7", [1.0, 2.0, 3.0, 4.0]), bars_of("24/7", [5.0, 6.0], 2)])
    (matrix,) = build_session_matrices(bars, {1: "24/7", 2: "24/7"}, Interval.DAY)
    (window,) = cut_windows(matrix, [1])
    np.testing.assert_array_equal(window.closes, [[3.0, 4.0], [5.0, 6.0]])


def test_markets_of_different_calendars_stand_on_different_grids() -> None:
    """One matrix for each calendar, in the order the calendars are first named."""
    bars = pd.concat([bars_of("24/7", [1.0] * 7, 5), bars_of("XNYS", [2.0] * 4, 3)])
    calendars = {5: "24/7", 3: "XNYS"}
    matrices = build_session_matrices(bars, calendars, Interval.DAY)
    assert [matrix.calendar for matrix in matrices] == ["24/7", "XNYS"]
    assert [matrix.closes.shape for matrix in matrices] == [(1, 7), (1, 4)]
    assert [matrix.annualisation_factor for matrix in matrices] == [365.0, 252.0]


def test_bars_beside_the_grid_and_impossible_closes_count_as_missing() -> None:
    """A bar on a Saturday is no session, and a price that is not a positive number is none."""
    bars = bars_of("24/7", [9.0, 10.0, -1.0, 0.0, np.inf, 8.0, 8.0, 11.0])  # Monday to Monday
    (matrix,) = build_session_matrices(bars, {1: "XNYS"}, Interval.DAY)
    np.testing.assert_array_equal(matrix.closes, [[10.0, np.nan, np.nan, np.nan, 11.0]])


def test_the_base_of_a_horizon_is_the_last_close_far_enough_back() -> None:
    """Seven days before Monday 8 January is a holiday: no base. On Tuesday the base is the 2nd."""
    closes = [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
    calendars = {1: "XNYS"}
    monday, tuesday = (
        cut_windows(build_session_matrices(bars, calendars, Interval.DAY)[0], [7])[0]
        for bars in (bars_of("XNYS", closes[:5]), bars_of("XNYS", closes))
    )
    assert (monday.has_base.tolist(), tuesday.has_base.tolist()) == ([False], [True])
    assert tuesday.base_close.tolist() == [10.0]


@pytest.mark.parametrize(("missing", "has_base"), [(4, True), (5, False)])
def test_a_base_far_behind_the_horizon_does_not_count(missing: int, has_base: bool) -> None:
    """With 30 days the base may lie up to four sessions further back, a seventh of the horizon."""
    closes = [1.0] * 10 + [np.nan] * missing + [1.0] * 30
    (matrix,) = build_session_matrices(bars_of("24/7", closes), {1: "24/7"}, Interval.DAY)
    (window,) = cut_windows(matrix, [30])
    assert window.has_base.tolist() == [has_base]


@pytest.mark.parametrize(
    ("calendar", "interval", "step", "factor"),
    [("24/7", Interval.HOUR, "1h", 8760.0), ("24/7", Interval.WEEK, "7D", 365 / 7)],
)
def test_hours_and_weeks_have_grids_of_their_own(
    calendar: str, interval: Interval, step: str, factor: float
) -> None:
    """Adjacent hours and weeks make returns as adjacent days do."""
    opens = pd.date_range(JANUARY, periods=5, freq=step, unit="us")
    bars = pd.DataFrame({"market_id": 1, "open_time": opens, "close": [1.0, 2.0, 4.0, 8.0, 16.0]})
    (matrix,) = build_session_matrices(bars.drop(index=1), {1: calendar}, interval)
    np.testing.assert_array_equal(matrix.closes, [[1.0, np.nan, 4.0, 8.0, 16.0]])
    assert matrix.annualisation_factor == factor


def test_an_exchange_hour_counts_the_bars_of_an_ordinary_session() -> None:
    """New York has seven hourly bars a session, also in a week with a half day."""
    opens = pd.DatetimeIndex(["2024-12-23T14:30Z", "2024-12-26T20:30Z"]).as_unit("us")
    bars = pd.DataFrame({"market_id": 1, "open_time": opens, "close": [1.0, 2.0]})
    (matrix,) = build_session_matrices(bars, {1: "XNYS"}, Interval.HOUR)
    assert matrix.annualisation_factor == 252 * 7
    assert len(matrix.grid) == 7 + 4 + 7


def test_a_market_without_bars_has_a_row_without_closes() -> None:
    """No bar at all is a window without a base."""
    (matrix,) = build_session_matrices(bars_of("24/7", []), {1: "24/7"}, Interval.DAY)
    (window,) = cut_windows(matrix, [30])
    assert (window.has_base.tolist(), window.n_returns.tolist()) == ([False], [0])


def test_a_market_without_a_calendar_is_refused() -> None:
    """A grid cannot be guessed."""
    with pytest.raises(ValueError, match="market 1 has bars but no calendar"):
        build_session_matrices(bars_of("24/7", [1.0]), {2: "24/7"}, Interval.DAY)


def test_mean_and_deviation_leave_missing_values_out() -> None:
    """1, 3 and 5 have mean 3 and standard deviation 2; one value has no deviation."""
    values = np.array([[1.0, np.nan, 3.0, 5.0], [np.nan, 7.0, np.nan, np.nan]])
    with np.errstate(invalid="ignore"):
        mean, std = compute_mean_and_std(values)
    np.testing.assert_array_equal(mean, [3.0, 7.0])
    np.testing.assert_array_equal(std, [2.0, np.nan])


def test_a_period_rate_compounds_to_the_annual_rate() -> None:
    """21 percent a year is 10 percent twice."""
    assert compute_period_rate(0.21, 2.0) == pytest.approx(0.1, rel=1e-15)
    assert compute_period_rate(0.0, 365.0) == 0.0
