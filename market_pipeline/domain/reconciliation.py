"""Reconciliation: the conclusions from an answer about the span that was asked for.

Every expected bar of the span ends up in one of three ways. It came and is final: it is settled. It
is running, or its provider may still change it: it is asked for again. It should be there and is
not: it is a hole with a reason, asked for again at growing intervals, then remembered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby

import numpy as np
import numpy.typing as npt

from market_pipeline.domain.arrays import BoolArray, Micros
from market_pipeline.domain.columns import BarColumns
from market_pipeline.domain.coverage import (
    AFTER_LAST,
    BEFORE_FIRST,
    BEGINNING,
    FETCH_FAILED,
    NO_TRADES,
    PROVIDER_EMPTY,
    QUARANTINED,
    Coverage,
    Hole,
    Round,
    find_next_check,
)
from market_pipeline.domain.freshness import is_due
from market_pipeline.domain.grids import Grid, find_grid, from_micros, to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.planning import VERIFIED_AGES_DAYS
from market_pipeline.domain.ranges import merge_windows, subtract_windows
from market_pipeline.domain.records import Window

TRIES_UNTIL_GONE = 3
MISSED_UNTIL_GONE = timedelta(days=1)
"""A provider that is out of order may know no market at all for some hours."""
FEW_BARS = 3
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class FetchResult:
    """The result of one request.

    Attributes:
        window: What was asked for, by open_time.
        bars: The good bars of the interval.
        quarantined: open_time of the bars that were refused, in microseconds since 1970.
        now: The run's clock (UTC), by which bars are out.
        asked_at: The wall clock (UTC), by which holes are asked for again.
        is_turn: It is a page of the turn in which settled history is read again.
    """

    window: Window
    bars: BarColumns
    quarantined: Micros
    now: datetime
    asked_at: datetime
    is_turn: bool = False


def apply_fetch(
    coverage: Coverage,
    interval: Interval,
    calendar: str,
    publication_lag: timedelta,
    answer: FetchResult,
) -> Coverage:
    """Return the coverage after an answer; the caller sets ``bars``.

    Args:
        coverage: As it was.
        interval: Of the bars.
        calendar: The market's.
        publication_lag: From a bar's close until its final values are out.
        answer: What came.
    """
    grid = find_grid(calendar, interval, answer.window)
    part = grid.cut(answer.window)
    edges = np.append(part.opens, _find_next_open(grid, answer.window))
    is_final, is_present = _match(part, answer.bars)
    # A bar that is stored and final stays so, also when the provider has forgotten it.
    is_final |= find_known(coverage, part)
    is_missing = ~is_final & ~is_present & is_due(part.closes, answer.now, publication_lag)
    is_pending = ~is_final & ~is_missing
    span = Window(answer.window.start, max(answer.window.end, from_micros(edges[-1])))
    pending = [_span(edges, first, last) for first, last in _find_runs(is_pending)]
    kept = _forget_progress(coverage, part.opens[is_present], answer.asked_at)
    known = _end_outage(coverage, answer.asked_at)
    new_holes = _describe_holes(kept, interval, answer, part, edges, is_missing)
    return replace(
        stretch_coverage(coverage, answer.bars),
        settled=tuple(merge_windows([*coverage.settled, *subtract_windows([span], pending)])),
        holes=_replace_holes(known.holes, [span], new_holes),
        verified=_advance_verified(coverage, answer, span),
        round=_go_on(coverage, answer),
        refreshed_at=answer.asked_at,
    )


def apply_failure(
    coverage: Coverage, window: Window, asked_at: datetime, detail: str, status: int | None
) -> Coverage:
    """Return the coverage after a request that failed: what it would have settled is a hole.

    What is settled stays as it is, with its holes. A provider that says for a day and three times
    that it does not know the market is believed: the market ended, or had not begun.
    """
    holes: list[Hole] = []
    failed = subtract_windows([window], coverage.settled)
    for part in failed:
        tries, first_seen_at = _count_tries(coverage.holes, part, asked_at)
        reason = FETCH_FAILED
        if (
            status == _NOT_FOUND
            and tries >= TRIES_UNTIL_GONE
            and asked_at - first_seen_at >= MISSED_UNTIL_GONE
        ):
            reason = _name_end(coverage, part)
        again = find_next_check(reason, tries, asked_at)
        holes.append(Hole(part, reason, tries, first_seen_at, asked_at, again, detail))
    return replace(coverage, holes=_replace_holes(coverage.holes, failed, holes))


def skip_turn(coverage: Coverage, window: Window, now: datetime) -> Coverage:
    """Return the coverage after a page of the turn failed: it waits for the next turn.

    Args:
        coverage: As it was.
        window: The page.
        now: The run's clock (UTC).
    """
    turn = _turn_to(coverage, window, now)
    return replace(coverage, round=replace(turn, skipped=(*turn.skipped, window)))


def _go_on(coverage: Coverage, answer: FetchResult) -> Round:
    """Return how far the turn has come; the first one begins with the first answer."""
    if answer.is_turn:
        return _turn_to(coverage, answer.window, answer.now)
    return coverage.round or Round(answer.now, BEGINNING, answer.now)


def _turn_to(coverage: Coverage, page: Window, now: datetime) -> Round:
    """Return the turn up to the end of a page; a page before the turn begins a new one."""
    turn = coverage.round or Round(now, page.start, now)
    if page.start < turn.reached:
        return Round(turn.read_at, page.end, now)
    return replace(turn, reached=page.end, read_at=now)


def _name_end(coverage: Coverage, part: Window) -> str:
    """Return on which side of a market's bars a part lies: one between them proves nothing."""
    first, last = coverage.first_bar_at, coverage.last_bar_at
    if first is None or last is None:
        return FETCH_FAILED
    if part.start >= last:
        return AFTER_LAST
    return BEFORE_FIRST if part.end <= first else FETCH_FAILED


