"""Days and weeks made of new and stored bars, before any of the new ones is stored.

Everything here is pure. Who writes a market's bars holds its claim, so nobody changes what was read
before: days and weeks are built before the lock of merges is taken.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from market_pipeline.domain.arrays import BoolArray, IntArray
from market_pipeline.domain.bars import (
    BuiltBars,
    Gone,
    build_daily_bars,
    build_weekly_bars,
    find_gone_sessions,
)
from market_pipeline.domain.columns import BarColumns, join_columns
from market_pipeline.domain.grids import from_micros, to_micros
from market_pipeline.domain.intervals import Interval, floor_to_monday
from market_pipeline.domain.ranges import clip_windows
from market_pipeline.domain.records import Market, Window
from market_pipeline.domain.sessions import SessionTimes, read_session_times
from market_pipeline.ingestion.settle import NOTHING_ABSENT, UnavailableBars
from market_pipeline.storage.bars.stored import SeriesSpan

_DAY = timedelta(days=1)
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class MarketBars:
    """Bars of one market that are about to be written.

    Attributes:
        market: The market. market_id: Its key.
        bars: Good bars of fetched intervals; none, where only ``absence`` is news.
        absence: Bars that will never come: days and weeks do not wait for them.
    """

    market: Market
    market_id: int
    bars: BarColumns
    absence: UnavailableBars = NOTHING_ABSENT

    @property
    def has_days(self) -> bool:
        """Whether its provider serves days; else they are built from hours."""
        return Interval.DAY in self.market.intervals


def list_needed_spans(parts: Iterable[MarketBars], now: datetime) -> list[SeriesSpan]:
    """Return the spans of stored bars that the days and weeks of new ones are made of.

    Args:
        parts: The new bars, by market.
        now: The run's clock (UTC).
    """
    spans: list[SeriesSpan] = []
    for part in parts:
        touched = _find_touched(part, now)
        if touched is None:
            continue
        if not part.has_days:
            around = Window(touched.start - 2 * _DAY, touched.end + 2 * _DAY)
            spans.append(SeriesSpan(part.market_id, Interval.HOUR, around))
            touched = Window(touched.start - _DAY, touched.end)
        weeks = _widen_to_weeks(touched)
        spans.append(SeriesSpan(part.market_id, Interval.DAY, weeks))
        spans.append(SeriesSpan(part.market_id, Interval.WEEK, weeks))
    return spans


def _find_touched(part: MarketBars, now: datetime) -> Window | None:
    """Return from which to which open_time base bars came, or are now known never to come."""
    opens = part.bars.of_interval(Interval.DAY if part.has_days else Interval.HOUR).open_time
    return _bound(opens, part.absence, now)


def _bound(opens: IntArray, absence: UnavailableBars, now: datetime) -> Window | None:
    bounds = [bound for gone in absence.new for bound in (gone.start, min(gone.end, now))]
    if len(opens):
        bounds += [from_micros(opens.min()), from_micros(opens.max())]
    return Window(min(bounds), max(bounds)) if bounds else None


def _widen_to_weeks(touched: Window) -> Window:
    return Window(floor_to_monday(touched.start), floor_to_monday(touched.end) + 7 * _DAY)


def derive_bars(parts: Sequence[MarketBars], stored: BuiltBars, now: datetime) -> BuiltBars:
    """Return the days and weeks that new bars touch.

    Args:
        parts: The new bars, by market.
        stored: The bars that :func:`list_needed_spans` asks for, and their market_id.
        now: The run's clock (UTC).
    """
    by_calendar: dict[str, list[MarketBars]] = {}
    for part in parts:
        by_calendar.setdefault(part.market.calendar, []).append(part)
    built = [
        _CalendarBars(calendar, its, stored, now).derive() for calendar, its in by_calendar.items()
    ]
    return join_built(built)


def join_built(parts: Sequence[BuiltBars]) -> BuiltBars:
    """Return bars and their owners one after the other."""
    owners = [part.owners for part in parts]
    joined = np.concatenate(owners) if owners else np.empty(0, dtype=np.int64)
    return BuiltBars(join_columns([part.bars for part in parts]), joined)


def join_parts(parts: Sequence[MarketBars]) -> BuiltBars:
    """Return the bars of all markets and their market_id, of equal keys the last alone."""
    owners = np.repeat([part.market_id for part in parts], [len(part.bars) for part in parts])
    bars = join_columns([part.bars for part in parts])
    return _keep_last(BuiltBars(bars, owners.astype(np.int64)), np.zeros(len(bars)))


def _keep_last(pool: BuiltBars, rank: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> BuiltBars:
    """Return one bar for each key, the one of the highest rank; of equals the last."""
    bars, owners = pool.bars, pool.owners
    if not len(bars):
        return pool
    length = np.select([bars.interval == Interval.HOUR.value, bars.interval == Interval.DAY.value],
                       [0, 1], 2)  # fmt: skip
    order = np.lexsort((rank, bars.open_time, length, owners))
    keys = (owners[order], length[order], bars.open_time[order])
    is_last = np.append(np.logical_or.reduce([np.diff(key) != 0 for key in keys]), True)
    kept = order[is_last]
    return BuiltBars(bars.take(kept), owners[kept])


def _lay_over(stored: BuiltBars, new: BuiltBars) -> BuiltBars:
    """Return what is stored once new bars are written: what is final is replaced by a final bar."""
    pool = join_built([stored, new])
    is_new = np.arange(len(pool.owners)) >= len(stored.owners)
    rank = np.where(is_new, 0.0, -1.0) + 2.0 * pool.bars.is_final
    return _keep_last(pool, rank)


class _CalendarBars:
    """The new and the stored bars of the markets of one calendar."""

    def __init__(
        self, calendar: str, parts: Sequence[MarketBars], stored: BuiltBars, now: datetime
    ) -> None:
        self._calendar, self._parts, self._now = calendar, parts, now
        is_its = np.isin(stored.owners, [part.market_id for part in parts])
        self._stored = BuiltBars(stored.bars.take(is_its), stored.owners[is_its])
        self._pool = _lay_over(self._stored, join_parts(parts))

    def derive(self) -> BuiltBars:
        """Return the days of markets that have hours alone, and the weeks of all."""
        days = self._build_days([part for part in self._parts if not part.has_days])
        weeks = self._build_weeks(days)
        return join_built([days, weeks])

    def _build_days(self, parts: Sequence[MarketBars]) -> BuiltBars:
        touched = {
            part.market_id: window
            for part in parts
            if (window := _find_touched(part, self._now)) is not None
        }
        if not touched:
            return join_built([])
        around = {
            key: Window(window.start - 2 * _DAY, window.end + 2 * _DAY)
            for key, window in touched.items()
        }
        hours = _cut(self._pool, Interval.HOUR, around)
        gone = {part.market_id: part.absence.gone for part in parts if part.market_id in touched}
        sessions = self._read_sessions(around)
        built = build_daily_bars(hours.bars, hours.owners, sessions, _clip(gone, around))
        wanted = {
            key: Window(window.start - _DAY, window.end + _INSTANT)
            for key, window in touched.items()
        }
        return self._stay_final(_cut(built, Interval.DAY, wanted))

    def _build_weeks(self, days: BuiltBars) -> BuiltBars:
        weeks = {
            part.market_id: _widen_to_weeks(touched)
            for part in self._parts
            if (touched := self._find_touched_days(part, days)) is not None
        }
        if not weeks:
            return join_built([])
        pool = _cut(_lay_over(self._pool, days), Interval.DAY, weeks)
        sessions = self._read_sessions(weeks)
        gone = _clip(self._list_gone(weeks), weeks)
        built = build_weekly_bars(pool.bars, pool.owners, sessions, self._now, gone)
        return self._stay_final(built)

    def _find_touched_days(self, part: MarketBars, days: BuiltBars) -> Window | None:
        own = part.bars.of_interval(Interval.DAY).open_time
        opens = np.append(own, days.bars.open_time[days.owners == part.market_id])
        return _bound(opens, part.absence, self._now)

    def _list_gone(self, weeks: Mapping[int, Window]) -> dict[int, Sequence[Window]]:
        gone: dict[int, Sequence[Window]] = {}
        for part in self._parts:
            if part.market_id not in weeks or not part.absence.gone:
                continue
            window = weeks[part.market_id]
            known = clip_windows(part.absence.gone, window)
            if known and not part.has_days:
                known = find_gone_sessions(self._read_sessions({0: window}), part.absence.gone)
            gone[part.market_id] = known
        return gone

    def _read_sessions(self, windows: Mapping[int, Window]) -> SessionTimes:
        start = min(window.start for window in windows.values())
        end = max(window.end for window in windows.values())
        return read_session_times(self._calendar, to_micros(start), to_micros(end))

    def _stay_final(self, built: BuiltBars) -> BuiltBars:
        """Return built bars, final where the stored one is: it would not be replaced otherwise.

        A hole that was explained may be doubted again, when a part of it comes after all.
        """
        bars = built.bars
        waiting = np.flatnonzero(~bars.is_final & (bars.close_time <= to_micros(self._now)))
        if not len(waiting):
            return built
        known = self._list_finals(bars.interval[waiting[0]])
        is_final = bars.is_final.copy()
        for place in waiting.tolist():
            key = int(built.owners[place]), int(bars.open_time[place])
            is_final[place] = key in known
        return BuiltBars(bars.with_final(is_final), built.owners)

    def _list_finals(self, interval: str) -> set[tuple[int, int]]:
        bars = self._stored.bars
        is_its = (bars.interval == interval) & bars.is_final
        owners, opens = self._stored.owners[is_its], bars.open_time[is_its]
        return set(zip(owners.tolist(), opens.tolist(), strict=True))


def _clip(gone: Gone, windows: Mapping[int, Window]) -> Gone:
    """Return what matters: most of it lies long before."""
    clipped = {key: clip_windows(spans, windows[key]) for key, spans in gone.items()}
    return {key: spans for key, spans in clipped.items() if spans}


def _cut(pool: BuiltBars, interval: Interval, windows: Mapping[int, Window]) -> BuiltBars:
    """Return the bars of an interval that open in their market's window."""
    bars, owners = pool.bars, pool.owners
    keys = np.array(sorted(windows), dtype=np.int64)
    starts, ends = (
        np.array([to_micros(getattr(windows[key], side)) for key in keys.tolist()] + [0])
        for side in ("start", "end")
    )
    row = np.searchsorted(keys, owners)
    is_known: BoolArray = np.append(keys, -1)[row] == owners
    is_in = (starts[row] <= bars.open_time) & (bars.open_time < ends[row])
    chosen = np.flatnonzero(is_known & is_in & (bars.interval == interval.value))
    return BuiltBars(bars.take(chosen), owners[chosen])
