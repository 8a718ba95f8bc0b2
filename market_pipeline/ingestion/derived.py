"""Bars made of stored bars: days of hours and weeks of days, for the span that a batch touched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import pandas as pd
from sqlalchemy import Connection

from market_pipeline.domain.bars import build_daily_bars, build_weekly_bars, find_gone_sessions
from market_pipeline.domain.coverage import Coverage, find_gone
from market_pipeline.domain.intervals import Interval, floor_to_monday
from market_pipeline.domain.ranges import subtract_windows
from market_pipeline.domain.records import Market, Window
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.storage.bars.stored import count_bars, read_bars


@dataclass(frozen=True, slots=True)
class UnavailableBars:
    """What will never come of the bars that days or weeks are made of, by open_time (UTC).

    Attributes:
        gone: All of it. new: What this batch has brought to light.
    """

    gone: Sequence[Window] = ()
    new: Sequence[Window] = ()


NOTHING_ABSENT = UnavailableBars()


def find_absence(
    market: Market, before: Mapping[Interval, Coverage], after: Mapping[Interval, Coverage]
) -> UnavailableBars:
    """Return what will never come of a market, by its coverage before and after a batch."""
    base = Interval.DAY if Interval.DAY in market.intervals else Interval.HOUR
    known, gone = (find_gone(coverage.get(base, Coverage())) for coverage in (before, after))
    return UnavailableBars(gone, subtract_windows(gone, known))


def rebuild_days(
    connection: Connection,
    market: Market,
    market_id: int,
    bars: pd.DataFrame,
    now: datetime,
    absence: UnavailableBars = NOTHING_ABSENT,
) -> pd.DataFrame:
    """Return the days that new hours touch, of a market whose provider serves hours only.

    Args:
        connection: In the transaction that stored the hours.
        market: The market.
        market_id: Its key.
        bars: What was stored.
        now: The run's clock (UTC).
        absence: Hours that will never come.
    """
    hours = bars[bars["interval"] == Interval.HOUR.value]
    touched = None if Interval.DAY in market.intervals else _find_touched(hours, absence, now)
    if touched is None:
        return bars.iloc[:0]
    start, end = touched.start - timedelta(days=2), touched.end + timedelta(days=2)
    stored = _find_stored(connection, market_id, hours, start, end)
    days = build_daily_bars(stored, read_sessions(market.calendar, start, end), absence.gone)
    days = days[days["open_time"].between(touched.start - timedelta(days=1), touched.end)]
    return _stay_final(connection, market_id, days, now)


def _find_touched(bars: pd.DataFrame, absence: UnavailableBars, now: datetime) -> Window | None:
    """Return from which to which open_time bars came, or are now known never to come."""
    bounds = [bound for part in absence.new for bound in (part.start, min(part.end, now))]
    if len(bars):
        opens = bars["open_time"]
        bounds += [opens.min().to_pydatetime(), opens.max().to_pydatetime()]
    return Window(min(bounds), max(bounds)) if bounds else None


def _find_stored(
    connection: Connection, market_id: int, hours: pd.DataFrame, start: datetime, end: datetime
) -> pd.DataFrame:
    """Return the stored hours of a span; those just stored are not read again if there are no more.

    A provisional hour may have met a final one, which stays; of an hour that two pages had, one is
    stored.
    """
    if len(hours) and hours["is_final"].all() and hours["open_time"].is_unique:
        count = count_bars(connection, market_id, Interval.HOUR, start, end)
        if count == len(hours):
            return hours
    return read_bars(connection, market_id, Interval.HOUR, start, end)


def rebuild_weeks(
    connection: Connection,
    market: Market,
    market_id: int,
    bars: pd.DataFrame,
    now: datetime,
    absence: UnavailableBars = NOTHING_ABSENT,
) -> pd.DataFrame:
    """Return the weeks that new days touch; the arguments are those of :func:`rebuild_days`."""
    touched = _find_touched(bars[bars["interval"] == Interval.DAY.value], absence, now)
    if touched is None:
        return bars.iloc[:0]
    start = floor_to_monday(touched.start)
    end = floor_to_monday(touched.end) + timedelta(weeks=1)
    stored = read_bars(connection, market_id, Interval.DAY, start, end)
    sessions, gone = read_sessions(market.calendar, start, end), absence.gone
    if Interval.DAY not in market.intervals:
        gone = find_gone_sessions(sessions, gone)
    return _stay_final(connection, market_id, build_weekly_bars(stored, sessions, now, gone), now)


def _stay_final(
    connection: Connection, market_id: int, built: pd.DataFrame, now: datetime
) -> pd.DataFrame:
    """Return built bars, final where the stored one is: it would not be replaced otherwise.

    A hole that was explained may be doubted again, when a part of it comes after all.
    """
    waiting = built[~built["is_final"] & (built["close_time"] <= pd.Timestamp(now))]
    if waiting.empty:
        return built
    opens = waiting["open_time"]
    span = opens.min().to_pydatetime(), opens.max().to_pydatetime() + timedelta(microseconds=1)
    stored = read_bars(connection, market_id, Interval(waiting["interval"].iloc[0]), *span)
    finals = stored.loc[stored["is_final"], "open_time"]
    is_kept = built["open_time"].isin(finals) & built["open_time"].isin(opens)
    return built.assign(is_final=built["is_final"] | is_kept)
