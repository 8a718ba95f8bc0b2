"""When bars of no session say that the calendar is wrong."""

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.domain.sessions import build_hourly_grid, read_sessions
from market_pipeline.domain.strays import HANDFUL, find_stray_rule

YEAR = datetime(2023, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)
SESSIONS = read_sessions("XNYS", *YEAR)
DATES = pd.date_range(
    SESSIONS["session_date"].iloc[0], SESSIONS["session_date"].iloc[-1], freq="D", unit="us"
)
CLOSED = DATES[~DATES.isin(SESSIONS["session_date"])]
HOLIDAYS = CLOSED[CLOSED.day_of_week < 5]
SATURDAYS = CLOSED[CLOSED.day_of_week == 5]
PRE_MARKET = SESSIONS["open_time"] - pd.Timedelta(hours=2)


def find(strays: "pd.DatetimeIndex | pd.Series[pd.Timestamp]") -> str | None:
    """Find strays of the year 2023."""
    return find_stray_rule(pd.Series(strays), SESSIONS)


@pytest.mark.parametrize(
    ("strays", "rule"),
    [
        (HOLIDAYS, "bars came on 9 of 9 weekdays on which it is closed"),
        (HOLIDAYS[:6], "bars came on 6 of 9 weekdays on which it is closed"),
        (SATURDAYS, "bars came on 51 of 51 weekends on which it is closed"),
        (PRE_MARKET[:200], "bars came on 200 of 250 days at hours at which it is closed"),
    ],
)
def test_bars_on_most_closed_dates_are_a_rule(strays: pd.DatetimeIndex, rule: str) -> None:
    """Holidays, weekends and the hours around sessions are counted apart."""
    assert find(strays) == rule


@pytest.mark.parametrize(
    "strays",
    [
        HOLIDAYS[:0],
        HOLIDAYS[:4],  # less than half of them
        SATURDAYS[::3],
        PRE_MARKET[:HANDFUL],
        CLOSED[CLOSED.month == 1][: HANDFUL - 1],
    ],
)
def test_bars_on_some_closed_dates_are_none(strays: pd.DatetimeIndex) -> None:
    """One odd row, or a few of many, say nothing about the calendar."""
    assert find(strays) is None


def test_a_few_rows_of_a_short_series_are_no_rule() -> None:
    """The only holiday of a month is all of its holidays, and no handful."""
    sessions = read_sessions("XNYS", YEAR[0], YEAR[0] + timedelta(days=14))
    assert find_stray_rule(pd.Series(HOLIDAYS[:2]), sessions) is None
    assert find_stray_rule(pd.Series(SATURDAYS[:2]), sessions) is None


@given(st.sets(st.sampled_from(list(HOLIDAYS))), st.sets(st.sampled_from(list(SATURDAYS))))
def test_a_rule_is_most_of_the_dates_of_its_kind(
    holidays: set[pd.Timestamp], weekends: set[pd.Timestamp]
) -> None:
    """Counted by hand."""
    is_rule = any(
        len(found) >= HANDFUL and 2 * len(found) > len(kind)
        for found, kind in ((holidays, HOLIDAYS), (weekends, SATURDAYS))
    )
    strays = pd.Series([*holidays, *weekends], dtype="datetime64[us, UTC]")
    assert (find(strays) is not None) == is_rule


def test_a_bar_of_a_session_never_counts() -> None:
    """What the calendar has since learned is no stray any more."""
    assert find(pd.DatetimeIndex(SESSIONS["session_date"])) is None
    assert find(build_hourly_grid(SESSIONS)) is None
