"""Trading sessions: when a market is open, and which bars it should therefore have.

Exchange hours come from ``exchange_calendars``; a market with the calendar ``24/7`` has one session
a UTC day. Holidays, half days and daylight saving time are the library's knowledge, not ours.
"""

from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.intervals import ALWAYS_OPEN

_FIRST_DATE = pd.Timestamp("1990-01-01")
SESSION_COLUMNS = ("session_date", "open_time", "close_time")


def read_sessions(calendar: str, start: datetime, end: datetime) -> pd.DataFrame:
    """Return the sessions whose date lies in ``[start, end)``, oldest first.

    Returns:
        Columns ``session_date`` (00:00 UTC of the date), ``open_time`` and ``close_time``, all
        datetime64[us, UTC].

    Raises:
        SettingError: The calendar is unknown.
    """
    if calendar == ALWAYS_OPEN:
        return _build_daily_sessions(start, end)
    schedule = _load_schedule(calendar)
    dates = schedule["session_date"]
    first, last = (int(dates.searchsorted(pd.Timestamp(moment))) for moment in (start, end))
    return schedule.iloc[first:last].reset_index(drop=True)


def build_hourly_grid(sessions: pd.DataFrame) -> pd.DatetimeIndex:
    """Return where hourly bars start: each session's open and every hour after it before the close.

    Args:
        sessions: As :func:`read_sessions` returns them; a lunch break counts as open.
    """
    opens = sessions["open_time"].to_numpy(dtype="datetime64[us]")
    spans = sessions["close_time"].to_numpy(dtype="datetime64[us]") - opens
    counts = -(-spans // np.timedelta64(1, "h")).astype("int64")
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    hours = (np.arange(counts.sum()) - firsts) * np.timedelta64(1, "h")
    return pd.DatetimeIndex(np.repeat(opens, counts) + hours).as_unit("us").tz_localize("UTC")


def _build_daily_sessions(start: datetime, end: datetime) -> pd.DataFrame:
    dates = pd.date_range(
        pd.Timestamp(start).ceil("D"), pd.Timestamp(end), freq="D", inclusive="left", unit="us"
    )
    return pd.DataFrame(
        {"session_date": dates, "open_time": dates, "close_time": dates + pd.Timedelta(days=1)}
    )


@lru_cache(maxsize=16)
def _load_schedule(calendar: str) -> pd.DataFrame:
    schedule = _open_calendar(calendar).schedule
    return pd.DataFrame(
        {
            "session_date": schedule.index.tz_localize("UTC").as_unit("us"),
            "open_time": pd.DatetimeIndex(schedule["open"]).as_unit("us"),
            "close_time": pd.DatetimeIndex(schedule["close"]).as_unit("us"),
        }
    )


def _open_calendar(calendar: str) -> Any:
    # It costs 0.3 s to import, and a run of always-open markets never needs it.
    import exchange_calendars as xcals

    try:
        earliest = xcals.get_calendar(calendar).bound_min()
    except xcals.errors.InvalidCalendarName:
        raise SettingError(f"calendar {calendar!r} is unknown: see exchange_calendars") from None
    # Some calendars begin later: Tokyo's holidays are known from 1997 on.
    return xcals.get_calendar(calendar, start=max(_FIRST_DATE, earliest or _FIRST_DATE))
