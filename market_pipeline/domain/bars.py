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


def floor_to_weeks(times: TimeSeries) -> TimeSeries:
    """Return Monday 00:00 UTC of each time's week."""
    days = times.dt.floor("D")
    return days - pd.to_timedelta(days.dt.day_of_week, unit="D").astype("timedelta64[us]")


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
    """Merge fine bars that share a start; ``expected`` has slot, open_time and close_time."""
    ordered = _mark_kinds(fine.assign(start=starts)).sort_values("open_time", kind="stable")
    merged = _merge_values(ordered)
    spans = expected.groupby("open_time").agg(n=("slot", "size"), close_time=("close_time", "max"))
    spans = spans.reindex(merged.index)
    finals = ordered[ordered["is_final"] & ordered["open_time"].isin(expected["slot"])]
    found = finals.groupby("start").size().reindex(merged.index, fill_value=0)
    columns = {name: merged[name].to_numpy() for name in merged.columns}
    columns["close_time"] = spans["close_time"].fillna(merged["close_time"]).array
    columns["is_final"] = merged["is_final"].to_numpy() & (found == spans["n"]).to_numpy()
    return build_bar_frame({**columns, "interval": interval.value, "open_time": merged.index})


def _merge_values(ordered: pd.DataFrame) -> pd.DataFrame:
    groups = ordered.groupby("start")
    merged = groups.agg(
        close_time=("close_time", "max"),
        open=("open", "first"),
        high=("high", "max"),
        low=("low", "min"),
        close=("close", "last"),
        volume_kind=("volume_kind", "min"),
        source_kind=("source_kind", "min"),  # "points" sorts before "traded", and taints the whole
        is_final=("is_final", "all"),
    )
    sums = groups[["volume", "trades"]].sum(min_count=1)
    countable = ~merged["volume_kind"].isin(["none", "rolling_24h"])
    return merged.assign(trades=sums["trades"], volume=sums["volume"].where(countable))


def _mark_kinds(fine: pd.DataFrame) -> pd.DataFrame:
    """Give the bars of one start one volume kind: the only one among them, or ``none`` if mixed."""
    known = fine["volume_kind"].where(fine["volume_kind"] != "none")
    groups = known.groupby(fine["start"])
    kind = groups.transform("first").where(groups.transform("nunique") == 1, "none")
    return fine.assign(volume_kind=kind)