def release_settled(coverage: Coverage, windows: Sequence[Window]) -> Coverage:
    """Return the coverage of a series of which some spans must be read again."""
    return replace(coverage, settled=tuple(subtract_windows(coverage.settled, windows)))


def _end_outage(coverage: Coverage, asked_at: datetime) -> Coverage:
    """Make failures due that began after the last answer: the provider works again.

    A request that fails while others are answered goes on waiting.
    """
    since = coverage.refreshed_at
    holes = [
        replace(hole, next_check_at=asked_at)
        if hole.reason == FETCH_FAILED and (since is None or hole.first_seen_at > since)
        else hole
        for hole in coverage.holes
    ]
    return replace(coverage, holes=tuple(holes))


def find_known(coverage: Coverage, part: Grid) -> npt.NDArray[np.bool_]:
    """Tell which expected bars are stored and final: settled, and in no hole."""
    holes = [hole.window for hole in coverage.holes]
    return find_inside(subtract_windows(coverage.settled, holes), part.opens)


def list_known_spans(coverage: Coverage) -> list[Window]:
    """Return the spans whose stored final bars may be compared: those of the parser in use."""
    return subtract_windows(coverage.current, [hole.window for hole in coverage.holes])


def find_inside(spans: Sequence[Window], opens: Micros) -> npt.NDArray[np.bool_]:
    """Tell which of some ordered moments lie in one of the spans."""
    inside = np.zeros(len(opens), dtype=bool)
    for span in spans:
        first, last = np.searchsorted(opens, [to_micros(span.start), to_micros(span.end)])
        inside[first:last] = True
    return inside


def _find_next_open(grid: Grid, window: Window) -> int:
    """Return where the first expected bar after a window opens: until then nothing can come."""
    at = int(np.searchsorted(grid.opens, to_micros(window.end)))
    return int(grid.opens[at]) if at < len(grid.opens) else to_micros(window.end)


def _match(part: Grid, bars: BarColumns) -> tuple[BoolArray, BoolArray]:
    finals = bars.open_time[bars.is_final]
    return np.isin(part.opens, finals), np.isin(part.opens, bars.open_time)


def _find_runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the first and last position of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _span(edges: npt.NDArray[np.int64], first: int, last: int) -> Window:
    return Window(from_micros(edges[first]), from_micros(edges[last + 1]))


def _describe_holes(
    coverage: Coverage,
    interval: Interval,
    answer: FetchResult,
    part: Grid,
    edges: npt.NDArray[np.int64],
    is_missing: npt.NDArray[np.bool_],
) -> list[Hole]:
    refused = np.isin(part.opens, answer.quarantined)
    holes = []
    for first, last in _find_runs(is_missing):
        for is_refused, group in groupby(range(first, last + 1), key=lambda at: bool(refused[at])):
            members = list(group)
            window = _span(edges, members[0], members[-1])
            few = interval is Interval.HOUR and first > 0 and last + 1 < len(is_missing)
            few = few and last - first < FEW_BARS
            reason = QUARANTINED if is_refused else NO_TRADES if few else PROVIDER_EMPTY
            holes.append(_make_hole(coverage, window, reason, answer, is_oldest=members[0] == 0))
    return holes


