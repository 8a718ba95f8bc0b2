"""Bars made of stored bars: the days of hours, the weeks of days, whatever batch touched them."""

from datetime import datetime, timedelta

import pandas as pd
from sqlalchemy import Connection

from market_pipeline.domain.bars import build_daily_bars, build_weekly_bars
from market_pipeline.domain.intervals import Interval, floor_to_monday
from market_pipeline.domain.records import Market
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.storage.queries import count_bars, read_bars


def rebuild_days(
    connection: Connection, one: Market, market_id: int, bars: pd.DataFrame, now: datetime
) -> pd.DataFrame:
    """Return the days that new hours touch, of a market whose provider serves hours only.

    Args:
        connection: In the transaction that stored the hours.
        one: The market.
        market_id: Its key.
        bars: What was stored.
        now: The run's clock (UTC).
    """
    del now
    hours = bars[bars["interval"] == Interval.HOUR.value]
    if Interval.DAY in one.intervals or hours.empty:
        return bars.iloc[:0]
    opened, last = hours["open_time"].min(), hours["open_time"].max()
    start = opened.to_pydatetime() - timedelta(days=2)
    end = last.to_pydatetime() + timedelta(days=2)
    stored = _find_stored(connection, market_id, hours, start, end)
    days = build_daily_bars(stored, read_sessions(one.calendar, start, end))
    return days[days["open_time"].between(opened - pd.Timedelta(days=1), last)]


def _find_stored(
    connection: Connection, market_id: int, hours: pd.DataFrame, start: datetime, end: datetime
) -> pd.DataFrame:
    """Return the stored hours of a span; those just stored are not read again if there are no more.

    A provisional hour may have met a final one, which stays; of an hour that two pages had, one is
    stored.
    """
    if hours["is_final"].all() and hours["open_time"].is_unique:
        count = count_bars(connection, market_id, Interval.HOUR, start, end)
        if count == len(hours):
            return hours
    return read_bars(connection, market_id, Interval.HOUR, start, end)


def rebuild_weeks(
    connection: Connection, one: Market, market_id: int, bars: pd.DataFrame, now: datetime
) -> pd.DataFrame:
    """Return the weeks that new days touch; the arguments are those of :func:`rebuild_days`."""
    days = bars.loc[bars["interval"] == Interval.DAY.value, "open_time"]
    if days.empty:
        return bars.iloc[:0]
    start = floor_to_monday(days.min().to_pydatetime())
    end = floor_to_monday(days.max().to_pydatetime()) + timedelta(weeks=1)
    stored = read_bars(connection, market_id, Interval.DAY, start, end)
    return build_weekly_bars(stored, read_sessions(one.calendar, start, end), now)
