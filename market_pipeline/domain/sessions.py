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

from market_pipeline.domain.arrays import BoolArray, Micros
from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.intervals import ALWAYS_OPEN
from market_pipeline.domain.records import Window

Places = npt.NDArray[np.intp]
_FIRST_DATE = pd.Timestamp("1990-01-01")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_DAY = datetime(2200, 1, 1, tzinfo=UTC)
CLOSED_AT_MOST = timedelta(days=60)
"""So far around a bar there is a session, or the calendar knows nothing of its time."""
SESSION_COLUMNS = ("session_date", "open_time", "close_time")
_DAY = 24 * 3_600_000_000
_CLOSED = CLOSED_AT_MOST // timedelta(microseconds=1)
_FIRST, _LAST = (int(moment.timestamp()) * 1_000_000 for moment in (EPOCH, LAST_DAY))
_known: dict[str, "SessionTimes"] = {}


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """Sessions in order, as microseconds since 1970 (UTC).

    Attributes:
        dates: 00:00 UTC of the session's date. opens: When it begins. closes: When it ends.
    """

    dates: Micros
    opens: Micros
    closes: Micros

    def take(self, chosen: "BoolArray | slice") -> "SessionTimes":
        """Return the chosen sessions."""
        return SessionTimes(self.dates[chosen], self.opens[chosen], self.closes[chosen])

    def cut(self, start: int, end: int) -> "SessionTimes":
        """Return the sessions whose date lies in ``[start, end)``."""
        return self.take(slice(*(int(at) for at in np.searchsorted(self.dates, [start, end]))))


def read_sessions(calendar: str, start: datetime, end: datetime) -> pd.DataFrame:
    """Return the sessions whose date lies in ``[start, end)``, oldest first.

    Returns:
        Columns ``session_date`` (00:00 UTC of the date), ``open_time`` and ``close_time``, all
        datetime64[us, UTC].

    Raises:
        SettingError: The calendar is unknown.
    """
    times = read_session_times(calendar, _to_micros(start), _to_micros(end))
    columns = zip(SESSION_COLUMNS, (times.dates, times.opens, times.closes), strict=True)
    return pd.DataFrame(
        {
            name: pd.DatetimeIndex(micros.view("datetime64[us]")).tz_localize("UTC")
            for name, micros in columns
        }
    )


def _to_micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def find_known_span(calendar: str) -> Window | None:
    """Return the time of which a calendar knows the sessions (UTC); None: it knows all time.

    It begins with the month of the first session and ends with the day of the last one.

    Raises:
        SettingError: The calendar is unknown.
    """
    if calendar == ALWAYS_OPEN:
        return None
    dates = _read_schedule(calendar).dates
    first, last = (EPOCH + timedelta(microseconds=int(dates[at])) for at in (0, -1))
    return Window(first.replace(day=1), last + timedelta(days=1))


def _read_schedule(calendar: str) -> SessionTimes:
    if calendar not in _known:
        remember_schedule(calendar, build_schedule(calendar))
    return _known[calendar]


def read_session_times(calendar: str, start: int, end: int) -> SessionTimes:
    """Return the sessions whose date lies in ``[start, end)``, in microseconds since 1970 (UTC).

    Raises:
        SettingError: The calendar is unknown.
    """
    if calendar == ALWAYS_OPEN:
        dates = np.arange(-(-start // _DAY) * _DAY, end, _DAY, dtype=np.int64)
        return SessionTimes(dates, dates, dates + _DAY)
    return _read_schedule(calendar).cut(start, end)


def convert_sessions(sessions: pd.DataFrame) -> SessionTimes:
    """Return sessions as :func:`read_sessions` returns them in microseconds."""
    return SessionTimes(
        *(sessions[name].to_numpy(dtype="datetime64[us]").view("int64") for name in SESSION_COLUMNS)
    )


def read_times_around(opens: Micros, calendar: str) -> SessionTimes:
    """Return every session that a received bar can belong to, those beyond the window included."""
    opens = opens[(opens >= _FIRST) & (opens <= _LAST)]  # Others cannot be true.
    if not len(opens):
        return read_session_times(calendar, 0, 0)
    first, last = int(opens.min()) - _CLOSED, int(opens.max()) + _CLOSED
    return read_session_times(calendar, first, last)


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
    _known[calendar] = convert_sessions(schedule)


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
