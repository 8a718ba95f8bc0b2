"""Planning: the requests to a provider that complete what should be stored.

Missing time is wanted time less settled time: arithmetic on spans, whatever the number of bars.
A plan adds a few known bars before the newest one (a restated history shows there first), time that
was never asked for, holes that are due, and settled spans to be read again: at growing ages, and
then all of them in turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from market_pipeline.domain.coverage import (
    AFTER_LAST,
    BEGINNING,
    FETCH_FAILED,
    Coverage,
    find_never_asked,
)
from market_pipeline.domain.grids import Grid, find_grid, from_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.ranges import (
    clip_windows,
    intersect_windows,
    merge_windows,
    pack_windows,
    subtract_windows,
)
from market_pipeline.domain.records import HistoryTerms, Window

OVERLAP_BARS = 3
VERIFIED_AGES_DAYS = (1, 7, 30, 365)
VERIFICATION_STEP = timedelta(days=1)
TURN_STEP = timedelta(days=1)
"""Settled history is read again in turn, a page so often."""
MOST_RETRIES = 3
"""Requests for holes outside the window, for each interval of a market and run."""
MISSING, TAIL, RETRY, VERIFY = "missing", "tail", "retry", "verify"
TRACE, RELOAD = "trace", "reload"


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """One request to a provider.

    Attributes:
        interval: Of the bars. window: By open_time (UTC).
        purpose: ``missing``, ``tail`` (the newest), ``retry`` (a hole), ``verify``, ``trace`` (how
            far a difference goes) or ``reload`` (what differs).
        bars: How many bars the calendar expects in it.
        is_turn: It is a page of the turn in which all settled history is read again.
    """

    interval: Interval
    window: Window
    purpose: str
    bars: int
    is_turn: bool = False


def plan_interval(
    interval: Interval,
    calendar: str,
    wanted: Window,
    now: datetime,
    coverage: Coverage,
    terms: HistoryTerms,
    earliest: datetime | None = None,
    asked_at: datetime | None = None,
    filled_from: datetime | None = None,
) -> list[FetchRequest]:
    """Return the requests that make a window complete, oldest first, in the fewest calls.

    Args:
        interval: Of the bars.
        calendar: The market's.
        wanted: What should be there.
        now: The run's clock (UTC); what has not begun by then is not asked for.
        coverage: What is known.
        terms: The provider's.
        earliest: The provider has nothing before it (UTC); None: no limit known.
        asked_at: The wall clock (UTC), by which holes are due; None: the run's clock.
        filled_from: Time that was never asked for is filled from here to the window (UTC);
            None: it is left alone.
    """
    grid = find_grid(calendar, interval, Window(wanted.start, max(wanted.end, now)))
    wanted = _limit(wanted, grid, now, coverage, earliest)
    gaps = _find_gaps(interval, calendar, wanted, coverage, earliest, filled_from)
    if gaps:
        grid = find_grid(calendar, interval, Window(gaps[0].start, max(wanted.end, now)))
    missing = merge_windows([*gaps, *_find_missing(wanted, grid, asked_at or now, coverage)])
    retried = _find_retried(wanted, grid, asked_at or now, coverage)
    reach = earliest or BEGINNING
    parts = [*(_overlap(part, wanted, grid, coverage, reach) for part in missing), *retried]
    return [
        FetchRequest(interval, page, _name_purpose(page, missing, wanted, coverage), bars)
        for page in pack_windows([_begin_with_bar(part, grid) for part in parts], terms.page)
        if (bars := grid.count(page))
    ]


def plan_retries(
    interval: Interval,
    calendar: str,
    wanted: Window,
    asked_at: datetime,
    coverage: Coverage,
    terms: HistoryTerms,
    earliest: datetime | None = None,
) -> list[FetchRequest]:
    """Return a few requests for holes outside a window whose time has come, oldest due first.

    Args:
        interval: Of the bars.
        calendar: The market's.
        wanted: What :func:`plan_interval` takes care of.
        asked_at: The wall clock (UTC), by which holes are due.
        coverage: What is known.
        terms: The provider's.
        earliest: The provider has nothing before it (UTC); None: no limit known.
    """
    due = sorted(
        (hole for hole in coverage.holes if hole.is_due(asked_at)),
        key=lambda hole: (hole.next_check_at, hole.window.start),
    )
    outside = [part for hole in due for part in subtract_windows([hole.window], [wanted])]
    left = clip_windows(outside, Window(earliest or BEGINNING, asked_at))
    requests: list[FetchRequest] = []
    while left and len(requests) < MOST_RETRIES:
        page, left = _take_page(left, terms.page)
        grid = find_grid(calendar, interval, page)
        if grid.count(page):
            page = _begin_with_bar(page, grid)
            requests.append(FetchRequest(interval, page, RETRY, grid.count(page)))
    return requests


def _take_page(parts: Sequence[Window], longest: timedelta) -> tuple[Window, list[Window]]:
    """Return one page from the start of the first part on, and what it leaves, in their order."""
    limit = Window(parts[0].start, parts[0].start + longest)
    end = max(part.end for part in clip_windows(parts, limit))
    page = Window(limit.start, end)
    return page, [left for part in parts for left in subtract_windows([part], [page])]


def _find_gaps(
    interval: Interval,
    calendar: str,
    wanted: Window,
    coverage: Coverage,
    earliest: datetime | None,
    filled_from: datetime | None,
) -> list[Window]:
    """Return what was never asked for before the window, within the reach of run and provider.

    What a window leaves between itself and the history before it is no less a gap.
    """
    if filled_from is None:
        return []
    reach = Window(max(filled_from, earliest or filled_from), wanted.start)
    after = replace(coverage, settled=tuple(merge_windows([*coverage.settled, wanted])))
    gaps = clip_windows(find_never_asked(after, interval, calendar), reach)
    if not gaps:
        return []
    grid = find_grid(calendar, interval, reach)
    return [part for part in gaps if grid.count(part)]


def plan_verification(
    interval: Interval,
    calendar: str,
    now: datetime,
    coverage: Coverage,
    terms: HistoryTerms,
    earliest: datetime | None = None,
) -> list[FetchRequest]:
    """Return one request for each age that is due, of settled bars only, and the turn's page."""
    requests: list[FetchRequest] = []
    for age in VERIFIED_AGES_DAYS:
        old_enough = Window(earliest or BEGINNING, now - timedelta(days=age))
        settled = intersect_windows(coverage.current, [old_enough])
        due = subtract_windows(settled, coverage.verified.get(age, ()))
        # A day's worth at least: verification must not cost a call every few minutes.
        spans = [span for span in due if span.end - span.start >= VERIFICATION_STEP]
        requests += _verify_first(interval, calendar, spans, terms.page)
    return requests + _plan_turn(interval, calendar, now, coverage, terms.page, earliest)


