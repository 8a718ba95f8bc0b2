"""Where the windows of statistics begin, and which rows have a newer bar in theirs."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.domain.freshness import TrackedSeries, find_delay
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.outdated import find_outdated, find_range_maxima, locate_windows
from market_pipeline.domain.records import Window
from market_pipeline.domain.returns import (
    build_session_matrices,
    build_times,
    cut_windows,
    fill_gaps,
    find_reach,
    read_microseconds,
)
from market_pipeline.domain.sessions import read_sessions

MAY = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize("calendar", ["24/7", "XNYS", "XSHG", "XSAU"])
@pytest.mark.parametrize("days", [1, 7, 30, 365])
def test_nothing_before_the_reach_changes_a_window(calendar: str, days: int) -> None:
    """Without the bars between, the bar at the reach is the base; one that is earlier is not."""
    sessions = read_sessions(calendar, MAY - timedelta(days=900), MAY)
    bars = pd.DataFrame(
        {
            "market_id": 1,
            "open_time": sessions["session_date"],
            "close": np.arange(len(sessions)) + 1.0,
        }
    )
    last = bars["open_time"].iloc[-1].to_pydatetime()
    reach = find_reach(frozenset([calendar]), Interval.DAY, last, days)
    inside = bars["open_time"] > last - timedelta(days=days)
    for offset, has_base in ((0, True), (-1, False)):
        at = int(np.flatnonzero(bars["open_time"] == reach)[0]) + offset
        chosen = pd.concat([bars.iloc[[at]], bars[inside]])
        (matrix,) = build_session_matrices(chosen, {1: calendar}, Interval.DAY)
        assert cut_windows(matrix, [days])[0].has_base.tolist() == [has_base]


def test_the_reach_of_a_pair_counts_joined_days() -> None:
    """Riyadh is closed on Fridays, New York on Sundays: four days a week are joined."""
    both = find_reach(frozenset(["XSAU", "XNYS"]), Interval.DAY, MAY, 365)
    assert both < find_reach(frozenset(["XNYS"]), Interval.DAY, MAY, 365)
    assert (MAY - both).days > 365 + 52 * 7 / 4


def test_a_horizon_longer_than_any_calendar_reaches_beyond_it() -> None:
    """A century before 2024 there are no sessions to count; the reach is still a time."""
    assert find_reach(frozenset(["XNYS"]), Interval.DAY, MAY, 36_525).year < 1924


def test_gaps_are_the_places_that_a_calendar_expects() -> None:
    """Weekends are none; a bar beside the calendar keeps its place."""
    friday = datetime(2024, 5, 3, tzinfo=UTC)
    days = [friday + timedelta(days=n) for n in (0, 1, 4)]  # a Saturday, and Monday left out
    opens = read_microseconds(pd.Series(days, dtype="datetime64[us, UTC]"))
    at, place = fill_gaps(["XNYS"], Interval.DAY, opens)
    assert [moment.day for moment in build_times(at)] == [3, 4, 6, 7]
    assert place.tolist() == [0, 1, 3]
    assert [len(part) for part in fill_gaps(["XNYS"], Interval.DAY, opens[:0])] == [0, 0]


@given(st.lists(st.integers(-5, 99), min_size=1, max_size=40), st.data())
def test_range_maxima_are_those_of_slices(values: list[int], data: st.DataObject) -> None:
    """Every range, of one place as of all."""
    first = data.draw(st.integers(0, len(values) - 1))
    last = data.draw(st.integers(first, len(values) - 1))
    found = find_range_maxima(np.array(values), np.array([first, 0]), np.array([last, last]))
    assert found.tolist() == [max(values[first : last + 1]), max(values[: last + 1])]


def test_a_row_is_outdated_by_a_newer_bar_of_its_own_window() -> None:
    """Not by one before its base, after its last, or of its own version."""
    close = [MAY + timedelta(days=n) for n in (1, 1, 2)]
    rows = pd.DataFrame(
        {
            "as_of": pd.DatetimeIndex(close),
            "horizon": ["7d", "30d", "7d"],
            "first_bar_at": pd.DatetimeIndex(
                [MAY - timedelta(days=6), None, MAY - timedelta(days=5)]
            ),
        }
    )
    windows = locate_windows(["24/7"], Interval.DAY, rows)

    def find(day: int, version: int) -> list[bool]:
        opens = pd.DatetimeIndex([MAY + timedelta(days=day)])
        newer = pd.DataFrame({"open_time": opens, "dataset_version": [version]})
        return [bool(one) for one in find_outdated(windows, np.array([5, 5, 6]), newer)]

    assert find(0, 6) == [True, True, False]
    assert find(0, 7) == [True, True, True]
    assert find(1, 7) == [False, False, True]
    assert find(-7, 7) == [True, True, False]
    assert find(-8, 7) == [False, True, False]
    assert find(-34, 7) == [False, True, False]
    assert find(-35, 7) == [False, False, False]


def test_a_series_is_late_by_its_calendar_lag_and_what_will_never_come() -> None:
    """On Wednesday noon Tuesday's bar is due, unless it is published later or never."""
    noon = MAY + timedelta(hours=12)
    behind = TrackedSeries("24/7", Interval.DAY, watermark=MAY - timedelta(days=1))
    assert find_delay(behind, noon, noon) == MAY
    assert find_delay(behind, MAY - timedelta(days=1), noon) is None
    lagging = TrackedSeries("24/7", Interval.DAY, timedelta(hours=13), behind.watermark)
    assert find_delay(lagging, noon, noon) is None
    gone = Window(MAY - timedelta(days=1), MAY)
    assert find_delay(TrackedSeries("24/7", Interval.DAY, explained=gone), noon, noon) is None
    assert find_delay(TrackedSeries("24/7", Interval.DAY), noon, noon) == MAY
