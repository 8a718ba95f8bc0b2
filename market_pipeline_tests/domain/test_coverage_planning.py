"""Planning and reconciliation: whatever came or did not, the next plan asks for the rest."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.domain.coverage import (
    AFTER_LAST,
    BEFORE_FIRST,
    FETCH_FAILED,
    NO_TRADES,
    PROVIDER_EMPTY,
    Coverage,
    Hole,
    find_gone,
)
from market_pipeline.domain.grids import Grid, find_grid, from_micros
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.planning import (
    MISSING,
    OVERLAP_BARS,
    RETRY,
    TAIL,
    FetchRequest,
    plan_interval,
    plan_verification,
)
from market_pipeline.domain.ranges import intersect_windows, merge_windows, subtract_windows
from market_pipeline.domain.reconciliation import (
    FetchResult,
    apply_failure,
    apply_fetch,
    find_known,
)
from market_pipeline.domain.records import HistoryTerms, Window
from market_pipeline_tests.frames import fill_columns

NOW = datetime(2024, 3, 15, 15, 20, tzinfo=UTC)
MONTH = Window(NOW - timedelta(days=30), NOW)
TERMS = HistoryTerms(timedelta(days=60))
CALENDARS = st.sampled_from([ALWAYS_OPEN, "XNYS"])
INTERVALS = st.sampled_from([Interval.HOUR, Interval.DAY])
FOR_GOOD = (AFTER_LAST, BEFORE_FIRST, NO_TRADES)
MINUTES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6)


def build_windows(pairs: list[tuple[int, int]]) -> list[Window]:
    """Return windows of whole minutes."""
    return [Window(NOW + timedelta(minutes=a), NOW + timedelta(minutes=b)) for a, b in pairs]


def list_minutes(windows: list[Window]) -> set[int]:
    """Return the minutes that windows hold: the plain model of a set of spans."""
    return {
        minute
        for window in windows
        for minute in range(40)
        if window.start <= NOW + timedelta(minutes=minute) < window.end
    }


@given(left=MINUTES, right=MINUTES)
def test_arithmetic_on_windows_is_that_of_sets(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    """Union, difference and intersection, against sets of minutes; results are disjoint."""
    a, b = build_windows(left), build_windows(right)
    assert list_minutes(merge_windows([*a, *b])) == list_minutes(a) | list_minutes(b)
    assert list_minutes(subtract_windows(a, b)) == list_minutes(a) - list_minutes(b)
    assert list_minutes(intersect_windows(a, b)) == list_minutes(a) & list_minutes(b)
    merged = merge_windows(a)
    assert all(one.end < other.start for one, other in pairwise(merged))


def build_bars(part: Grid, now: datetime) -> pd.DataFrame:
    """Return what a perfect provider has of a grid: begun bars, final once they closed."""
    begun = part.begins < now.timestamp() * 1e6
    times = {
        name: pd.to_datetime(values[begun], unit="us", utc=True)
        for name, values in (("open_time", part.opens), ("close_time", part.closes))
    }
    return pd.DataFrame(times).assign(is_final=lambda bars: bars["close_time"] <= now)


def answer(
    coverage: Coverage,
    request: FetchRequest,
    calendar: str,
    now: datetime = NOW,
    missing: "np.ndarray[tuple[int], np.dtype[np.bool_]] | None" = None,
) -> Coverage:
    """Settle a perfect answer, but for bars that are left out."""
    part = find_grid(calendar, request.interval, request.window).cut(request.window)
    bars = build_bars(part, now)
    if missing is not None:
        bars = bars[~missing[: len(bars)]]
    columns, none = fill_columns(bars), np.empty(0, dtype=np.int64)
    settled = FetchResult(request.window, columns, none, now, now, request.is_turn)
    return apply_fetch(coverage, request.interval, calendar, timedelta(0), settled)


def plan(
    coverage: Coverage, calendar: str, interval: Interval, now: datetime = NOW,
    wanted: Window = MONTH, terms: HistoryTerms = TERMS,
) -> list[FetchRequest]:  # fmt: skip
    """Return what is asked for."""
    return plan_interval(
        interval, calendar, Window(wanted.start, now), now, coverage, terms, asked_at=now
    )


@given(CALENDARS, INTERVALS)
def test_once_settled_only_the_newest_bars_are_asked_for(calendar: str, interval: Interval) -> None:
    """One request for all of it; after a perfect answer the running bar and its overlap."""
    first = plan(Coverage(), calendar, interval)
    assert [request.purpose for request in first] == [MISSING]
    coverage = answer(Coverage(), first[0], calendar)
    again = plan(coverage, calendar, interval)
    assert len(again) <= 1
    assert all(request.purpose == TAIL and request.bars <= OVERLAP_BARS + 1 for request in again)


@given(CALENDARS, INTERVALS, st.data())
def test_every_due_bar_is_stored_in_a_hole_or_still_missing(
    calendar: str, interval: Interval, data: st.DataObject
) -> None:
    """No bar is lost without a word, whatever an answer leaves out."""
    request = plan(Coverage(), calendar, interval)[0]
    part = find_grid(calendar, interval, request.window).cut(request.window)
    missing = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(part.opens), max_size=len(part.opens)))
    )
    coverage = answer(Coverage(), request, calendar, missing=missing)
    holes = [hole.window for hole in coverage.holes]
    known = find_known(coverage, part)
    for open_time, is_left_out, is_known, close in zip(
        part.opens, missing, known, part.closes, strict=True
    ):
        moment = from_micros(open_time)
        in_hole = any(window.start <= moment < window.end for window in holes)
        is_due = from_micros(close) <= NOW
        assert is_known == (is_due and not is_left_out)
        assert in_hole == (is_due and is_left_out)


def test_a_page_skipped_in_the_middle_is_all_that_is_asked_for() -> None:
    """The next run asks for the hole, and it is gone when its bars come."""
    request = plan(Coverage(), ALWAYS_OPEN, Interval.HOUR)[0]
    skipped = np.zeros(request.bars, dtype=bool)
    skipped[100:150] = True
    coverage = answer(Coverage(), request, ALWAYS_OPEN, missing=skipped)
    (hole,) = coverage.holes
    assert (hole.reason, hole.tries) == (PROVIDER_EMPTY, 1)
    short = HistoryTerms(timedelta(days=3))
    retried = [one for one in plan(coverage, ALWAYS_OPEN, Interval.HOUR, terms=short)
               if one.purpose == RETRY]  # fmt: skip
    assert [(one.window, one.bars) for one in retried] == [(hole.window, 50)]
    assert answer(coverage, retried[0], ALWAYS_OPEN).holes == ()


def test_a_failed_request_is_asked_for_again_with_back_off() -> None:
    """At once, then at growing distances; nothing of it counts as settled."""
    request = plan(Coverage(), ALWAYS_OPEN, Interval.DAY)[0]
    coverage, now = Coverage(), NOW
    for tries in range(1, 4):
        coverage = apply_failure(coverage, request.window, now, "HTTP 500", 500)
        assert [(hole.reason, hole.tries) for hole in coverage.holes] == [(FETCH_FAILED, tries)]
    assert coverage.settled == ()
    assert plan(coverage, ALWAYS_OPEN, Interval.DAY) == []
    later = NOW + timedelta(hours=1)
    assert plan(coverage, ALWAYS_OPEN, Interval.DAY, now=later)


def test_a_market_that_ended_is_not_asked_for_again() -> None:
    """404 for a day and three times, after its last bar."""
    request = plan(Coverage(), ALWAYS_OPEN, Interval.DAY)[0]
    coverage, now = answer(Coverage(), request, ALWAYS_OPEN), NOW
    for _ in range(3):
        now += timedelta(days=1)
        for tail in plan(coverage, ALWAYS_OPEN, Interval.DAY, now=now):
            coverage = apply_failure(coverage, tail.window, now, "HTTP 404", 404)
    assert [hole.reason for hole in coverage.holes] == [AFTER_LAST]
    assert plan(coverage, ALWAYS_OPEN, Interval.DAY, now=now + timedelta(days=9)) == []


def test_what_came_before_the_first_bar_is_believed_the_second_time() -> None:
    """A truncated first answer looks the same, so it takes two."""
    request = plan(Coverage(), ALWAYS_OPEN, Interval.DAY)[0]
    early = np.zeros(request.bars, dtype=bool)
    early[:10] = True
    coverage = answer(Coverage(), request, ALWAYS_OPEN, missing=early)
    assert [hole.reason for hole in coverage.holes] == [PROVIDER_EMPTY]
    (retry,) = plan(coverage, ALWAYS_OPEN, Interval.DAY)
    again = answer(coverage, retry, ALWAYS_OPEN, missing=np.arange(retry.bars) < 10)
    assert [hole.reason for hole in again.holes] == [BEFORE_FIRST]
    assert all(one.purpose == TAIL for one in plan(again, ALWAYS_OPEN, Interval.DAY))


@pytest.mark.parametrize(
    ("start", "bars"),
    [
        (datetime(2024, 3, 8, tzinfo=UTC), 6),  # across the change to summer time
        (datetime(2024, 11, 1, tzinfo=UTC), 6),
        (datetime(2024, 2, 28, tzinfo=UTC), 6),  # the leap day
        (datetime(2024, 11, 27, tzinfo=UTC), 5),  # Thanksgiving, and a half day after it
    ],
)
def test_new_yorks_days_are_counted_by_its_calendar(start: datetime, bars: int) -> None:
    """Eight days from here: sessions, not weekdays."""
    window = Window(start, start + timedelta(days=8))
    assert find_grid("XNYS", Interval.DAY, window).count(window) == bars


def test_settled_days_are_read_again_when_they_have_aged() -> None:
    """A day, a week, a month and a year later; what was loaded late has been read at that age."""
    request = plan(Coverage(), ALWAYS_OPEN, Interval.DAY)[0]
    coverage = answer(Coverage(), request, ALWAYS_OPEN)
    clock = (Interval.DAY, ALWAYS_OPEN)
    assert plan_verification(*clock, NOW, coverage, TERMS) == []
    tomorrow = NOW + timedelta(days=1)
    due = plan_verification(*clock, tomorrow, coverage, TERMS)
    assert tomorrow - timedelta(days=7) in [request.window.end for request in due]
    for request in due:
        coverage = answer(coverage, request, ALWAYS_OPEN, now=tomorrow)
    assert plan_verification(*clock, tomorrow, coverage, TERMS) == []


def test_older_bars_that_come_again_move_no_watermark_back() -> None:
    """Nor the last bar; the first moves back alone, when there are older ones."""
    request = plan(Coverage(), ALWAYS_OPEN, Interval.DAY)[0]
    coverage = answer(Coverage(), request, ALWAYS_OPEN)
    before = Window(MONTH.start - timedelta(days=5), MONTH.start + timedelta(days=2))
    later = answer(coverage, replace(request, window=before), ALWAYS_OPEN)
    assert later.watermark == coverage.watermark is not None
    assert later.last_bar_at == coverage.last_bar_at is not None
    assert later.first_bar_at is not None
    assert coverage.first_bar_at is not None
    assert later.first_bar_at < coverage.first_bar_at


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.integers(1, 5),
            st.sampled_from([*FOR_GOOD, PROVIDER_EMPTY, FETCH_FAILED]),
            st.integers(1, 5),
        ),
        max_size=6,
    )
)
def test_what_will_never_come_is_what_is_explained(
    holes: list[tuple[int, int, str, int]],
) -> None:
    """And everything after a market's last bar, however far it was asked for."""
    day = timedelta(days=1)
    known = [
        Hole(Window(NOW + at * day, NOW + (at + long) * day), reason, tries, NOW, NOW, None)
        for at, long, reason, tries in holes
    ]
    gone = find_gone(Coverage(holes=tuple(known)))
    for at in range(60):
        moment = NOW + at * day
        expected = any(
            hole.window.start <= moment
            and (moment < hole.window.end or hole.reason == AFTER_LAST)
            and (hole.tries > 3 if hole.reason == PROVIDER_EMPTY else hole.reason in FOR_GOOD)
            for hole in known
        )
        assert any(part.start <= moment < part.end for part in gone) == expected
