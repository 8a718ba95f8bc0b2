"""Coarser bars built from finer ones: weeks from days, days from hours.

Here: which fine bars make up a coarse one, their values together, and when the result is final.
Not here: reading or storing them. The bars may be of many markets of one calendar: ``owners`` says
whose each one is.

Open is the first, close the last, high the greatest, low the least. Volumes and trades of the bars
that have them are added up, and stay unknown where none has; a ``rolling_24h`` volume is never
added, for it would count a day's trade once an hour. A bar is final when every session (or hour)
that can still come has come and is final. Bars that belong to no session are left out: an older
version may have stored some.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.arrays import BoolArray, IntArray, Micros
from market_pipeline.domain.columns import BarColumns, Words, build_columns
from market_pipeline.domain.grids import from_micros, list_hours, to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.domain.sessions import SessionTimes

Places = npt.NDArray[np.intp]
Gone = Mapping[int, Sequence[Window]]
"""The spans whose fine bars will never come, by owner; they are not waited for."""
_DAY = 24 * 3_600_000_000
_KINDS = ("none", "rolling_24h")


@dataclass(frozen=True, slots=True)
class BuiltBars:
    """Coarse bars, ordered by owner and open_time, and whose each one is."""

    bars: BarColumns
    owners: IntArray


@dataclass(frozen=True, slots=True)
class _Slots:
    """The fine bars that a calendar expects: when each opens, and the coarse bar it belongs to."""

    opens: Micros
    starts: Micros
    closes: Micros


def floor_to_weeks(times: Micros) -> Micros:
    """Return Monday 00:00 UTC of each time's week; microseconds since 1970."""
    days = times // _DAY
    return np.asarray((days - (days + 3) % 7) * _DAY)  # 1970-01-01 was a Thursday.


def build_weekly_bars(
    daily: BarColumns, owners: IntArray, sessions: SessionTimes, now: datetime, gone: Gone
) -> BuiltBars:
    """Build weekly bars from all stored daily bars of those weeks.

    Args:
        daily: The days; bars of other intervals and of no session are left aside.
        owners: Whose each one is.
        sessions: The calendar's, for whole weeks: those missing from it are not expected.
        now: The run's clock; a day that has not closed by then is not final.
        gone: Sessions whose date lies in one of these will never come.

    Returns:
        Bars that open on Monday 00:00 UTC. ``close_time`` is the close of the week's last session,
        for always-open markets the next Monday 00:00 UTC.
    """
    is_day = (daily.interval == Interval.DAY.value) & np.isin(daily.open_time, sessions.dates)
    days, whose = daily.take(is_day), owners[is_day]
    days = days.with_final(days.is_final & (days.close_time <= to_micros(now)))
    slots = _Slots(sessions.dates, floor_to_weeks(sessions.dates), sessions.closes)
    return _merge_bars(days, whose, floor_to_weeks(days.open_time), slots, Interval.WEEK, gone)


def build_daily_bars(
    hourly: BarColumns, owners: IntArray, sessions: SessionTimes, gone: Gone
) -> BuiltBars:
    """Build daily bars from hourly ones; hours outside sessions do not count.

    Args:
        hourly: The hours; bars of other intervals are left aside.
        owners: Whose each one is.
        sessions: The calendar's; a lunch break counts as open hours.
        gone: Hours that open in one of these will never come.

    Returns:
        Bars that open on the session's date at 00:00 UTC.
    """
    session = _find_sessions(hourly.open_time, sessions)
    is_hour = (hourly.interval == Interval.HOUR.value) & (session >= 0)
    dates = sessions.dates[session[is_hour]]
    slots = _expect_hours(sessions)
    return _merge_bars(hourly.take(is_hour), owners[is_hour], dates, slots, Interval.DAY, gone)


def find_gone_sessions(sessions: SessionTimes, gone: Sequence[Window]) -> list[Window]:
    """Return the dates of the sessions none of whose hours will ever come.

    Args:
        sessions: The market's.
        gone: Hours that open in one of these will never come.
    """
    if not gone:
        return []
    slots = _expect_hours(sessions)
    due = slots.starts[_find_due(slots.opens, gone)]
    dates = map(from_micros, sessions.dates[~np.isin(sessions.dates, due)])
    return [Window(date, date + timedelta(days=1)) for date in dates]


def _find_sessions(opens: Micros, sessions: SessionTimes) -> Places:
    """Return the place of the session each time falls in, -1 where none does."""
    row = np.searchsorted(sessions.opens, opens, side="right") - 1
    is_inside = (row >= 0) & (opens < np.append(sessions.closes, 0)[row])
    return np.where(is_inside, row, -1)


def _expect_hours(sessions: SessionTimes) -> _Slots:
    hours = list_hours(sessions)
    session = _find_sessions(hours, sessions)
    return _Slots(hours, sessions.dates[session], sessions.closes[session])


