"""Trading sessions and the hourly grid."""

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from market_pipeline.domain.columns import to_micros_array
from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.grids import to_micros
from market_pipeline.domain.sessions import (
    EPOCH,
    LAST_DAY,
    SESSION_COLUMNS,
    build_hourly_grid,
    read_session_times,
    read_sessions,
    remember_schedule,
)


def read(calendar: str, start: str, end: str) -> pd.DataFrame:
    """Read sessions between two dates."""
    first, last = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (start, end))
    return read_sessions(calendar, first, last)


def show(times: "pd.Series[pd.Timestamp] | pd.DatetimeIndex") -> list[str]:
    """Write times short."""
    return [f"{time:%m-%d %H:%M}" for time in times]


def test_a_holiday_has_no_session() -> None:
    """New York does not trade on the fourth of July."""
    assert show(read("XNYS", "2024-07-03", "2024-07-06")["session_date"]) == [
        "07-03 00:00",
        "07-05 00:00",
    ]


def test_a_half_day_closes_early() -> None:
    """On Christmas Eve New York closes at 13:00, which is 18:00 UTC."""
    assert show(read("XNYS", "2024-12-24", "2024-12-25")["close_time"]) == ["12-24 18:00"]


@pytest.mark.parametrize(
    ("friday", "tuesday", "opens"),
    [
        ("2024-03-08", "2024-03-12", ["03-08 14:30", "03-11 13:30"]),
        ("2024-11-01", "2024-11-05", ["11-01 13:30", "11-04 14:30"]),
    ],
)
def test_the_opening_bell_moves_with_daylight_saving_time(
    friday: str, tuesday: str, opens: list[str]
) -> None:
    """9:30 in New York is 14:30 UTC in winter and 13:30 in summer, on both changes."""
    assert show(read("XNYS", friday, tuesday)["open_time"]) == opens


def test_e11_an_always_open_market_has_a_session_every_day_also_on_a_leap_day() -> None:
    """February 2024 has 29 sessions of 24 hours."""
    sessions = read("24/7", "2024-02-01", "2024-03-01")
    assert len(sessions) == 29
    assert show(sessions["open_time"])[-1] == "02-29 00:00"
    assert show(sessions["close_time"])[-1] == "03-01 00:00"


def test_the_start_is_included_and_the_end_is_not() -> None:
    """Sessions belong to a half-open span by their date."""
    assert show(read("24/7", "2024-01-01", "2024-01-02")["session_date"]) == ["01-01 00:00"]
    assert show(read("XNYS", "2024-01-02", "2024-01-03")["session_date"]) == ["01-02 00:00"]


@pytest.mark.parametrize("calendar", ["24/7", "XNYS"])
def test_sessions_have_the_same_columns_and_dtypes_in_every_calendar(calendar: str) -> None:
    """All times are UTC in microseconds, an empty span included."""
    for end in ("2024-01-02", "2024-02-01"):
        dtypes = read(calendar, "2024-01-02", end).dtypes
        assert tuple(dtypes.index) == SESSION_COLUMNS
        assert {str(dtype) for dtype in dtypes} == {"datetime64[us, UTC]"}


def test_a_calendar_that_begins_late_has_the_sessions_it_knows() -> None:
    """Tokyo's holidays are known from 1997 on; earlier years are empty and later ones are not."""
    assert read("XTKS", "1995-01-01", "1996-01-01").empty
    assert show(read("XTKS", "2024-01-01", "2024-01-06")["close_time"]) == [
        "01-04 06:00",
        "01-05 06:00",
    ]


def test_an_unknown_calendar_is_refused() -> None:
    """The message names the calendar."""
    with pytest.raises(SettingError, match="XXXX"):
        read("XXXX", "2024-01-01", "2024-02-01")


def test_hourly_bars_start_at_the_open_and_every_hour_after_it() -> None:
    """A half day of three and a half hours has four bars, the last of them short."""
    grid = build_hourly_grid(read("XNYS", "2024-12-24", "2024-12-25"))
    assert show(grid) == ["12-24 14:30", "12-24 15:30", "12-24 16:30", "12-24 17:30"]


def test_an_always_open_day_has_24_hours_whatever_clocks_do() -> None:
    """Daylight saving time does not touch UTC."""
    assert len(build_hourly_grid(read("24/7", "2024-03-10", "2024-03-11"))) == 24


def test_no_session_means_no_hourly_bar() -> None:
    """The grid of a holiday is empty."""
    assert len(build_hourly_grid(read("XNYS", "2024-12-25", "2024-12-26"))) == 0


@pytest.mark.parametrize("calendar", ["24/7", "XNYS", "24/5"])
@pytest.mark.parametrize("hours", [0, 1, 24, 400])
def test_session_times_are_the_columns_of_the_sessions(calendar: str, hours: int) -> None:
    """The same sessions at the same bounds, as arrays."""
    start = datetime(2024, 2, 28, 23, tzinfo=UTC)
    end = start + timedelta(hours=hours)
    times = read_session_times(calendar, to_micros(start), to_micros(end))
    sessions = read_sessions(calendar, start, end)
    columns = (times.dates, times.opens, times.closes)
    for name, values in zip(SESSION_COLUMNS, columns, strict=True):
        assert values.tolist() == to_micros_array(sessions[name]).tolist()


def test_session_times_follow_a_schedule_that_changes() -> None:
    """A calendar that was filled anew is read anew."""
    days = datetime(2024, 3, 4, tzinfo=UTC), datetime(2024, 3, 9, tzinfo=UTC)
    start, end = map(to_micros, days)
    before = read_sessions("XNYS", EPOCH, LAST_DAY)
    assert len(read_session_times("XNYS", start, end).dates) == 5
    try:
        remember_schedule("XNYS", before[before["session_date"] != "2024-03-06"])
        assert len(read_session_times("XNYS", start, end).dates) == 4
    finally:
        remember_schedule("XNYS", before)
