"""Coarser bars built from finer ones: weeks from days, days from hours.

Here: which fine bars make up a coarse one, their values together, and when the result is final.
Not here: reading or storing them. Every frame holds the bars of one market.

Open is the first, close the last, high the greatest, low the least. Volumes and trades of the bars
that have them are added up, and stay unknown where none has; a ``rolling_24h`` volume is never
added, for it would count a day's trade once an hour. A bar is final when every session (or hour)
that can still come has come and is final. Bars that belong to no session are left out: an older
version may have stored some.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from market_pipeline.domain.arrays import BoolArray
from market_pipeline.domain.grids import to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window, build_bar_frame, build_empty_bar_frame
from market_pipeline.domain.sessions import build_hourly_grid, find_sessions

TimeSeries: TypeAlias = "pd.Series[pd.Timestamp]"
Words: TypeAlias = "pd.Series[str]"
Moments: TypeAlias = "np.ndarray[Any, np.dtype[np.datetime64]]"
Places: TypeAlias = "np.ndarray[Any, np.dtype[np.intp]]"


def floor_to_weeks(times: TimeSeries) -> TimeSeries:
    """Return Monday 00:00 UTC of each time's week."""
    days = _to_moments(times).astype("datetime64[D]").astype("int64")
    mondays = days - (days + 3) % 7  # 1970-01-01 was a Thursday.
    return pd.Series(
        _to_times(mondays.astype("datetime64[D]").astype("datetime64[us]")), times.index
    )


def build_weekly_bars(
    daily: pd.DataFrame, sessions: pd.DataFrame, now: datetime, gone: Sequence[Window] = ()
) -> pd.DataFrame:
    """Build the weekly bars of one market from all its stored daily bars of those weeks.

    Args:
        daily: A bar frame; rows of other intervals and of no session are left aside.
        sessions: The market's sessions (``sessions.read_sessions``), for whole weeks: those missing
            from it are not expected.
        now: The run's clock; a day that has not closed by then is not final.
        gone: Sessions whose date lies in one of these will never come and are not waited for.

    Returns:
        A bar frame ordered by open_time (Monday 00:00 UTC). ``close_time`` is the close of the
        week's last session, for always-open markets the next Monday 00:00 UTC.
    """
    days = daily[daily["interval"] == Interval.DAY.value]
    days = days[days["open_time"].isin(sessions["session_date"])]
    if days.empty:
        return build_empty_bar_frame()
    expected = pd.DataFrame(
        {
            "slot": sessions["session_date"],
            "open_time": floor_to_weeks(sessions["session_date"]),
            "close_time": sessions["close_time"],
        }
    )
    days = days.assign(is_final=days["is_final"] & (days["close_time"] <= pd.Timestamp(now)))
    return _merge_bars(days, floor_to_weeks(days["open_time"]), expected, Interval.WEEK, gone)


def build_daily_bars(
    hourly: pd.DataFrame, sessions: pd.DataFrame, gone: Sequence[Window] = ()
) -> pd.DataFrame:
    """Build the daily bars of one market from its hourly ones; hours outside sessions do not count.

    Args:
        hourly: A bar frame; rows of other intervals are left aside.
        sessions: The market's sessions; a lunch break counts as open hours.
        gone: Hours that open in one of these will never come and are not waited for.

    Returns:
        A bar frame ordered by open_time (the session date at 00:00 UTC).
    """
    hours = hourly[hourly["interval"] == Interval.HOUR.value]
    session = find_sessions(hours["open_time"], sessions)
    hours = hours[session >= 0]
    if hours.empty:
        return build_empty_bar_frame()
    dates = sessions["session_date"].iloc[session[session >= 0]].set_axis(hours.index)
    return _merge_bars(hours, dates, _expect_hours(sessions), Interval.DAY, gone)


def find_gone_sessions(sessions: pd.DataFrame, gone: Sequence[Window]) -> list[Window]:
    """Return the dates of the sessions none of whose hours will ever come.

    Args:
        sessions: The market's sessions.
        gone: Hours that open in one of these will never come.
    """
    if not gone:
        return []
    expected = _expect_hours(sessions)
    is_due = _find_due(_to_moments(expected["slot"]), gone)
    dates = sessions.loc[
        ~sessions["session_date"].isin(expected["open_time"][is_due]), "session_date"
    ]
    day = timedelta(days=1)
    return [Window(date, date + day) for date in dates.dt.to_pydatetime()]


def _expect_hours(sessions: pd.DataFrame) -> pd.DataFrame:
    slots = pd.Series(build_hourly_grid(sessions))
    session = find_sessions(slots, sessions)
    owners = sessions.iloc[session].reset_index(drop=True)
    return pd.DataFrame(
        {"slot": slots, "open_time": owners["session_date"], "close_time": owners["close_time"]}
    )