def _make_hole(
    coverage: Coverage, window: Window, reason: str, answer: FetchResult, is_oldest: bool
) -> Hole:
    waiting = _find_waiting(coverage.holes, window, reason, answer.asked_at)
    if waiting is not None:
        return replace(waiting, window=window)
    tries, first_seen_at = _count_tries(coverage.holes, window, answer.asked_at)
    first_bar_at = stretch_coverage(coverage, answer.bars).first_bar_at
    if (
        reason == PROVIDER_EMPTY
        and is_oldest
        and tries > 1
        and first_bar_at is not None
        and first_bar_at >= window.end
    ):
        reason = BEFORE_FIRST
    again = find_next_check(reason, tries, answer.asked_at)
    return Hole(window, reason, tries, first_seen_at, answer.asked_at, again)


def _find_waiting(
    holes: Sequence[Hole], window: Window, reason: str, asked_at: datetime
) -> Hole | None:
    """Return the hole that was asked for before its time, with known bars around it: no new try."""
    known = [hole for hole in holes if _overlaps(hole, window)]
    is_waiting = len(known) == 1 and known[0].reason in (reason, BEFORE_FIRST)
    return known[0] if is_waiting and not known[0].is_due(asked_at) else None


def _overlaps(hole: Hole, window: Window) -> bool:
    return hole.window.start < window.end and window.start < hole.window.end


def _count_tries(holes: Sequence[Hole], window: Window, now: datetime) -> tuple[int, datetime]:
    """Return which try this was for a window, and since when it has been missed."""
    known = [hole for hole in holes if _overlaps(hole, window)]
    tries = max((hole.tries for hole in known), default=0) + 1
    return tries, min((hole.first_seen_at for hole in known), default=now)


def _forget_progress(
    coverage: Coverage, present: npt.NDArray[np.int64], asked_at: datetime
) -> Coverage:
    """Restart the count of tries when some bars of a hole came: the others may come as well."""
    holes = [
        replace(hole, tries=0, next_check_at=asked_at) if _contains_any(hole, present) else hole
        for hole in coverage.holes
    ]
    return replace(coverage, holes=tuple(holes))


def _contains_any(hole: Hole, opens: npt.NDArray[np.int64]) -> bool:
    bounds = [to_micros(hole.window.start), to_micros(hole.window.end)]
    first, last = np.searchsorted(opens, bounds)
    return bool(first < last)


def _replace_holes(
    holes: Sequence[Hole], windows: Sequence[Window], new: Sequence[Hole]
) -> tuple[Hole, ...]:
    """Put new holes in the place of what the old ones said about some windows."""
    kept = [
        replace(hole, window=part)
        for hole in holes
        for part in subtract_windows([hole.window], windows)
    ]
    return tuple(sorted([*kept, *new], key=lambda hole: hole.window.start))


def _advance_verified(
    coverage: Coverage, answer: FetchResult, span: Window
) -> dict[int, tuple[Window, ...]]:
    """Add what has now been read at each age; what is loaded late has been read at all of them."""
    verified = {}
    for age in VERIFIED_AGES_DAYS:
        read = Window(span.start, min(span.end, answer.now - timedelta(days=age)))
        verified[age] = tuple(merge_windows([*coverage.verified.get(age, ()), read]))
    return verified


def stretch_coverage(coverage: Coverage, bars: BarColumns) -> Coverage:
    """Return a coverage whose watermark, first and last bar have taken bars in."""
    if not len(bars):
        return coverage
    finals = bars.close_time[bars.is_final]
    closes = [from_micros(finals.max())] if len(finals) else []
    first, last = from_micros(bars.open_time.min()), from_micros(bars.open_time.max())
    return replace(
        coverage,
        watermark=max(filter(None, [coverage.watermark, *closes]), default=None),
        first_bar_at=min(filter(None, [coverage.first_bar_at, first])),
        last_bar_at=max(filter(None, [coverage.last_bar_at, last])),
    )
