"""Freshness: up to where a market should be known by now."""

from datetime import datetime, timedelta

import numpy as np

from market_pipeline.domain.grids import find_grid, from_micros, to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window


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
    closed = int(np.searchsorted(grid.closes, to_micros(now - publication_lag), side="right"))
    asked = int(np.searchsorted(grid.opens, to_micros(end)))
    newest = min(closed, asked) - 1
    if newest < 0:
        return None
    return Window(from_micros(grid.opens[newest]), from_micros(grid.closes[newest]))
