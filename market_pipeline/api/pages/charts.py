"""Interactive charts as plain JSON, drawn in the browser by Plotly; no Plotly is imported here.

A colour is written ``var(--name)``: the page's script puts the style sheet's value there, so that a
chart follows the theme. Times are UTC, values as stored, and what is missing is null.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from market_pipeline.domain.intervals import Interval, get_annualisation_factor

VOLATILITY_RETURNS = 30
FloatArray = npt.NDArray[np.float64]
Chart = dict[str, Any]


def compute_drawdowns(closes: FloatArray) -> FloatArray:
    """Return each close over the highest so far, minus one (fraction, at most 0)."""
    return np.asarray(closes / np.maximum.accumulate(closes) - 1, dtype=np.float64)


def compute_rolling_volatility(closes: FloatArray, factor: float) -> FloatArray:
    """Return the realised volatility of the last 30 log returns at each close; NaN before."""
    result = np.full(closes.size, np.nan)
    if closes.size > VOLATILITY_RETURNS:
        returns = np.diff(np.log(closes))
        spans = np.lib.stride_tricks.sliding_window_view(returns, VOLATILITY_RETURNS)
        result[VOLATILITY_RETURNS:] = spans.std(axis=1, ddof=1) * np.sqrt(factor)
    return result


def build_market_chart(
    bars: Sequence[Mapping[str, Any]], interval: Interval, market: Mapping[str, Any]
) -> Chart | None:
    """Return candlesticks with volume, drawdown and realised volatility over one time axis.

    Bars made of price points have no high and low: they are a line.
    Drawdown and volatility are of final bars alone. None without bars.
    """
    if not bars:
        return None
    final = [bar for bar in bars if bar["is_final"]]
    closes = np.array([bar["close"] for bar in final])
    factor = get_annualisation_factor(interval, market["calendar"])
    at = [bar["open_time"].isoformat() for bar in final]
    panels = [
        _line(at, compute_drawdowns(closes), "Drawdown", "y3", "var(--down)", fill="tozeroy"),
        _line(at, compute_rolling_volatility(closes, factor), "Volatility", "y4", "var(--accent)"),
    ]
    is_points = any(bar.get("source_kind") == "points" for bar in bars)
    price, kind = (_closes(bars), ", price points") if is_points else (_candles(bars), "")
    title = f"Price ({market['quote']}{kind})"
    layout = _stack_panels(title, ("Volume", "Drawdown", "Volatility"))
    return {"data": [price, _volume(bars), *panels], "layout": layout}


def build_ratio_chart(rows: Sequence[Mapping[str, Any]], name: str) -> Chart | None:
    """Return the ratio of two closes over time; None without rows."""
    if not rows:
        return None
    at = [row["open_time"].isoformat() for row in rows]
    ratios = np.array([row["base_close"] / row["quote_close"] for row in rows])
    line = _line(at, ratios, name, "y", "var(--accent)")
    line["hovertemplate"] = "%{y:.6g}<extra></extra>"
    return {"data": [line], "layout": _lay_out({"yaxis": {"title": {"text": name}}})}


def _closes(bars: Sequence[Mapping[str, Any]]) -> Chart:
    at = [bar["open_time"].isoformat() for bar in bars]
    return _line(at, np.array([bar["close"] for bar in bars]), "Price", "y", "var(--accent)")


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
    at: Sequence[str], values: FloatArray, name: str, axis: str, colour: str, **options: Any
) -> Chart:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(at),
        "y": [float(value) if np.isfinite(value) else None for value in values],
        "yaxis": axis,
        "line": {"color": colour, "width": 1.4},
        "hovertemplate": f"%{{y:.2%}}<extra>{name}</extra>" if axis != "y" else None,
        **options,
    }


def _stack_panels(price: str, others: Sequence[str]) -> Chart:
    """Return a layout of the price above three lower panels, all on one time axis."""
    volume, drawdown, volatility = others
    return _lay_out(
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


def _lay_out(axes: Mapping[str, Mapping[str, Any]]) -> Chart:
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