def _plan_turn(
    interval: Interval,
    calendar: str,
    now: datetime,
    coverage: Coverage,
    longest: timedelta,
    earliest: datetime | None,
) -> list[FetchRequest]:
    """Return the next page of the turn, a day after the one before; after the last, the first.

    A turn ends with what was settled when it began, or it would never end.
    """
    turn = coverage.round
    if turn is None or now - turn.read_at < TURN_STEP:
        return []
    known = clip_windows(coverage.current, Window(earliest or BEGINNING, turn.read_at))
    left = clip_windows(known, Window(turn.reached, turn.began_at))
    requests = _verify_first(interval, calendar, left, longest)
    requests = requests or _verify_first(interval, calendar, known, longest)
    return [replace(request, is_turn=True) for request in requests]


def plan_reload(
    interval: Interval,
    calendar: str,
    left: Sequence[Window],
    now: datetime,
    coverage: Coverage,
    terms: HistoryTerms,
    asked_at: datetime,
) -> list[FetchRequest]:
    """Return the requests that read spans again, oldest first; a hole in them waits for its time.

    Args:
        interval: Of the bars.
        calendar: The market's.
        left: What is still to be read.
        now: The run's clock (UTC).
        coverage: What is known.
        terms: The provider's.
        asked_at: The wall clock (UTC), by which holes are due.
    """
    requests: list[FetchRequest] = []
    for span in left:
        grid = find_grid(calendar, interval, span)
        end = min(span.end, grid.find_begun_end(now))
        parts = _find_missing(Window(span.start, end), grid, asked_at, coverage)
        pages = pack_windows([_begin_with_bar(part, grid) for part in parts], terms.page)
        requests += [FetchRequest(interval, page, RELOAD, grid.count(page)) for page in pages]
    return requests


def _verify_first(
    interval: Interval, calendar: str, spans: Sequence[Window], longest: timedelta
) -> list[FetchRequest]:
    """Return a request for the oldest span in which bars are expected: closures have none."""
    for span in spans:
        grid = find_grid(calendar, interval, span)
        if grid.count(span):
            page = _begin_with_bar(span, grid)
            page = Window(page.start, min(page.end, page.start + longest))
            return [FetchRequest(interval, page, VERIFY, grid.count(page))]
    return []


def _limit(
    wanted: Window, grid: Grid, now: datetime, coverage: Coverage, earliest: datetime | None
) -> Window:
    """Cut off what has not begun, what the provider cannot have, and what comes after the end."""
    end = min(wanted.end, grid.find_begun_end(now))
    gone = [hole.window.start for hole in coverage.holes if hole.reason == AFTER_LAST]
    start = max([wanted.start, *([] if earliest is None else [earliest])])
    return Window(start, min([end, *gone]))


def _find_missing(
    wanted: Window, grid: Grid, asked_at: datetime, coverage: Coverage
) -> list[Window]:
    waiting = [hole.window for hole in coverage.holes if not hole.is_due(asked_at)]
    left = subtract_windows([wanted], [*coverage.settled, *waiting])
    return [part for part in left if grid.count(part)]


def _find_retried(
    wanted: Window, grid: Grid, asked_at: datetime, coverage: Coverage
) -> list[Window]:
    """Return the holes to ask for again; those after a failure are missing anyway."""
    due = [
        hole.window
        for hole in coverage.holes
        if hole.reason != FETCH_FAILED and hole.is_due(asked_at)
    ]
    return [part for part in intersect_windows(due, [wanted]) if grid.count(part)]


def _begin_with_bar(part: Window, grid: Grid) -> Window:
    """Leave out the time before the first expected bar: a page may reach further for it."""
    return Window(from_micros(grid.cut(part).opens[0]), part.end)


def _overlap(
    part: Window, wanted: Window, grid: Grid, coverage: Coverage, earliest: datetime
) -> Window:
    """Begin the newest span a few known bars earlier."""
    if part.end < wanted.end:
        return part
    before = [window for window in coverage.current if window.start < part.start <= window.end]
    if not before:
        return part
    known = max(before[0].start, earliest)
    return Window(max(known, grid.step_back(part.start, OVERLAP_BARS)), part.end)


def _name_purpose(page: Window, missing: list[Window], wanted: Window, coverage: Coverage) -> str:
    if not intersect_windows([page], missing):
        return RETRY
    return TAIL if page.end == wanted.end and coverage.watermark is not None else MISSING
