"""Interactive charts as plain JSON, drawn in the browser by ``static/charts.js``.

A chart is columns over one time axis: every bar that the calendars expect has a place on it, so
closed sessions take no room and missing bars do. Times are seconds since 1970 (UTC), values are as
stored, and a missing value is null.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd

from market_pipeline.api.pages.marks import Mark
from market_pipeline.domain.arrays import IntArray
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import DataIssue, mask_unreliable
from market_pipeline.domain.records import UTC_DTYPE
from market_pipeline.domain.returns import build_joined_grid, read_microseconds
from market_pipeline.domain.roi import compute_drawdowns
from market_pipeline.domain.volatility import compute_rolling_volatility

# What the volatility at a close looks back on; of days it is the 30d statistic.
VOLATILITY_DAYS = {Interval.HOUR: 7, Interval.DAY: 30, Interval.WEEK: 365}
Chart = dict[str, Any]
Bars = Sequence[Mapping[str, Any]]
_PRICES = ("open", "high", "low", "close")


def build_market_chart(
    bars: Bars,
    interval: Interval,
    market: Mapping[str, Any],
    issues: Iterable[DataIssue] = (),
    min_returns: int | None = None,
    earlier: Bars = (),
    marks: Sequence[Mark] = (),
) -> Chart | None:
    """Return candlesticks with volume, drawdown and realised volatility over one time axis.

    Bars are in order of open_time. Bars made of price points have no high and low: they are a line.
    Drawdown and volatility are of final bars alone, as the statistics have them, and break where a
    bar is missing. Issues withhold volatility. None without bars.

    Args:
        bars: What is shown.
        interval: Theirs.
        market: ``market_id``, ``calendar`` and ``quote``.
        issues: What keeps statistics from being trusted.
        min_returns: As the setting says.
        earlier: The bars before them, which only volatility looks back on.
        marks: What is noted of bars; the axis reaches over those between the bars and at its ends.
    """
    if not bars:
        return None
    edges = [at for mark in marks if mark.kind == "hole" for at in (mark.start, mark.last)]
    grid = _Grid(bars, [market["calendar"]], interval, edges)
    final = _select_final(bars)
    days = VOLATILITY_DAYS[interval]
    volatility = _compute_volatility([*earlier, *bars], interval, market, issues, min_returns)
    drawdown = compute_drawdowns(final["close"].to_numpy())
    opens = final["open_time"].tolist()
    lines = (
        _line("histogram", "Volume", 1, grid.fill([bar["volume"] for bar in bars]), "compact"),
        _line("drawdown", "Drawdown", 2, grid.place(opens, drawdown.tolist()), "percent"),
        _line(
            "line", f"Volatility, {days} days", 3,
            grid.place(opens, volatility.reindex(opens).tolist()), "percent",
        ),
    )  # fmt: skip
    return grid.describe([_describe_price(bars, market, grid), *lines], marks)


def build_ratio_chart(
    rows: Sequence[Mapping[str, Any]], name: str, calendars: Iterable[str]
) -> Chart | None:
    """Return the ratio of two daily closes over time; None without rows."""
    if not rows:
        return None
    grid = _Grid(rows, calendars, Interval.DAY)
    ratios = grid.fill([row["base_close"] / row["quote_close"] for row in rows])
    return grid.describe([_line("line", name, 0, ratios, "price")])


def break_at_gaps(
    opens: Sequence[datetime], values: Sequence[float], calendars: Iterable[str], interval: Interval
) -> list[float | None]:
    """Return values in order, with None where a bar is missing between them."""
    return _Grid([{"open_time": at} for at in opens], calendars, interval).fill(values)


class _Grid:
    """The time axis of bars: all that the calendars expect from the first to the last one."""

    def __init__(
        self,
        bars: Bars,
        calendars: Iterable[str],
        interval: Interval,
        edges: Iterable[datetime] = (),
    ) -> None:
        moments = [bar["open_time"] for bar in bars]
        opens = read_microseconds(pd.Series(moments, dtype=UTC_DTYPE))
        ends = [*moments[:1], *moments[-1:], *edges]
        if ends:
            opens = np.union1d(build_joined_grid(calendars, interval, min(ends), max(ends)), opens)
        self._at: IntArray = opens
        self._moments = moments
        self._interval = interval

    def fill(self, values: Sequence[float | None]) -> list[float | None]:
        """Return the bars' values, each in its place."""
        return self.place(self._moments, values)

    def place(self, opens: Sequence[datetime], values: Iterable[Any]) -> list[float | None]:
        """Return the values of bars that open at some times, each in its place; NaN is null."""
        filled: list[float | None] = [None] * len(self._at)
        at = read_microseconds(pd.Series(list(opens), dtype=UTC_DTYPE))
        for position, value in zip(np.searchsorted(self._at, at).tolist(), values, strict=True):
            filled[position] = value if value is not None and isfinite(value) else None
        return filled

    def describe(self, series: Sequence[Chart], marks: Sequence[Mark] = ()) -> Chart:
        """Return a chart of series over this axis."""
        return {
            "times": (self._at // 1_000_000).tolist(),
            "seconds": int(self._interval.duration.total_seconds()),
            "intraday": self._interval.duration < timedelta(days=1),
            "series": list(series),
            "marks": [mark.describe() for mark in marks],
        }


def _select_final(bars: Bars) -> pd.DataFrame:
    return pd.DataFrame(
        [bar for bar in bars if bar["is_final"]], columns=["open_time", "close_time", "close"]
    ).astype({"open_time": UTC_DTYPE, "close_time": UTC_DTYPE, "close": "float64"})


def _compute_volatility(
    bars: Bars,
    interval: Interval,
    market: Mapping[str, Any],
    issues: Iterable[DataIssue],
    min_returns: int | None,
) -> "pd.Series[float]":
    """Return the volatility at each final close that it is trusted at, by open_time."""
    final = _select_final(bars).assign(market_id=market["market_id"])
    rolled = compute_rolling_volatility(
        final, market["market_id"], market["calendar"], interval, VOLATILITY_DAYS[interval],
        min_returns,
    )  # fmt: skip
    kept = mask_unreliable(rolled, ("market_id",), ("realised_volatility",), issues)
    found: pd.Series[float] = kept.set_index("open_time")["realised_volatility"]
    return found


def _describe_price(bars: Bars, market: Mapping[str, Any], grid: _Grid) -> Chart:
    closes = grid.fill([bar["close"] for bar in bars])
    if any(bar.get("source_kind") == "points" for bar in bars):
        return _line("line", f"Price points ({market['quote']})", 0, closes, "price")
    prices = {name: grid.fill([bar[name] for bar in bars]) for name in _PRICES}
    final = grid.fill([bar["is_final"] for bar in bars])
    candles = _line("candles", f"Price ({market['quote']})", 0, prices["close"], "price")
    return {**candles, **prices, "final": final}


def _line(kind: str, name: str, pane: int, values: Sequence[float | None], form: str) -> Chart:
    return {"type": kind, "name": name, "pane": pane, "values": values, "format": form}
