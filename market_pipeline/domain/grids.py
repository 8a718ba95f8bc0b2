"""Grids: the bars that a calendar expects, whether or not they are stored.

A grid depends on the calendar alone. It is built once for each process and year, so planning a
thousand markets of one calendar only looks it up.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np

from market_pipeline.domain.arrays import Micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.domain.sessions import SessionTimes, read_session_times

_HOUR = 3_600_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Grid:
    """Expected bars in order; microseconds since 1970, UTC.

    Attributes:
        opens: The bars' open_time: the hour, or the session date at 00:00.
        begins: When trading in the bar begins; for a day the session's open.
        closes: When the bar ends.
    """

    opens: Micros
    begins: Micros
    closes: Micros

    def count(self, window: Window) -> int:
        """Return how many bars open within a window."""
        first, last = self._find_bounds(window)
        return last - first

    def cut(self, window: Window) -> "Grid":
        """Return the part of the grid that opens within a window."""
        part = slice(*self._find_bounds(window))
        return Grid(self.opens[part], self.begins[part], self.closes[part])

    def step_back(self, moment: datetime, bars: int) -> datetime:
        """Return where the bar opens that lies ``bars`` before ``moment``."""
        at = int(self.opens.searchsorted(to_micros(moment)))
        return (
            min(moment, from_micros(self.opens[max(at - bars, 0)])) if len(self.opens) else moment
        )

    def find_begun_end(self, now: datetime) -> datetime:
        """Return the open_time of the first bar that has not begun: nothing can be asked beyond."""
        at = int(self.begins.searchsorted(to_micros(now)))
        return from_micros(self.opens[at]) if at < len(self.opens) else now

    def _find_bounds(self, window: Window) -> tuple[int, int]:
        bounds = [to_micros(window.start), to_micros(window.end)]
        first, last = self.opens.searchsorted(bounds)
        return int(first), int(last)


def find_grid(calendar: str, interval: Interval, window: Window) -> Grid:
    """Return a grid that covers a window, and some more on both sides.

    Raises:
        SettingError: The calendar is unknown.
    """
    return _build_grid(calendar, interval, window.start.year, window.end.year)


@lru_cache(maxsize=64)
def _build_grid(calendar: str, interval: Interval, first_year: int, last_year: int) -> Grid:
    start = datetime(first_year - 1, 12, 1, tzinfo=UTC)
    end = datetime(last_year + 1, 2, 1, tzinfo=UTC)
    sessions = read_session_times(calendar, to_micros(start), to_micros(end))
    if interval is Interval.DAY:
        return Grid(sessions.dates, sessions.opens, sessions.closes)
    opens = list_hours(sessions)
    owners = np.searchsorted(sessions.opens, opens, side="right") - 1
    return Grid(opens, opens, np.minimum(opens + _HOUR, sessions.closes[owners]))


def list_hours(sessions: SessionTimes) -> Micros:
    """Return where hourly bars start: each session's open and every hour after it before the close.

    A lunch break counts as open.
    """
    counts = -(-(sessions.closes - sessions.opens) // _HOUR)
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    hours = (np.arange(counts.sum()) - firsts) * _HOUR
    return np.asarray(np.repeat(sessions.opens, counts) + hours)


def to_micros(moment: datetime) -> int:
    """Return microseconds since 1970."""
    return round(moment.timestamp() * 1_000_000)


def from_micros(micros: "int | np.int64") -> datetime:
    """Return the moment in UTC."""
    return _EPOCH + timedelta(microseconds=int(micros))
