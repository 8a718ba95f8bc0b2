"""Completeness: how many of the expected bars are there, and why the others are not.

Here: arithmetic over the ledger and the calendar's grid. Bars that are made of others (weeks of
days, days of hours) are complete when those are. Not here: what a reader does about it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, time

import numpy as np
import numpy.typing as npt

from market_pipeline.domain.arrays import Micros
from market_pipeline.domain.coverage import (
    AFTER_LAST,
    BEFORE_FIRST,
    FETCH_FAILED,
    NO_TRADES,
    OUT_OF_REACH,
    PROVIDER_EMPTY,
    QUARANTINED,
    Coverage,
)
from market_pipeline.domain.grids import Grid, find_grid, from_micros, to_micros
from market_pipeline.domain.intervals import Interval, floor_to_monday
from market_pipeline.domain.masking import NEVER_ASKED
from market_pipeline.domain.reconciliation import find_known
from market_pipeline.domain.records import Market, Window

PROVISIONAL = "provisional"
NOT_ASKED_YET = "not_asked_yet"
NOT_KNOWN_THEN = "not_known_then"
_THERE = ("", True)
# The worse, the later: a week is missing for the worst of its days.
_LABELS = (
    _THERE,
    (NO_TRADES, True),
    (BEFORE_FIRST, True),
    (AFTER_LAST, True),
    (PROVIDER_EMPTY, True),
    (PROVIDER_EMPTY, False),
    (QUARANTINED, False),
    (OUT_OF_REACH, False),
    (FETCH_FAILED, False),
    (PROVISIONAL, False),
    (NOT_ASKED_YET, False),
    (NEVER_ASKED, False),
    (NOT_KNOWN_THEN, False),
)
_CODES: Mapping[tuple[str, bool], int] = {label: at for at, label in enumerate(_LABELS)}
_WEEK_US = 7 * 86_400_000_000
_FIRST_MONDAY_US = 4 * 86_400_000_000


@dataclass(frozen=True, slots=True)
class ExpectedSeries:
    """A series of bars to be checked.

    Attributes:
        interval: Of the bars. fetched: What they are made of, or the same.
        calendar: The market's. window: By open_time (UTC).
        due_by: Bars that closed by then are expected (UTC).
        closing: Only bars that close in it, both ends included; None: all.
    """

    interval: Interval
    fetched: Interval
    calendar: str
    window: Window
    due_by: datetime
    closing: Window | None = None


@dataclass(frozen=True, slots=True)
class MissingSpan:
    """Expected bars in a row that are missing for one reason.

    Attributes:
        window: From the first one's open to the next expected bar's (UTC).
        reason: A hole's, ``never_asked``, ``not_asked_yet`` (newer than what was asked for),
            ``provisional``, or ``not_known_then`` (not in what was read, though it is known now).
        bars: How many. is_explained: Nobody will ever have them.
    """

    window: Window
    reason: str
    bars: int
    is_explained: bool


@dataclass(frozen=True, slots=True)
class Completeness:
    """The completeness of a series: expected bars are present, or missing for a reason."""

    expected: int
    absences: tuple[MissingSpan, ...]

    @property
    def missing(self) -> dict[str, int]:
        """The number of missing bars, by reason."""
        counts: Counter[str] = Counter()
        for absence in self.absences:
            counts[absence.reason] += absence.bars
        return dict(counts)


@dataclass(frozen=True, slots=True)
class _Slots:
    """Expected bars, and between which of the fetched ones each of them lies."""

    opens: Micros
    closes: Micros
    first: npt.NDArray[np.int64]


def measure_completeness(
    coverage: Coverage, series: ExpectedSeries, found: Micros | None = None
) -> Completeness:
    """Return how complete a series is.

    Args:
        coverage: Of the fetched interval.
        series: Which bars.
        found: open_time of the final bars that were read, microseconds since 1970; None: the
            ledger's word is taken.
    """
    grid, slots = _build_slots(series)
    codes = _classify(coverage, grid)
    if len(slots.first):
        codes = np.maximum.reduceat(codes, slots.first)
    if found is not None:
        is_found = _find_members(slots.opens, found)
        codes = np.where(~is_found & (codes == 0), _CODES[NOT_KNOWN_THEN, False], codes)
        if series.fetched is series.interval:  # What was read is there, whatever the ledger says.
            codes = np.where(is_found, 0, codes)
    wanted = np.flatnonzero(_choose(slots, series))
    ends = np.append(slots.opens[1:], slots.closes[-1:])[wanted]
    return Completeness(len(wanted), _group(codes[wanted], slots.opens[wanted], ends))


def name_backfill(market: Market, window: Window) -> str:
    """Return the command that asks for what is missing of a window, failures included."""
    span = f"--from {_format_time(window.start)} --to {_format_time(window.end)}"
    return f"market-pipeline backfill {span} --symbols {market.symbol} --provider {market.provider}"


def _format_time(moment: datetime) -> str:
    is_midnight = moment.time() == time(0)
    return f"{moment:%Y-%m-%d}" if is_midnight else f"{moment:%Y-%m-%dT%H:%M}Z"


def _find_members(places: Micros, found: Micros) -> npt.NDArray[np.bool_]:
    """Tell which of some ascending places are among those found."""
    at = np.searchsorted(places, found)
    at = at[np.append(places, -1)[at] == found]
    is_found = np.zeros(len(places), dtype=bool)
    is_found[at] = True
    return is_found


def _choose(slots: _Slots, series: ExpectedSeries) -> npt.NDArray[np.bool_]:
    chosen = slots.closes <= to_micros(series.due_by)
    if series.closing is not None:
        chosen &= slots.closes >= to_micros(series.closing.start)
        chosen &= slots.closes <= to_micros(series.closing.end)
    return chosen


def _build_slots(series: ExpectedSeries) -> tuple[Grid, _Slots]:
    """Return the fetched bars' grid, and the expected bars made of them."""
    window = series.window
    if series.interval is Interval.WEEK:
        window = Window(_ceil_to_monday(window.start), _ceil_to_monday(window.end))
    days = find_grid(series.calendar, Interval.DAY, window).cut(window)
    if series.fetched is Interval.DAY:
        grid, slots = days, _Slots(days.opens, days.closes, np.arange(len(days.opens)))
    elif series.interval is Interval.HOUR:
        grid = find_grid(series.calendar, Interval.HOUR, window).cut(window)
        return grid, _Slots(grid.opens, grid.closes, np.arange(len(grid.opens)))
    else:
        grid, slots = _find_hours(series.calendar, days)
    return grid, _join_weeks(slots) if series.interval is Interval.WEEK else slots


