"""Settled history is read again in turn: a page a day, all of it, then from the beginning."""

from datetime import UTC, datetime, timedelta

import pytest

from market_pipeline.domain.coverage import Coverage, measure_round
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.planning import TAIL, VERIFY, FetchRequest, plan_verification
from market_pipeline.domain.ranges import merge_windows
from market_pipeline.domain.reconciliation import skip_turn
from market_pipeline.domain.records import HistoryTerms, Window
from market_pipeline_tests.domain.test_coverage_planning import answer

NOW = datetime(2024, 3, 15, tzinfo=UTC)
DAY = timedelta(days=1)
TERMS = HistoryTerms(timedelta(days=60))
YEARS = Window(NOW - 600 * DAY, NOW)


def load(window: Window = YEARS) -> Coverage:
    """Return what is known after one clean answer."""
    request = FetchRequest(Interval.DAY, window, VERIFY, 0)
    return answer(Coverage(), request, ALWAYS_OPEN, now=NOW)


def plan_turn(
    coverage: Coverage, now: datetime, earliest: datetime | None = None
) -> list[FetchRequest]:
    """Return the turn's page, if it is due."""
    requests = plan_verification(Interval.DAY, ALWAYS_OPEN, now, coverage, TERMS, earliest)
    return [request for request in requests if request.is_turn]


def test_history_loaded_late_is_read_again_page_by_page() -> None:
    """Nothing on the day of the load, then a page a day, until all of it was read."""
    coverage, now = load(), NOW
    pages: list[Window] = []
    assert plan_turn(coverage, NOW + timedelta(hours=23)) == []
    for _ in range(10):
        now += DAY
        (request,) = plan_turn(coverage, now)
        assert request.window.end - request.window.start <= TERMS.page
        pages.append(request.window)
        coverage = answer(coverage, request, ALWAYS_OPEN, now=now)
        assert plan_turn(coverage, now + timedelta(hours=23)) == []
        tail = FetchRequest(Interval.DAY, Window(NOW, now), TAIL, 1)
        coverage = answer(coverage, tail, ALWAYS_OPEN, now=now)
    assert merge_windows(pages) == [YEARS]


def test_after_the_last_page_a_new_turn_begins() -> None:
    """From the oldest bar on."""
    coverage, now = load(Window(NOW - 50 * DAY, NOW)), NOW
    starts: list[datetime] = []
    for _ in range(3):
        now += 2 * DAY
        (request,) = plan_turn(coverage, now)
        starts.append(request.window.start)
        coverage = answer(coverage, request, ALWAYS_OPEN, now=now)
        tail = FetchRequest(Interval.DAY, Window(NOW, now), TAIL, 1)
        coverage = answer(coverage, tail, ALWAYS_OPEN, now=now)
    assert starts == [NOW - 50 * DAY] * 3


def test_a_page_that_fails_waits_for_the_next_turn() -> None:
    """It holds nothing up, and does not count as read."""
    coverage = load()
    (request,) = plan_turn(coverage, NOW + DAY)
    coverage = skip_turn(coverage, request.window, NOW + DAY)
    assert plan_turn(coverage, NOW + DAY) == []
    progress = measure_round(coverage)
    assert progress is not None
    assert progress.share == 0.0
    (after,) = plan_turn(coverage, NOW + 2 * DAY)
    assert after.window.start == request.window.end


def test_what_the_provider_cannot_reach_is_not_read_again() -> None:
    """A page begins where the provider's history begins."""
    (request,) = plan_turn(load(), NOW + DAY, earliest=NOW - 30 * DAY)
    assert request.window == Window(NOW - 30 * DAY, NOW)


def test_the_turn_tells_its_share_and_its_pace() -> None:
    """Ten pages of 600 days: after two days a fifth is read, and a turn takes ten days."""
    assert measure_round(Coverage()) is None
    coverage, now = load(), NOW
    begun = measure_round(coverage)
    assert begun is not None
    assert (begun.share, begun.days) == (0.0, None)
    for _ in range(2):
        now += DAY
        (request,) = plan_turn(coverage, now)
        coverage = answer(coverage, request, ALWAYS_OPEN, now=now)
    progress = measure_round(coverage)
    assert progress is not None
    assert progress.share == pytest.approx(0.2)
    assert progress.days == pytest.approx(10)
