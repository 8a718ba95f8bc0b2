"""Building coarser bars from finer ones: weeks from days, days from hours.

Here: which fine bars make up a coarse one, their values together, and when the result is final.
Not here: reading or storing them. Every frame holds the bars of one market.

Open is the first, close the last, high the greatest, low the least. Volumes and trades of the bars
that have them are added up, and stay unknown where none has; a ``rolling_24h`` volume is never
added, for it would count a day's trade once an hour. A bar is final only when every session (or
hour) the calendar expects in it has a final bar and no provisional one took part.
"""

from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import build_bar_frame, build_empty_bar_frame
from market_pipeline.domain.sessions import build_hourly_grid

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


def build_weekly_bars(daily: pd.DataFrame, sessions: pd.DataFrame, now: datetime) -> pd.DataFrame:
    """Build the weekly bars of one market from all its stored daily bars of those weeks.

    Args:
        daily: A bar frame; rows of other intervals are left aside.
        sessions: The market's sessions (``sessions.read_sessions``), for whole weeks: those missing
            from it are not expected.
        now: The run's clock; a week is not final before its last session has closed.

    Returns:
        A bar frame ordered by open_time (Monday 00:00 UTC). ``close_time`` is the close of the
        week's last session, for always-open markets the next Monday 00:00 UTC.
    """
    days = daily[daily["interval"] == Interval.DAY.value]
    if days.empty:
        return build_empty_bar_frame()
    expected = pd.DataFrame(
        {
            "slot": sessions["session_date"],
            "open_time": floor_to_weeks(sessions["session_date"]),
            "close_time": sessions["close_time"],
        }
    )
    weeks = _merge_bars(days, floor_to_weeks(days["open_time"]), expected, Interval.WEEK)
    return weeks.assign(is_final=weeks["is_final"] & (weeks["close_time"] <= pd.Timestamp(now)))


def build_daily_bars(hourly: pd.DataFrame, sessions: pd.DataFrame) -> pd.DataFrame:
    """Build the daily bars of one market from its hourly ones; hours outside sessions do not count.

    Args:
        hourly: A bar frame; rows of other intervals are left aside.
        sessions: The market's sessions; a lunch break counts as open hours.

    Returns:
        A bar frame ordered by open_time (the session date at 00:00 UTC).
    """
    hours = hourly[hourly["interval"] == Interval.HOUR.value]
    session = _find_sessions(hours["open_time"], sessions)
    hours = hours[session >= 0]
    if hours.empty:
        return build_empty_bar_frame()
    dates = sessions["session_date"].iloc[session[session >= 0]].set_axis(hours.index)
    return _merge_bars(hours, dates, _expect_hours(sessions), Interval.DAY)


def _expect_hours(sessions: pd.DataFrame) -> pd.DataFrame:
    slots = pd.Series(build_hourly_grid(sessions))
    session = _find_sessions(slots, sessions)
    owners = sessions.iloc[session].reset_index(drop=True)
    return pd.DataFrame(
        {"slot": slots, "open_time": owners["session_date"], "close_time": owners["close_time"]}
    )


def _find_sessions(times: TimeSeries, sessions: pd.DataFrame) -> "np.ndarray[Any, Any]":
    """Return the row of the session each time falls in, -1 where none does."""
    if sessions.empty:
        return np.full(len(times), -1)
    row = np.asarray(sessions["open_time"].searchsorted(times, side="right")) - 1
    closes = sessions["close_time"].iloc[row].to_numpy(dtype="datetime64[us]")
    inside = (row >= 0) & (times.to_numpy(dtype="datetime64[us]") < closes)
    return np.where(inside, row, -1)


def _merge_bars(
    fine: pd.DataFrame, starts: TimeSeries, expected: pd.DataFrame, interval: Interval
) -> pd.DataFrame:
    """Merge fine bars that share a start; ``expected`` has slot, open_time, close_time, in order.

    In NumPy: pandas' groups take several times as long for the few bars of an ordinary run.
    """
    order = np.argsort(_to_moments(fine["open_time"]), kind="stable")
    slots, close_times, start = (
        _to_moments(column)[order] for column in (fine["open_time"], fine["close_time"], starts)
    )
    is_final = fine["is_final"].to_numpy()[order]
    first = _find_firsts(start)
    is_found = is_final & np.isin(slots, _to_moments(expected["slot"]))
    n_expected, closes = _count_expected(expected, start[first])
    n_found = np.add.reduceat(is_found, first, dtype="int64")
    is_whole = (n_expected > 0) & (n_found == n_expected)
    kind = _merge_kinds(fine["volume_kind"], order, first)
    volume, trades = (_add_up(fine[name].to_numpy()[order], first) for name in ("volume", "trades"))
    columns = {
        "interval": interval.value,
        "open_time": _to_times(start[first]),
        "close_time": _to_times(
            np.where(n_expected > 0, closes, np.maximum.reduceat(close_times, first))
        ),
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


def _count_expected(expected: pd.DataFrame, starts: Moments) -> tuple[Places, Moments]:
    """Return how many slots each start is expected to have, and when the last of those closes."""
    owners = _to_moments(expected["open_time"])
    begin, end = (np.searchsorted(owners, starts, side) for side in ("left", "right"))
    closes = np.append(_to_moments(expected["close_time"]), np.datetime64("NaT", "us"))
    return end - begin, closes[end - 1]


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
