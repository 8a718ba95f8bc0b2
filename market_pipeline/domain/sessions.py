"""Trading sessions: the hours of a market, and the bars that they lead to expect.

Exchange hours come from ``exchange_calendars``, with holidays, half days and daylight saving time.
A market with the calendar ``24/7`` has one session for each UTC day.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.intervals import ALWAYS_OPEN
from market_pipeline.domain.records import Window

Places = npt.NDArray[np.intp]
Times = npt.NDArray[np.datetime64]
_FIRST_DATE = pd.Timestamp("1990-01-01")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_DAY = datetime(2200, 1, 1, tzinfo=UTC)
CLOSED_AT_MOST = timedelta(days=60)
"""So far around a bar there is a session, or the calendar knows nothing of its time."""
_DAY = np.timedelta64(86_400_000_000, "us")
SESSION_COLUMNS = ("session_date", "open_time", "close_time")
_known: dict[str, "SessionTimes"] = {}


def read_sessions(calendar: str, start: datetime, end: datetime) -> pd.DataFrame:
    """Return the sessions whose date lies in ``[start, end)``, oldest first.

    Returns:
        Columns ``session_date`` (00:00 UTC of the date), ``open_time`` and ``close_time``, all
        datetime64[us, UTC].

    Raises:
        SettingError: The calendar is unknown.
    """
    times = read_session_times(calendar, start, end)
    columns = zip(SESSION_COLUMNS, (times.dates, times.opens, times.closes), strict=True)
    return pd.DataFrame(
        {name: pd.DatetimeIndex(moments).tz_localize("UTC") for name, moments in columns}
    )


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """Sessions as arrays of datetime64[us] in UTC: what :func:`read_sessions` has as columns."""

    dates: Times
    opens: Times
    closes: Times

    def take(self, chosen: npt.NDArray[np.bool_] | slice) -> "SessionTimes":
        """Return the chosen sessions."""
        return SessionTimes(self.dates[chosen], self.opens[chosen], self.closes[chosen])


def read_session_times(calendar: str, start: datetime, end: datetime) -> SessionTimes:
    """Return what :func:`read_sessions` does, without a frame: for a call about a few bars.

    Raises:
        SettingError: The calendar is unknown.
    """
    bounds = [np.datetime64(time.astimezone(UTC).replace(tzinfo=None)) for time in (start, end)]
    if calendar == ALWAYS_OPEN:
        first, last = ((bound + _DAY - 1).astype("M8[D]") for bound in bounds)
        dates: Times = np.arange(first, last).astype("M8[us]")
        closes: Times = dates + _DAY
        return SessionTimes(dates, dates, closes)
    known = _read_schedule(calendar)
    return known.take(slice(*np.searchsorted(known.dates, bounds)))


def find_known_span(calendar: str) -> Window | None:
    """Return the time of which a calendar knows the sessions (UTC); None: it knows all time.

    It begins with the month of the first session and ends with the day of the last one.

    Raises:
        SettingError: The calendar is unknown.
    """
    if calendar == ALWAYS_OPEN:
        return None
    dates = _read_schedule(calendar).dates
    first, last = (date.item().replace(tzinfo=UTC) for date in (dates[0], dates[-1]))
    return Window(first.replace(day=1), last + timedelta(days=1))


def _read_schedule(calendar: str) -> SessionTimes:
    if calendar not in _known:
        remember_schedule(calendar, build_schedule(calendar))
    return _known[calendar]


def read_sessions_around(times: "pd.Series[pd.Timestamp]", calendar: str) -> pd.DataFrame:
    """Return every session that a received bar can belong to, those beyond the window included."""
    times = times[times.between(EPOCH, LAST_DAY)]  # Others cannot be true: they need no session.
    if times.empty:
        return read_sessions(calendar, EPOCH, EPOCH)
    return read_sessions(calendar, times.min() - CLOSED_AT_MOST, times.max() + CLOSED_AT_MOST)


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


def find_sessions(times: "pd.Series[pd.Timestamp]", sessions: pd.DataFrame) -> Places:
    """Return the row of the session each time falls in, -1 where none does."""
    moments = times.to_numpy(dtype="datetime64[us]")
    opens, closes = (
        sessions[name].to_numpy(dtype="datetime64[us]") for name in ("open_time", "close_time")
    )
    row = np.searchsorted(opens, moments, side="right") - 1
    is_inside = (row >= 0) & (moments < np.append(closes, np.datetime64("NaT", "us"))[row])
    return np.where(is_inside, row, -1)


def describe_source() -> str:
    """Return the library that knows the sessions, and its version."""
    return f"exchange_calendars {version('exchange_calendars')}"


def is_schedule_known(calendar: str) -> bool:
    """Return whether :func:`read_sessions` has a calendar at hand."""
    return calendar in _known


def remember_schedule(calendar: str, schedule: pd.DataFrame) -> None:
    """Let :func:`read_sessions` have a schedule, as :func:`build_schedule` returned it once."""
    columns = (schedule[name].dt.tz_localize(None) for name in SESSION_COLUMNS)
    _known[calendar] = SessionTimes(*(column.to_numpy("M8[us]") for column in columns))


def build_schedule(calendar: str) -> pd.DataFrame:
    """Return all sessions from 1990, or the calendar's first, to a year from now.

    Raises:
        SettingError: The calendar is unknown.
    """
    schedule = _open_calendar(calendar).schedule
    return pd.DataFrame(
        {
            "session_date": schedule.index.tz_localize("UTC").as_unit("us"),
            "open_time": pd.DatetimeIndex(schedule["open"]).as_unit("us"),
            "close_time": pd.DatetimeIndex(schedule["close"]).as_unit("us"),
        }
    )


def resolve_calendar(name: str) -> str:
    """Return a calendar's one name: aliases such as ``NYSE`` have another.

    Raises:
        SettingError: The calendar is unknown.
    """
    if name == ALWAYS_OPEN or name in _known:
        return name
    import exchange_calendars as xcals

    if name not in xcals.get_calendar_names(include_aliases=True):
        raise SettingError(
            f"calendar {name[:40]!r} is unknown: expected 24/7, or a name that exchange_calendars "
            "has, such as XNYS, XETR or 24/5"
        )
    return str(xcals.resolve_alias(name))


def _open_calendar(calendar: str) -> Any:
    # It costs 0.3 s to import; few runs need it, see ``ingestion.calendars``.
    import exchange_calendars as xcals

    try:
        return xcals.get_calendar(calendar, start=_FIRST_DATE)
    except xcals.errors.InvalidCalendarName:
        raise SettingError(f"calendar {calendar!r} is unknown: see exchange_calendars") from None
    except ValueError:  # It begins later: Tokyo's holidays are known from 1997 on.
        return xcals.get_calendar(calendar, start=xcals.get_calendar(calendar).bound_min())