def _find_due(opens: Micros, gone: Sequence[Window]) -> BoolArray:
    """Tell which slots can still come."""
    is_due = np.ones(len(opens), dtype=bool)
    for window in gone:
        first, last = np.searchsorted(opens, [to_micros(window.start), to_micros(window.end)])
        is_due[first:last] = False
    return is_due


def _merge_bars(
    fine: BarColumns,
    owners: IntArray,
    starts: Micros,
    slots: _Slots,
    interval: Interval,
    gone: Gone,
) -> BuiltBars:
    """Merge the fine bars of one owner that share a start."""
    order = np.lexsort((fine.open_time, owners))
    fine, owners, starts = fine.take(order), owners[order], starts[order]
    first = _find_firsts(owners, starts)
    n_due, closes = _count_due(slots, starts[first], owners[first], gone)
    is_found = fine.is_final & np.isin(fine.open_time, slots.opens)
    for owner, windows in gone.items():
        is_found &= (owners != owner) | _find_due_rows(fine.open_time, windows)
    is_whole = _add(is_found, first) == n_due
    kind = _merge_kinds(fine.volume_kind, first)
    volume = np.where(np.isin(kind, _KINDS), np.nan, _add_up(fine.volume, first))
    bars = build_columns(
        interval=interval.value,
        open_time=starts[first],
        close_time=closes,
        **_merge_prices(fine, first),
        volume=volume,
        volume_kind=kind,
        trades=_add_up(fine.trades, first),
        # "points" and "rescaled" sort before "traded", and taint the whole.
        source_kind=_pick_least(fine.source_kind, first),
        is_final=is_whole & _all(fine.is_final, first),
    )
    return BuiltBars(bars, owners[first])


def _merge_prices(fine: BarColumns, first: Places) -> dict[str, Any]:
    """A price that is no number is passed over: the checks name its bar, the week still lands."""
    last = np.append(first[1:], len(fine)) - 1 if len(first) else first
    return {
        "open": fine.open[first],
        "high": _reduce(np.fmax, fine.high, first),
        "low": _reduce(np.fmin, fine.low, first),
        "close": fine.close[last],
    }


def _find_firsts(owners: IntArray, starts: Micros) -> Places:
    """Return where each run of one owner and start begins."""
    if not len(starts):
        return np.empty(0, dtype=np.intp)
    is_new = (np.diff(owners) != 0) | (np.diff(starts) != 0)
    return np.flatnonzero(np.append(True, is_new))


def _count_due(
    slots: _Slots, starts: Micros, owners: IntArray, gone: Gone
) -> tuple[IntArray, Micros]:
    """Return how many slots of each start can still come, and when its last slot of all closes."""
    begin, end = (np.searchsorted(slots.starts, starts, side) for side in ("left", "right"))
    n_due = end - begin
    for owner, windows in gone.items():
        due = np.append(0, np.cumsum(_find_due(slots.opens, windows)))
        n_due = np.where(owners == owner, due[end] - due[begin], n_due)
    return n_due, slots.closes[end - 1] if len(starts) else starts


def _find_due_rows(opens: Micros, gone: Sequence[Window]) -> BoolArray:
    """Tell which bars, in any order, lie in no span."""
    is_due = np.ones(len(opens), dtype=bool)
    for window in gone:
        is_due &= (opens < to_micros(window.start)) | (to_micros(window.end) <= opens)
    return is_due


def _reduce(function: np.ufunc, values: npt.NDArray[Any], first: Places) -> npt.NDArray[Any]:
    return np.asarray(function.reduceat(values, first)) if len(first) else values[:0]


def _add(flags: BoolArray, first: Places) -> IntArray:
    return np.asarray(_reduce(np.add, flags.astype(np.int64), first))


def _all(flags: BoolArray, first: Places) -> BoolArray:
    return _reduce(np.logical_and, flags, first)


def _add_up(values: npt.NDArray[np.float64], first: Places) -> npt.NDArray[np.float64]:
    """Return the sums of the known values, NaN where none is known."""
    is_known = ~np.isnan(values)
    sums = _reduce(np.add, np.where(is_known, values, 0.0), first)
    return np.where(_reduce(np.logical_or, is_known, first), sums, np.nan)


def _merge_kinds(kinds: Words, first: Places) -> Words:
    """Return the one volume kind among the bars of each start, or ``none`` if it is mixed."""
    codes, words = pd.factorize(np.where(kinds == "none", np.nan, kinds))
    least = _reduce(np.minimum, np.where(codes < 0, len(words), codes), first)
    names = np.append(np.asarray(words, dtype=object), ["none"])
    return np.where(least == _reduce(np.maximum, codes, first), names[least], "none")


def _pick_least(words: Words, first: Places) -> Words:
    codes, names = pd.factorize(words, sort=True)
    chosen = _reduce(np.minimum, codes, first)
    return np.asarray(np.asarray(names, dtype=object)[chosen])