def _find_due(slots: Moments, gone: Sequence[Window]) -> BoolArray:
    """Tell which slots can still come."""
    is_due, micros = np.ones(len(slots), dtype=bool), slots.view("int64")
    for window in gone:
        first, last = np.searchsorted(micros, [to_micros(window.start), to_micros(window.end)])
        is_due[first:last] = False
    return is_due


def _merge_bars(
    fine: pd.DataFrame,
    starts: TimeSeries,
    expected: pd.DataFrame,
    interval: Interval,
    gone: Sequence[Window],
) -> pd.DataFrame:
    """Merge fine bars that share a start; ``expected`` has slot, open_time, close_time, in order.

    In NumPy: pandas' groups take several times as long for the few bars of an ordinary run.
    """
    order = np.argsort(_to_moments(fine["open_time"]), kind="stable")
    slots, start = (_to_moments(column)[order] for column in (fine["open_time"], starts))
    is_final = fine["is_final"].to_numpy()[order]
    first = _find_firsts(start)
    expected_slots = _to_moments(expected["slot"])
    is_due = _find_due(expected_slots, gone)
    n_due, closes = _count_due(expected, is_due, start[first])
    is_found = is_final & np.isin(slots, expected_slots[is_due])
    is_whole = np.add.reduceat(is_found, first, dtype="int64") == n_due
    kind = _merge_kinds(fine["volume_kind"], order, first)
    volume, trades = (_add_up(fine[name].to_numpy()[order], first) for name in ("volume", "trades"))
    columns = {
        "interval": interval.value,
        "open_time": _to_times(start[first]),
        "close_time": _to_times(closes),
        **_merge_prices(fine, order, first),
        "volume": np.where(np.isin(kind, ("none", "rolling_24h")), np.nan, volume),
        "volume_kind": kind,
        "trades": trades,
        # "points" and "rescaled" sort before "traded", and taint the whole.
        "source_kind": _pick_least(fine["source_kind"], order, first),
        "is_final": is_whole & np.logical_and.reduceat(is_final, first),
    }
    return build_bar_frame(columns)


def _merge_prices(fine: pd.DataFrame, order: Places, first: Places) -> dict[str, Any]:
    """A price that is no number is passed over: the checks name its bar, the week still lands."""
    values = {name: fine[name].to_numpy()[order] for name in ("open", "high", "low", "close")}
    last = np.append(first[1:], len(order)) - 1
    return {
        "open": values["open"][first],
        "high": np.fmax.reduceat(values["high"], first),
        "low": np.fmin.reduceat(values["low"], first),
        "close": values["close"][last],
    }


def _to_moments(column: TimeSeries) -> Moments:
    return column.to_numpy(dtype="datetime64[us]")


def _to_times(moments: Moments) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(moments).tz_localize("UTC")


def _find_firsts(values: Moments) -> Places:
    """Return where each run of equal values begins."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1]))


def _count_due(
    expected: pd.DataFrame, is_due: BoolArray, starts: Moments
) -> tuple[Places, Moments]:
    """Return how many slots of each start can still come, and when its last slot of all closes."""
    owners = _to_moments(expected["open_time"])
    begin, end = (np.searchsorted(owners, starts, side) for side in ("left", "right"))
    due = np.append(0, np.cumsum(is_due))
    return due[end] - due[begin], _to_moments(expected["close_time"])[end - 1]


def _add_up(values: "np.ndarray[Any, Any]", first: Places) -> "np.ndarray[Any, Any]":
    """Return the sums of the known values, NaN where none is known."""
    is_known = ~np.isnan(values)
    sums = np.add.reduceat(np.where(is_known, values, 0.0), first)
    return np.where(np.logical_or.reduceat(is_known, first), sums, np.nan)


def _merge_kinds(kinds: Words, order: Places, first: Places) -> "np.ndarray[Any, Any]":
    """Return the one volume kind among the bars of each start, or ``none`` if it is mixed."""
    codes, words = pd.factorize(kinds.where(kinds != "none"))
    codes = codes[order]
    least = np.minimum.reduceat(np.where(codes < 0, len(words), codes), first)
    names = np.append(np.asarray(words, dtype=object), ["none"])
    return np.where(least == np.maximum.reduceat(codes, first), names[least], "none")


def _pick_least(words: Words, order: Places, first: Places) -> "np.ndarray[Any, Any]":
    codes, names = pd.factorize(words, sort=True)
    return np.asarray(names, dtype=object)[np.minimum.reduceat(codes[order], first)]