def _find_hours(calendar: str, days: Grid) -> tuple[Grid, _Slots]:
    """Return the hours of some days, and the days as what lies between them."""
    if not len(days.opens):
        return days, _Slots(days.opens, days.closes, np.arange(0))
    traded = Window(from_micros(days.begins[0]), from_micros(days.closes[-1]))
    hours = find_grid(calendar, Interval.HOUR, traded).cut(traded)
    return hours, _Slots(days.opens, days.closes, np.searchsorted(hours.opens, days.begins))


def _join_weeks(days: _Slots) -> _Slots:
    mondays = days.opens - (days.opens - _FIRST_MONDAY_US) % _WEEK_US
    opens, first, counts = np.unique(mondays, return_index=True, return_counts=True)
    return _Slots(opens, days.closes[first + counts - 1], days.first[first])


def _classify(coverage: Coverage, grid: Grid) -> npt.NDArray[np.int64]:
    """Return for each fetched bar whether it is there, as a place in ``_LABELS``."""
    codes = np.full(len(grid.opens), _CODES[NEVER_ASKED, False])
    if coverage.settled:
        codes[grid.opens >= to_micros(coverage.settled[-1].end)] = _CODES[NOT_ASKED_YET, False]
        if coverage.last_bar_at is not None:
            is_newest = codes == _CODES[NOT_ASKED_YET, False]
            is_stored = grid.opens <= to_micros(coverage.last_bar_at)
            codes[is_newest & is_stored] = _CODES[PROVISIONAL, False]
    codes[find_known(coverage, grid)] = 0
    for hole in coverage.holes:
        bounds = [to_micros(hole.window.start), to_micros(hole.window.end)]
        first, last = np.searchsorted(grid.opens, bounds)
        codes[first:last] = _CODES[hole.reason, hole.is_explained]
    return codes


def _group(codes: npt.NDArray[np.int64], opens: Micros, ends: Micros) -> tuple[MissingSpan, ...]:
    """Return runs of bars that are missing for the same reason."""
    edges = np.flatnonzero(np.diff(codes)) + 1
    starts = np.concatenate([[0], edges]) if len(codes) else edges
    stops = np.append(edges, len(codes))
    return tuple(
        MissingSpan(
            Window(from_micros(opens[first]), from_micros(ends[last - 1])),
            _LABELS[codes[first]][0],
            int(last - first),
            _LABELS[codes[first]][1],
        )
        for first, last in zip(starts, stops, strict=False)
        if codes[first]
    )


def _ceil_to_monday(moment: datetime) -> datetime:
    monday = floor_to_monday(moment)
    return monday if monday == moment else floor_to_monday(moment + Interval.WEEK.duration)
