"""Freshness: the time up to which a market should be known by now, and whether it is.

Checks, alerts and pages all call :func:`find_delay`. They differ only in the clock.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from market_pipeline.domain.arrays import Micros
from market_pipeline.domain.grids import find_grid, from_micros, to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window


@dataclass(frozen=True, slots=True)
class TrackedSeries:
    """One interval of a market, as far as freshness goes.

    Attributes:
        calendar: The market's. interval: Of the bars.
        publication_lag: From a bar's close until its final values are out.
        watermark: Close of the last final bar (UTC); None: there is none.
        explained: The last hole that is explained: its bars will never come.
    """

    calendar: str
    interval: Interval
    publication_lag: timedelta = timedelta(0)
    watermark: datetime | None = None
    explained: Window | None = None


def find_delay(series: TrackedSeries, end: datetime, now: datetime) -> datetime | None:
    """Return the time up to which a series should be final (UTC); None if it is, or if unknown.

    A bar that the provider is known not to have is not waited for.

    Args:
        series: What is known of it.
        end: Bars that open before it were asked for (UTC).
        now: The clock by which bars are due (UTC).
    """
    due = find_newest_due(series.calendar, series.interval, end, now, series.publication_lag)
    if due is None or (series.watermark is not None and series.watermark >= due.end):
        return None
    explained = series.explained
    if explained is not None and explained.start <= due.start < explained.end:
        return None
    return due.end


@lru_cache(maxsize=1024)
def find_newest_due(
    calendar: str, interval: Interval, end: datetime, now: datetime, publication_lag: timedelta
) -> Window | None:
    """Return open_time and close of the newest bar that should be final and stored.

    Args:
        calendar: The market's.
        interval: Of the bars.
        end: Bars that open before it were asked for (UTC).
        now: The run's clock (UTC).
        publication_lag: From a bar's close until its final values are out.

    Returns:
        None when no bar of the calendar is old enough.
    """
    grid = find_grid(calendar, interval, Window(min(end, now), now))
    closed = int(is_due(grid.closes, now, publication_lag).sum())
    asked = int(np.searchsorted(grid.opens, to_micros(end)))
    newest = min(closed, asked) - 1
    if newest < 0:
        return None
    return Window(from_micros(grid.opens[newest]), from_micros(grid.closes[newest]))


def is_due(closes: Micros, now: datetime, publication_lag: timedelta) -> npt.NDArray[np.bool_]:
    """Tell which bars' final values should be out by a clock, given when the bars close."""
    return np.asarray(closes <= to_micros(now - publication_lag))
