"""Of the bars a calendar expects, each is there or missing for one reason."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.domain.completeness import (
    NOT_ASKED_YET,
    NOT_KNOWN_THEN,
    PROVISIONAL,
    ExpectedSeries,
    measure_completeness,
)
from market_pipeline.domain.coverage import (
    ASKED_OFTEN,
    FETCH_FAILED,
    NO_TRADES,
    PROVIDER_EMPTY,
    Coverage,
    Hole,
)
from market_pipeline.domain.grids import find_grid
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.masking import NEVER_ASKED
from market_pipeline.domain.reconciliation import find_known
from market_pipeline.domain.records import Window
from market_pipeline_tests.domain.test_never_asked import (
    CALENDARS,
    DAY,
    EXAMPLES,
    INTERVALS,
    NOW,
    SPANS,
    YEAR,
    load,
)

MONDAY = datetime(2024, 3, 4, tzinfo=UTC)


def make_series(
    interval: Interval = Interval.DAY, window: Window = YEAR, **more: object
) -> ExpectedSeries:
    """Return a series of an always-open market that fetches its bars, weeks from days."""
    fetched = Interval.DAY if interval is Interval.WEEK else interval
    series = ExpectedSeries(interval, fetched, ALWAYS_OPEN, window, NOW)
    return replace(series, **more)  # type: ignore[arg-type]


def make_hole(start: datetime, reason: str, tries: int = 1, days: int = 1) -> Hole:
    """Return a hole of some days."""
    return Hole(Window(start, start + days * DAY), reason, tries, start, start, None)


@settings(max_examples=EXAMPLES)
@given(CALENDARS, INTERVALS, SPANS, st.integers(0, 300), st.integers(1, 60))
def test_expected_bars_are_known_or_missing_for_one_reason(
    calendar: str, interval: Interval, spans: list[tuple[int, int]], back: int, length: int
) -> None:
    """The counts add up, and present means: settled, and in no hole."""
    coverage = load(calendar, interval, spans)
    window = Window(NOW - back * DAY, NOW - (back - length) * DAY)
    series = ExpectedSeries(interval, interval, calendar, window, NOW)
    measured = measure_completeness(coverage, series)
    part = find_grid(calendar, interval, window).cut(window)
    is_due = part.closes <= NOW.timestamp() * 1e6
    assert measured.expected == is_due.sum()
    present = measured.expected - sum(measured.missing.values())
    assert present == (find_known(coverage, part) & is_due).sum()
    assert all(absence.bars == find_grid(calendar, interval, absence.window).count(absence.window)
               for absence in measured.absences)  # fmt: skip


def test_reasons_tell_before_between_and_after() -> None:
    """What lies before the first load or between two was never asked for; the newest, not yet."""
    settled = (Window(MONDAY, MONDAY + 2 * DAY), Window(MONDAY + 4 * DAY, MONDAY + 6 * DAY))
    known = Coverage(settled=settled, last_bar_at=MONDAY + 6 * DAY)
    window = Window(MONDAY - DAY, MONDAY + 8 * DAY)
    measured = measure_completeness(known, make_series(window=window))
    assert measured.missing == {NEVER_ASKED: 3, PROVISIONAL: 1, NOT_ASKED_YET: 1}
    assert measured.expected == 9
    spans = [(one.window.start - MONDAY) // DAY for one in measured.absences]
    assert spans == [-1, 2, 6, 7]


@pytest.mark.parametrize(
    ("reason", "tries", "is_explained"),
    [(NO_TRADES, 1, True), (PROVIDER_EMPTY, 1, False), (PROVIDER_EMPTY, ASKED_OFTEN, True)],
)
def test_a_week_is_missing_for_the_worst_of_its_days(
    reason: str, tries: int, is_explained: bool
) -> None:
    """Weeks are complete when their days are; a running week is not expected yet."""
    holes = (make_hole(MONDAY + 2 * DAY, reason, tries),)
    known = Coverage(settled=(Window(YEAR.start, NOW),), holes=holes)
    window = Window(MONDAY - 14 * DAY, NOW)
    series = make_series(Interval.WEEK, window)
    measured = measure_completeness(known, series)
    assert measured.expected == 3  # of the week of 11 March no Friday has closed
    (absence,) = measured.absences
    assert absence.window == Window(MONDAY, MONDAY + 7 * DAY)
    assert (absence.reason, absence.is_explained) == (reason, is_explained)
    worse = replace(known, holes=(*holes, make_hole(MONDAY + 4 * DAY, FETCH_FAILED)))
    assert measure_completeness(worse, series).missing == {FETCH_FAILED: 1}


def test_days_made_of_hours_are_complete_when_their_hours_are() -> None:
    """One missing hour is a missing day."""
    hour = MONDAY + timedelta(hours=5)
    hole = Hole(Window(hour, hour + timedelta(hours=1)), FETCH_FAILED, 1, hour, hour, None)
    known = Coverage(settled=(Window(YEAR.start, NOW),), holes=(hole,))
    series = make_series(window=Window(MONDAY - DAY, MONDAY + 2 * DAY), fetched=Interval.HOUR)
    measured = measure_completeness(known, series)
    assert (measured.expected, measured.missing) == (3, {FETCH_FAILED: 1})
    week = replace(series, interval=Interval.WEEK, window=Window(MONDAY - 7 * DAY, MONDAY + DAY))
    assert measure_completeness(known, week).missing == {FETCH_FAILED: 1}


def test_what_was_read_counts_not_what_the_ledger_says() -> None:
    """A bar that is known now, and was not in what was read, is missing from it."""
    known = Coverage(settled=(Window(YEAR.start, NOW),))
    window = Window(MONDAY, MONDAY + 3 * DAY)
    opens = find_grid(ALWAYS_OPEN, Interval.DAY, window).cut(window).opens
    series = make_series(window=window)
    assert measure_completeness(known, series, opens).absences == ()
    measured = measure_completeness(known, series, opens[1:])
    assert measured.missing == {NOT_KNOWN_THEN: 1}
    assert measure_completeness(Coverage(), series, opens).missing == {}
    weeks = make_series(Interval.WEEK, window)
    assert measure_completeness(Coverage(), weeks, np.array([])).missing == {NEVER_ASKED: 1}


def test_nothing_is_expected_of_an_empty_span() -> None:
    """Neither an error, nor a bar."""
    for interval in Interval:
        series = make_series(interval, Window(NOW, NOW))
        assert measure_completeness(Coverage(), series).expected == 0
