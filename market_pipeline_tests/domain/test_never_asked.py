"""What nobody asked for, what is known to be missing, and what is settled: together all of it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.domain.coverage import (
    AFTER_LAST,
    BEFORE_FIRST,
    FETCH_FAILED,
    NO_TRADES,
    OUT_OF_REACH,
    PROVIDER_EMPTY,
    QUARANTINED,
    Coverage,
    Hole,
    find_never_asked,
    find_next_check,
    lose_reach,
    wake_failures,
)
from market_pipeline.domain.grids import find_grid, from_micros
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.planning import (
    MISSING,
    MOST_RETRIES,
    OVERLAP_BARS,
    RETRY,
    FetchRequest,
    plan_interval,
    plan_retries,
)
from market_pipeline.domain.ranges import intersect_windows, merge_windows, subtract_windows
from market_pipeline.domain.reconciliation import apply_failure
from market_pipeline.domain.records import HistoryTerms, Window
from market_pipeline_tests.domain.test_coverage_planning import answer

NOW = datetime(2024, 3, 15, 15, 20, tzinfo=UTC)
MIDNIGHT = datetime(2024, 3, 15, tzinfo=UTC)
YEAR = Window(NOW - timedelta(days=365), NOW)
WEEK = Window(NOW - timedelta(days=7), NOW)
TERMS = HistoryTerms(timedelta(days=60))
DAY = timedelta(days=1)
CALENDARS = st.sampled_from([ALWAYS_OPEN, "XNYS"])
INTERVALS = st.sampled_from([Interval.HOUR, Interval.DAY])
EXAMPLES = 20
SPANS = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), min_size=1, max_size=5)


def ask_for(calendar: str, interval: Interval, window: Window) -> FetchRequest:
    """Return a request for a window."""
    return FetchRequest(
        interval, window, MISSING, find_grid(calendar, interval, window).count(window)
    )


def load(calendar: str, interval: Interval, spans: list[tuple[int, int]]) -> Coverage:
    """Return what is known after some spans, in days before now, were loaded or failed in turn."""
    coverage = Coverage()
    for number, (back, length) in enumerate(spans):
        start = MIDNIGHT - timedelta(days=back + length)
        window = Window(start, start + timedelta(days=length))
        opens = find_grid(calendar, interval, window).cut(window).opens
        if not len(opens):
            continue
        window = Window(from_micros(opens[0]), window.end)  # As requests do.
        if number % 3 == 2:
            coverage = apply_failure(coverage, window, NOW, "HTTP 500", 500)
        else:
            missing = np.arange(ask_for(calendar, interval, window).bars) % 11 == number
            asked = ask_for(calendar, interval, window)
            coverage = answer(coverage, asked, calendar, missing=missing)
    return coverage


def make_hole(start: datetime, days: int, reason: str, due: datetime | None) -> Hole:
    """Return a hole of some days."""
    return Hole(Window(start, start + days * DAY), reason, 1, start, start, due)


@settings(max_examples=EXAMPLES)
@given(CALENDARS, INTERVALS, SPANS)
def test_settled_holes_and_never_asked_partition_the_bars_between(
    calendar: str, interval: Interval, spans: list[tuple[int, int]]
) -> None:
    """Each expected bar between the first and last settled span is exactly one of the three."""
    coverage = load(calendar, interval, spans)
    never = find_never_asked(coverage, interval, calendar)
    if not coverage.settled:
        assert never == []
        return
    whole = Window(coverage.settled[0].start, coverage.settled[-1].end)
    holes = intersect_windows([hole.window for hole in coverage.holes], [whole])
    known = subtract_windows(coverage.settled, holes)
    grid = find_grid(calendar, interval, whole)
    parts = [known, merge_windows(holes), never]
    assert sum(grid.count(part) for each in parts for part in each) == grid.count(whole)
    assert not intersect_windows(never, [*coverage.settled, *holes])
    assert all(grid.count(part) for part in never)


def test_time_without_expected_bars_was_never_missed() -> None:
    """A weekend between two settled spans of New York is no gap."""
    friday = datetime(2024, 3, 8, tzinfo=UTC)
    coverage = Coverage(settled=(Window(friday, friday + DAY), Window(friday + 3 * DAY, NOW)))
    assert find_never_asked(coverage, Interval.DAY, "XNYS") == []
    (gap,) = find_never_asked(coverage, Interval.DAY, ALWAYS_OPEN)
    assert gap == Window(friday + DAY, friday + 3 * DAY)


@settings(max_examples=EXAMPLES)
@given(CALENDARS, INTERVALS, SPANS, st.integers(0, 240))
def test_runs_fill_never_asked_time_up_to_their_reach(
    calendar: str, interval: Interval, spans: list[tuple[int, int]], reach: int
) -> None:
    """A short look-back asks for the gaps within its reach, no others; once answered, for none."""
    coverage = load(calendar, interval, spans)
    filled_from = NOW - reach * DAY
    never = find_never_asked(coverage, interval, calendar)
    reached = intersect_windows(never, [Window(filled_from, NOW)])
    grid = find_grid(calendar, interval, YEAR)
    reached = [part for part in reached if grid.count(part)]
    clock = (interval, calendar, WEEK, NOW)
    requests = plan_interval(*clock, coverage, TERMS, asked_at=NOW, filled_from=filled_from)
    pages = [request.window for request in requests]
    assert all(not grid.count(part) for part in subtract_windows(reached, pages))
    for request in requests:
        coverage = answer(coverage, request, calendar)
    still = intersect_windows(
        find_never_asked(coverage, interval, calendar), [Window(filled_from, NOW)]
    )
    assert all(not grid.count(part) for part in still)


@settings(max_examples=EXAMPLES)
@given(CALENDARS, INTERVALS, SPANS)
def test_answered_cleanly_nothing_is_left_to_ask(
    calendar: str, interval: Interval, spans: list[tuple[int, int]]
) -> None:
    """The same plan twice; after clean answers to all of it, only the newest bars are asked for."""
    coverage, later = load(calendar, interval, spans), NOW + 40 * DAY
    for _ in range(40):
        clock = (interval, calendar, Window(later - 7 * DAY, later), later, coverage, TERMS)
        requests = plan_interval(*clock, asked_at=later, filled_from=YEAR.start)
        retries = plan_retries(interval, calendar, clock[2], later, coverage, TERMS)
        assert requests == plan_interval(*clock, asked_at=later, filled_from=YEAR.start)
        if not retries and all(request.bars <= 8 for request in requests):
            break
        for request in [*requests, *retries]:
            coverage = answer(coverage, request, calendar, now=later)
    else:
        pytest.fail("the plan does not become empty")
    assert not [hole for hole in coverage.holes if hole.is_due(later)]
    assert find_never_asked(coverage, interval, calendar) == []


def test_a_pause_longer_than_the_look_back_is_filled_at_once() -> None:
    """From a few known bars before it, so that a restated series shows, to the newest bar."""
    coverage = Coverage(settled=(Window(YEAR.start, MIDNIGHT - 40 * DAY),), watermark=NOW)
    clock = (Interval.DAY, ALWAYS_OPEN, WEEK, NOW, coverage, TERMS)
    (request,) = plan_interval(*clock, asked_at=NOW, filled_from=YEAR.start)
    assert request.window == Window(MIDNIGHT - (40 + OVERLAP_BARS) * DAY, NOW)
    (short,) = plan_interval(*clock, asked_at=NOW)
    assert short.window.start == MIDNIGHT - 6 * DAY


def test_a_backfill_leaves_other_gaps_alone() -> None:
    """What is asked for by name is all that is asked for."""
    wanted = Window(MIDNIGHT - 30 * DAY, MIDNIGHT - 20 * DAY)
    coverage = Coverage(settled=(Window(YEAR.start, YEAR.start + 9 * DAY), wanted))
    assert plan_interval(Interval.DAY, ALWAYS_OPEN, wanted, NOW, coverage, TERMS) == []


def test_due_holes_are_asked_for_whatever_the_look_back() -> None:
    """The oldest due first, a bounded number; those inside the window are planned with it."""
    starts = [datetime(2020, month, 1, tzinfo=UTC) for month in range(1, 9)]
    holes = tuple(
        make_hole(start, 2, FETCH_FAILED, NOW - (at + 1) * DAY) for at, start in enumerate(starts)
    )
    settled = (Window(datetime(2019, 1, 1, tzinfo=UTC), NOW),)
    coverage = Coverage(settled=settled, holes=holes)
    short = HistoryTerms(timedelta(days=20))
    requests = plan_retries(Interval.DAY, ALWAYS_OPEN, WEEK, NOW, coverage, short)
    assert [request.window.start for request in requests] == starts[: -MOST_RETRIES - 1 : -1]
    assert {(request.purpose, request.bars) for request in requests} == {(RETRY, 2)}
    assert plan_retries(Interval.DAY, ALWAYS_OPEN, YEAR, NOW, coverage, TERMS, WEEK.start) == []
    everything = Window(starts[0], NOW)
    assert plan_retries(Interval.DAY, ALWAYS_OPEN, everything, NOW, coverage, TERMS) == []


def test_one_request_takes_all_due_holes_of_its_page() -> None:
    """Four holes within a page cost one call."""
    start = datetime(2020, 1, 1, tzinfo=UTC)
    holes = tuple(make_hole(start + 5 * at * DAY, 1, QUARANTINED, NOW) for at in range(4))
    coverage = Coverage(settled=(Window(start, NOW),), holes=holes)
    (request,) = plan_retries(Interval.DAY, ALWAYS_OPEN, WEEK, NOW, coverage, TERMS)
    assert request.window == Window(start, start + 16 * DAY)


def test_failures_are_asked_for_at_growing_distances() -> None:
    """At once twice, then minutes, an hour, a day, and a month for ever."""
    delays = []
    for tries in range(1, 9):
        due = find_next_check(FETCH_FAILED, tries, NOW)
        assert due is not None
        delays.append(due - NOW)
    assert delays == sorted(delays)
    assert delays[:2] == [timedelta(0)] * 2
    assert timedelta(hours=1) in delays
    assert DAY in delays
    assert delays[-1] == 30 * DAY


def test_the_end_of_an_outage_makes_its_failures_due() -> None:
    """An answer proves that the provider works again; a page that always fails proves nothing."""
    loaded = answer(Coverage(), ask_for(ALWAYS_OPEN, Interval.DAY, WEEK), ALWAYS_OPEN)
    later, coverage = NOW, loaded
    for _ in range(6):
        later += DAY
        failed = Window(WEEK.end, later)
        coverage = apply_failure(coverage, failed, later, "HTTP 500", 500)
    later += timedelta(hours=1)
    assert not any(hole.is_due(later) for hole in coverage.holes)
    tail = ask_for(ALWAYS_OPEN, Interval.DAY, Window(later - DAY, later))
    healed = answer(coverage, tail, ALWAYS_OPEN, now=later)
    assert [hole.is_due(later) for hole in healed.holes] == [True]
    again = apply_failure(healed, healed.holes[0].window, later, "HTTP 500", 500)
    answered = answer(again, tail, ALWAYS_OPEN, now=later + timedelta(minutes=1))
    assert [hole.is_due(later + timedelta(minutes=1)) for hole in answered.holes] == [False]


def test_what_the_provider_cannot_reach_any_more_is_never_asked_for() -> None:
    """A hole that lies wholly before the reach is out of it; it is not explained thereby."""
    old, new = datetime(2020, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)
    holes = (
        make_hole(old, 2, FETCH_FAILED, old),
        make_hole(old + 5 * DAY, 2, NO_TRADES, old),
        make_hole(old + 9 * DAY, 2, BEFORE_FIRST, None),
        make_hole(old + 12 * DAY, 2, PROVIDER_EMPTY, old),
        make_hole(new, 2, FETCH_FAILED, old),
    )
    coverage = lose_reach(Coverage(holes=holes), new)
    reasons = [OUT_OF_REACH, NO_TRADES, BEFORE_FIRST, OUT_OF_REACH, FETCH_FAILED]
    assert [hole.reason for hole in coverage.holes] == reasons
    gone = coverage.holes[0]
    assert (gone.next_check_at, gone.is_due(NOW), gone.is_explained) == (None, False, False)
    assert lose_reach(coverage, new) is coverage
    assert lose_reach(coverage, None) is coverage


def test_who_asks_for_a_span_by_name_does_not_wait() -> None:
    """Failures become due, also those once out of reach; what was answered keeps its time."""
    holes = (
        make_hole(YEAR.start, 1, FETCH_FAILED, NOW + 30 * DAY),
        make_hole(YEAR.start + 2 * DAY, 1, OUT_OF_REACH, None),
        make_hole(YEAR.start + 4 * DAY, 1, PROVIDER_EMPTY, NOW + 30 * DAY),
        make_hole(YEAR.start + 6 * DAY, 1, AFTER_LAST, None),
        make_hole(YEAR.start + 90 * DAY, 1, FETCH_FAILED, NOW + 30 * DAY),
    )
    woken = wake_failures(Coverage(holes=holes), NOW, Window(YEAR.start, YEAR.start + 8 * DAY))
    assert [hole.is_due(NOW) for hole in woken.holes] == [True, True, False, False, False]
    assert woken.holes[0] == replace(holes[0], next_check_at=NOW)


@settings(max_examples=EXAMPLES)
@given(CALENDARS, INTERVALS, SPANS)
def test_planning_never_asks_before_what_the_provider_reaches(
    calendar: str, interval: Interval, spans: list[tuple[int, int]]
) -> None:
    """Neither gaps nor holes: their part before it is left out."""
    coverage, earliest = load(calendar, interval, spans), NOW - 90 * DAY
    clock = (WEEK, NOW, coverage, TERMS)
    requests = plan_interval(interval, calendar, *clock, earliest, NOW, YEAR.start)
    requests += plan_retries(interval, calendar, *clock, earliest)
    opens = find_grid(calendar, interval, YEAR).opens
    firsts = [
        opens[np.searchsorted(opens, request.window.start.timestamp() * 1e6)]
        for request in requests
    ]
    assert all(from_micros(first) >= earliest for first in firsts)
