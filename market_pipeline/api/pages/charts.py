"""Interactive charts as plain JSON, drawn in the browser by Plotly; no Plotly is imported here.

A colour is written ``var(--name)``. The page's script replaces it with the style sheet's value, so
a chart follows the theme. Times are UTC, values are as stored, and a missing value is null.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd

from market_pipeline.domain.arrays import FloatArray, IntArray
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import DataIssue, mask_unreliable
from market_pipeline.domain.records import UTC_DTYPE
from market_pipeline.domain.returns import build_times, fill_gaps, read_microseconds
from market_pipeline.domain.roi import compute_drawdowns
from market_pipeline.domain.volatility import compute_rolling_volatility

# What the volatility at a close looks back on; of days it is the 30d statistic.
VOLATILITY_DAYS = {Interval.HOUR: 7, Interval.DAY: 30, Interval.WEEK: 365}
Chart = dict[str, Any]


def build_market_chart(
    bars: Sequence[Mapping[str, Any]],
    interval: Interval,
    market: Mapping[str, Any],
    issues: Iterable[DataIssue] = (),
    min_returns: int | None = None,
) -> Chart | None:
    """Return candlesticks with volume, drawdown and realised volatility over one time axis.

    Bars are in order of open_time. Bars made of price points have no high and low: they are a line.
    Drawdown and volatility are of final bars alone, as the statistics have them, and break where a
    bar is missing. Issues withhold volatility. None without bars.
    """
    if not bars:
        return None
    final = pd.DataFrame(
        [bar for bar in bars if bar["is_final"]], columns=["open_time", "close_time", "close"]
    ).astype({"open_time": UTC_DTYPE, "close_time": UTC_DTYPE, "close": "float64"})
    days = VOLATILITY_DAYS[interval]
    rolled = compute_rolling_volatility(
        final.assign(market_id=market["market_id"]), market["market_id"], market["calendar"],
        interval, days, min_returns,
    )  # fmt: skip
    kept = mask_unreliable(rolled, ("market_id",), ("realised_volatility",), issues)
    volatility = kept.set_index("open_time")["realised_volatility"].reindex(final["open_time"])
    at, place = fill_gaps([market["calendar"]], interval, read_microseconds(final["open_time"]))
    drawdown = compute_drawdowns(final["close"].to_numpy())
    panels = [
        _line(at, place, drawdown, "Drawdown", "y3", "var(--down)", fill="tozeroy"),
        _line(at, place, volatility.to_numpy(), "Volatility", "y4", "var(--accent)"),
    ]
    titles = ("Volume", "Drawdown", f"Volatility, {days} d")
    is_points = any(bar.get("source_kind") == "points" for bar in bars)
    price = _closes(bars, market["calendar"], interval) if is_points else _candles(bars)
    title = f"Price ({market['quote']}{', price points' if is_points else ''})"
    return {"data": [price, _volume(bars), *panels], "layout": _stack_panels(title, titles)}


def build_ratio_chart(
    rows: Sequence[Mapping[str, Any]], name: str, calendars: Iterable[str]
) -> Chart | None:
    """Return the ratio of two daily closes over time; None without rows."""
    if not rows:
        return None
    at, place = _find_places((row["open_time"] for row in rows), calendars, Interval.DAY)
    ratios = np.array([row["base_close"] / row["quote_close"] for row in rows])
    line = _line(at, place, ratios, name, "y", "var(--accent)")
    line["hovertemplate"] = "%{y:.6g}<extra></extra>"
    return {"data": [line], "layout": _build_layout({"yaxis": {"title": {"text": name}}})}


def break_at_gaps(
    opens: Sequence[datetime], values: Sequence[float], calendars: Iterable[str], interval: Interval
) -> list[float | None]:
    """Return values in order, with None where a bar is missing between them."""
    return _fill_grid(*_find_places(opens, calendars, interval), values)


def _find_places(
    opens: Iterable[datetime], calendars: Iterable[str], interval: Interval
) -> tuple[IntArray, IntArray]:
    """Return the grid of calendars, and where on it the bars are that open at some times."""
    times = read_microseconds(pd.Series(list(opens), dtype=UTC_DTYPE))
    return fill_gaps(calendars, interval, times)


def _fill_grid(at: IntArray, place: IntArray, values: Iterable[float | None]) -> list[float | None]:
    filled: list[float | None] = [None] * len(at)
    for position, value in zip(place.tolist(), values, strict=True):
        filled[position] = value
    return filled


def _closes(bars: Sequence[Mapping[str, Any]], calendar: str, interval: Interval) -> Chart:
    at, place = _find_places((bar["open_time"] for bar in bars), [calendar], interval)
    closes = np.array([bar["close"] for bar in bars], dtype=np.float64)
    return _line(at, place, closes, "Price", "y", "var(--accent)")


def _candles(bars: Sequence[Mapping[str, Any]]) -> Chart:
    columns = {name: [bar[name] for bar in bars] for name in ("open", "high", "low", "close")}
    rise = {"line": {"color": "var(--up)", "width": 1}, "fillcolor": "var(--surface)"}
    fall = {"line": {"color": "var(--down)", "width": 1}, "fillcolor": "var(--down)"}
    at = [bar["open_time"].isoformat() for bar in bars]
    kind = {"type": "candlestick", "name": "Price", "increasing": rise, "decreasing": fall}
    return {**kind, "x": at, **columns}


def _volume(bars: Sequence[Mapping[str, Any]]) -> Chart:
    return {
        "type": "bar",
        "name": "Volume",
        "x": [bar["open_time"].isoformat() for bar in bars],
        "y": [bar["volume"] for bar in bars],
        "yaxis": "y2",
        "marker": {"color": "var(--volume)"},
        "hovertemplate": "%{y:.4s}<extra>Volume</extra>",
    }


def _line(
    at: IntArray,
    place: IntArray,
    values: FloatArray,
    name: str,
    axis: str,
    colour: str,
    **options: Any,
) -> Chart:
    """Return a line through values at some places of a grid; it breaks at the others."""
    finite = (value if isfinite(value) else None for value in values.tolist())
    shown = _fill_grid(at, place, finite)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [moment.isoformat() for moment in build_times(at)],
        "y": shown,
        "yaxis": axis,
        "connectgaps": False,
        "line": {"color": colour, "width": 1.4},
        "hovertemplate": f"%{{y:.2%}}<extra>{name}</extra>" if axis != "y" else None,
        **options,
    }


def _stack_panels(price: str, others: Sequence[str]) -> Chart:
    """Return a layout of the price above three lower panels, all on one time axis."""
    volume, drawdown, volatility = others
    return _build_layout(
        {
            "yaxis": {"title": {"text": price}, "domain": [0.5, 1.0], "tickformat": ",~g"},
            "yaxis2": {"title": {"text": volume}, "domain": [0.35, 0.46], "nticks": 3},
            "yaxis3": {
                "title": {"text": drawdown}, "domain": [0.175, 0.315],
                "tickformat": ".0%", "nticks": 4,
            },
            "yaxis4": {
                "title": {"text": volatility}, "domain": [0.0, 0.14],
                "tickformat": ".0%", "nticks": 4, "rangemode": "tozero",
            },
        }
    )  # fmt: skip


def _build_layout(axes: Mapping[str, Mapping[str, Any]]) -> Chart:
    lines = {"gridcolor": "var(--line)", "zeroline": False, "automargin": True}
    return {
        "uirevision": "kept",
        "showlegend": False,
        "hovermode": "x unified",
        "dragmode": "pan",
        "margin": {"l": 8, "r": 8, "t": 8, "b": 28},
        "paper_bgcolor": "var(--surface)",
        "plot_bgcolor": "var(--surface)",
        "font": {"color": "var(--muted)", "size": 11},
        "hoverlabel": {"bgcolor": "var(--surface)", "font": {"color": "var(--ink)"}},
        "xaxis": {**lines, "type": "date", "rangeslider": {"visible": False}, "anchor": "free",
                  "position": 0, "hoverformat": "%Y-%m-%d %H:%M UTC"},
        **{name: {**lines, "fixedrange": True, **axis} for name, axis in axes.items()},
    }  # fmt: skip
