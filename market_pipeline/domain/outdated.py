"""Outdated rows: statistics older than a bar of their window that was corrected or loaded later.

A row keeps the newest dataset version of the bars in its window. Only the newest row of a series is
computed again when a bar changes, so an older row may be out of date.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pandas as pd

from market_pipeline.domain.arrays import BoolArray, IntArray
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.returns import (
    NOT_A_TIME,
    build_joined_grid,
    build_times,
    find_slack,
    find_wanted_bases,
    read_microseconds,
)


@dataclass(frozen=True, slots=True)
class RowWindows:
    """The windows of rows of one calendar, or of two joined ones.

    Attributes:
        grid: Expected open times in microseconds, ascending.
        first: Shape (k,), the column where each row's window begins. last: Where it ends.
    """

    grid: IntArray
    first: IntArray
    last: IntArray

    @property
    def span(self) -> tuple[pd.Timestamp, pd.Timestamp]:
        """The open times of the first and the last place that any row looks at."""
        first, last = build_times(self.grid[[self.first.min(), self.last.max()]])
        return first, last


def locate_windows(calendars: Iterable[str], interval: Interval, rows: pd.DataFrame) -> RowWindows:
    """Return the windows of rows: from the base close, or where it could have been, to ``as_of``.

    Args:
        calendars: The market's, or both of a pair.
        interval: Of the bars.
        rows: At least one, with ``as_of`` and ``horizon``; and ``first_bar_at`` where it is stored.
    """
    days = rows["horizon"].astype(str).str.removesuffix("d").astype("int64").to_numpy()
    # A close lies after its bar's open_time, and at the next one's at the latest.
    closes = read_microseconds(rows["as_of"]) - 1
    earliest, latest = build_times(np.array([closes.min(), closes.max()]))
    start = earliest - timedelta(days=4 * int(days.max()) + 365)
    grid = build_joined_grid(calendars, interval, start.to_pydatetime(), latest.to_pydatetime())
    last = np.maximum(np.searchsorted(grid, closes, side="right") - 1, 0)
    first = np.zeros(len(rows), dtype="int64")
    known = _locate_first_bars(grid, rows)
    for day in np.unique(days):
        at = days == day
        wanted = find_wanted_bases(grid, last[at], int(day))
        reach = np.maximum(wanted - find_slack(int(day)), 0)
        has_base = (known[at] >= 0) & (known[at] <= wanted)
        first[at] = np.where(has_base, known[at], reach)
    return RowWindows(grid, first, last)


def find_outdated(windows: RowWindows, versions: IntArray, newer: pd.DataFrame) -> BoolArray:
    """Tell for each row whether a bar within its window is newer than it.

    Args:
        windows: Of rows of one market, or of one market's side of pairs.
        versions: Shape (k,), of the rows.
        newer: The market's final bars that may be newer: ``open_time``, ``dataset_version``.
    """
    column = pd.Index(windows.grid).get_indexer(pd.Index(read_microseconds(newer["open_time"])))
    newest = np.full(len(windows.grid), -1)
    newest[column[column >= 0]] = newer["dataset_version"].to_numpy()[column >= 0]
    return np.asarray(find_range_maxima(newest, windows.first, windows.last) > versions)


def find_range_maxima(values: IntArray, first: IntArray, last: IntArray) -> IntArray:
    """Return the greatest value from each ``first`` to its ``last``, both included."""
    levels = [values]
    while 2 ** len(levels) <= len(values):
        half = 2 ** (len(levels) - 1)
        levels.append(np.maximum(levels[-1][:-half], levels[-1][half:]))
    level = np.frexp(last - first + 1)[1] - 1
    greatest = np.empty(len(first), dtype=values.dtype)
    for power in np.unique(level):
        at, table = level == power, levels[power]
        greatest[at] = np.maximum(table[first[at]], table[last[at] - 2**power + 1])
    return greatest


def _locate_first_bars(grid: IntArray, rows: pd.DataFrame) -> IntArray:
    """Return the column of each row's first bar, -1 where it is not known."""
    if "first_bar_at" not in rows:
        return np.full(len(rows), -1)
    closes = read_microseconds(rows["first_bar_at"])
    column = np.searchsorted(grid, closes - 1, side="right") - 1
    return np.where(closes == NOT_A_TIME, -1, column)
