"""Pictures of what was written: prices with volume, drawdowns, correlations, coverage.

Here: frames in, a PNG of less than ``MAX_BYTES`` out. Not here: when to draw, what to read, where
it is shown (``plots``, ``report``). Matplotlib is imported while drawing only: it takes a third of
a second that a run with nothing to draw should not spend.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.coverage_map import cut_time, map_coverage
from market_pipeline.domain.roi import compute_drawdowns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_BYTES = 30_000
MAX_PANELS = 4
MAX_HEAT_MAP_SIDE = 24
_MAX_CANDLES = 130
_MAX_LABELLED_COLUMNS = 12
_MAX_LEVEL_LABELS = 5
_WIDTH_INCHES = 9.0
_MAX_HEIGHT_INCHES = 6.6
# Each is tried until the picture is small enough: dots an inch, colours.
_QUALITIES = ((100, 64), (100, 24), (90, 24), (80, 20), (60, 12))
# What a tick says when years, months, days, hours, minutes or seconds differ.
_DATE_FORMATS = ("%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%S.%f")
_INK, _FAINT, _GRID = "#1f2937", "#6b7280", "#e5e7eb"
_UP, _DOWN, _LINE = "#0f9d76", "#d9483b", "#2458a6"
_CANDLE_DAYS = 0.64
_COVERAGE_COLUMNS = 160
# In the order of the states of ``map_coverage``.
_STATES = {
    "final": _UP, "no trades, or before the first bar": "#a7d8c8", "not asked for": _GRID,
    "hole": _DOWN,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Panel:
    """One market's part of a picture, with a note beside its title.

    ``bars`` are daily, in order: ``open_time``, ``close_time``, ``open`` to ``close``, ``volume``.
    A row without prices is a missing bar, where lines break.
    """

    title: str
    note: str
    bars: pd.DataFrame


def draw_prices(panels: Sequence[Panel]) -> bytes:
    """Draw up to four markets' daily bars over their volume: candles, or a line for many."""
    figure, axes = _make_axes(panels[:MAX_PANELS], row_inches=2.2, height_ratios=(3.2, 1))
    for panel, (price, volume) in zip(panels, axes, strict=False):
        _head(price, panel)
        _draw_price(price, panel.bars)
        _draw_volume(volume, panel.bars)
        _finish(price, lambda value: f"{value:,.12f}".rstrip("0").rstrip("."))
        _finish(volume, shorten)
        price.tick_params(labelbottom=False)
    return _encode_figure(figure)


def draw_drawdowns(panels: Sequence[Panel]) -> bytes:
    """Draw up to four markets' fall from the highest close so far, in percent."""
    figure, axes = _make_axes(panels[:MAX_PANELS], row_inches=1.9, height_ratios=(1,))
    for panel, (axis,) in zip(panels, axes, strict=False):
        fall = 100 * compute_drawdowns(panel.bars["close"].to_numpy(dtype="float64"))
        closed = _strip_zone(panel.bars["close_time"])
        _head(axis, panel)
        axis.fill_between(closed, fall, 0, color=_DOWN, alpha=0.22, linewidth=0)
        axis.plot(closed, fall, color=_DOWN, linewidth=1.2)
        deepest = np.nanargmin(fall)
        axis.plot(closed[deepest], fall[deepest], "o", color=_DOWN, markersize=4)
        axis.set_ylim(1.15 * min(fall[deepest], -0.1), 0)
        _finish(axis, lambda value: f"{value:,.4g} %")
    return _encode_figure(figure)


def draw_correlations(matrix: pd.DataFrame, title: str) -> bytes:
    """Draw a heat map of correlations; one that is missing stays grey.

    Index and columns of the matrix are labels; at most ``MAX_HEAT_MAP_SIDE`` of each are drawn.
    """
    from matplotlib import colormaps

    shown = matrix.iloc[:MAX_HEAT_MAP_SIDE, :MAX_HEAT_MAP_SIDE]
    is_labelled = shown.shape[1] <= _MAX_LABELLED_COLUMNS
    figure, axis = _lay_out_heat_map(shown, is_labelled)
    # Twenty colours, one for each tenth: few enough to survive the palette.
    colours = colormaps["RdBu_r"].resampled(20)
    image = axis.imshow(shown.to_numpy("float64"), cmap=colours, vmin=-1, vmax=1, aspect="auto")
    axis.set_facecolor(_GRID)
    for (row, column), value in np.ndenumerate(shown.to_numpy("float64")) if is_labelled else ():
        text = "-" if np.isnan(value) else f"{value:.2f}"
        ink = "white" if abs(value) > 0.6 else _INK
        axis.text(column, row, text, ha="center", va="center", fontsize=8.5, color=ink)
    figure.text(0.01, 0.99, title, va="top", fontsize=10, fontweight="bold", color=_INK)
    bar = figure.colorbar(
        image, ax=axis, pad=0.02, fraction=0.03, shrink=0.9, ticks=[-1, -0.5, 0, 0.5, 1]
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=_FAINT, length=0)
    return _encode_figure(figure)


def draw_coverage(rows: Mapping[str, Coverage], now: datetime) -> bytes | None:
    """Draw what is settled and what is missing, in red; None where nothing is stored.

    Rows are by label, such as ``BTC-USD 1h``; the first ``MAX_HEAT_MAP_SIDE`` are drawn. The right
    edge is ``now`` (UTC).
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.dates import date2num
    from matplotlib.patches import Patch

    shown = {label: row for label, row in list(rows.items())[:MAX_HEAT_MAP_SIDE] if row.settled}
    if not shown:
        return None
    start = min(row.settled[0].start for row in shown.values())
    spans = cut_time(start, now, _COVERAGE_COLUMNS)
    states = np.stack([map_coverage(row, spans) for row in shown.values()])
    height = 0.26 * len(shown) + 0.9
    figure = _make_figure(9.0, height)
    axis = figure.add_axes((0.14, 0.3 / height, 0.84, (0.26 * len(shown)) / height))
    left, right = date2num([start, now])  # type: ignore[no-untyped-call]
    edges = (left, right, len(shown) - 0.5, -0.5)
    colours = ListedColormap(list(_STATES.values()))
    axis.imshow(states, cmap=colours, vmin=0, vmax=3, aspect="auto", extent=edges)
    axis.set_yticks(range(len(shown)), list(shown))
    _date_axis(axis)
    axis.tick_params(length=0, labelsize=8, labelcolor=_FAINT)
    axis.spines[:].set_visible(False)
    for at in range(1, len(shown)):
        axis.axhline(at - 0.5, color="white", linewidth=1.5)
    figure.text(0.01, 0.99, "Coverage", va="top", fontsize=10, fontweight="bold", color=_INK)
    keys = [Patch(color=colour, label=name) for name, colour in _STATES.items()]
    figure.legend(handles=keys, loc="upper right", ncols=4, fontsize=8, frameon=False)
    return _encode_figure(figure)


def shorten(value: float) -> str:
    """Return a quantity as people write it: 950, 1.2 K, 34 M, 5.6 B, 7 T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= size:
            return f"{value / size:,.3g} {unit}"
    return f"{value:,.3g}"


def _make_figure(width: float, height: float) -> "Figure":
    """Return an empty white figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white")


def _make_axes(
    panels: Sequence[Panel], row_inches: float, height_ratios: Sequence[float]
) -> "tuple[Figure, list[list[Axes]]]":
    """Return a figure and, for each panel, its axes from top to bottom."""
    rows = len(panels)
    height = min(rows * row_inches, _MAX_HEIGHT_INCHES)
    figure = _make_figure(_WIDTH_INCHES, height)
    # Margins in inches: matplotlib's own solver takes as long as the drawing.
    sides = {"left": 0.75 / _WIDTH_INCHES, "right": 1 - 0.12 / _WIDTH_INCHES}
    ends = {"bottom": 0.3 / height, "top": 1 - 0.3 / height}
    outer = figure.add_gridspec(rows, 1, **sides, **ends, hspace=0.4)
    axes = []
    for row in range(rows):
        inner = outer[row].subgridspec(
            len(height_ratios), 1, height_ratios=height_ratios, hspace=0.08
        )
        axes.append(list(inner.subplots(sharex=True, squeeze=False)[:, 0]))
    return figure, axes


def _lay_out_heat_map(matrix: pd.DataFrame, is_labelled: bool) -> "tuple[Figure, Axes]":
    """Return axes with room for the labels, which are written."""
    rows, columns = matrix.shape
    longest = 0.2 + 0.08 * max(len(str(label)) for label in [*matrix.index, *matrix.columns])
    is_upright = columns > _MAX_LEVEL_LABELS
    left, right, top, bottom = longest, 0.5, 0.4, longest if is_upright else 0.35
    width = max(6.4, columns * (0.62 if is_labelled else 0.3) + left + right)
    height = max(2.2, rows * (0.5 if rows <= _MAX_LABELLED_COLUMNS else 0.26) + top + bottom)
    figure = _make_figure(width, height)
    axis = figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    )
    axis.set_xticks(range(columns), list(matrix.columns), rotation=90 if is_upright else 0)
    axis.set_yticks(range(rows), list(matrix.index))
    axis.tick_params(length=0, labelsize=8.5, labelcolor=_INK)
    axis.spines[:].set_visible(False)
    return figure, axis


def _head(axis: "Axes", panel: Panel) -> None:
    axis.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", color=_INK)
    axis.set_title(panel.note, loc="right", fontsize=8, color=_FAINT)


def has_range(bars: pd.DataFrame) -> bool:
    """Tell whether highs and lows say anything: those of bars made of price points do not."""
    body = bars[["open", "close"]]
    return bool((bars["high"] > body.max(axis=1)).any() or (bars["low"] < body.min(axis=1)).any())


def _draw_price(axis: "Axes", bars: pd.DataFrame) -> None:
    days = _strip_zone(bars["open_time"])
    if len(bars) > _MAX_CANDLES or not has_range(bars):
        axis.plot(days, bars["close"], color=_LINE, linewidth=1.2)
        axis.fill_between(days, bars["close"], bars["close"].min(), color=_LINE, alpha=0.1)
        return
    bars = bars.dropna(subset=["close"])
    days, colours = _strip_zone(bars["open_time"]), _colour(bars)
    body = bars["close"] - bars["open"]
    axis.vlines(days, bars["low"], bars["high"], colors=colours, linewidth=1)
    axis.bar(days, body, width=_CANDLE_DAYS, bottom=bars["open"], color=colours)
    # A bar that closes where it opened has no body to see.
    still = (body == 0).to_numpy()
    axis.plot(days[still], bars["close"][still], "_", color=_UP, markersize=5)


def _draw_volume(axis: "Axes", bars: pd.DataFrame) -> None:
    if bars["volume"].isna().all():
        axis.set_yticks([])
        axis.text(0.01, 0.4, "no volume", transform=axis.transAxes, fontsize=8, color=_FAINT)
        return
    days, volume = _strip_zone(bars["open_time"]), bars["volume"]
    if len(bars) > _MAX_CANDLES:
        axis.fill_between(
            days, volume, step="mid", color=_LINE, alpha=0.45, linewidth=0, antialiased=False
        )
    else:
        known = bars["close"].notna().to_numpy()
        days, volume, bars = days[known], volume[known], bars[known]
        axis.bar(
            days, volume, width=_CANDLE_DAYS, color=_colour(bars), alpha=0.55, antialiased=False
        )
    axis.set_ylim(bottom=0)
    axis.locator_params(axis="y", nbins=2)


def _strip_zone(times: "pd.Series[pd.Timestamp]") -> npt.NDArray[np.datetime64]:
    """Return times as matplotlib takes them: UTC, without saying so."""
    return times.dt.tz_convert(None).to_numpy()


def _colour(bars: pd.DataFrame) -> list[str]:
    return [_UP if rose else _DOWN for rose in bars["close"] >= bars["open"]]


def _date_axis(axis: "Axes", **formats: Any) -> None:
    """Write 4 to 8 dates below an axis, whatever its span."""
    from matplotlib.dates import HOURLY, MINUTELY, MONTHLY, AutoDateLocator, ConciseDateFormatter

    dates = AutoDateLocator(tz="UTC", minticks=4, maxticks=8)  # type: ignore[no-untyped-call]
    # Without these steps matplotlib warns of spans of 4 hours, 4 days and 4 years, on stderr.
    for unit, step in ((MINUTELY, 60), (HOURLY, 24), (MONTHLY, 12)):
        dates.intervald[unit] = [*dates.intervald[unit], step]
    axis.xaxis.set_major_locator(dates)
    shown = ConciseDateFormatter(dates, tz="UTC", show_offset=False, **formats)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_formatter(shown)


def _finish(axis: "Axes", show: Callable[[float], str]) -> None:
    """Write dates and numbers, draw the grid."""
    _date_axis(axis, formats=_DATE_FORMATS, zero_formats=_DATE_FORMATS)
    axis.yaxis.set_major_formatter(lambda value, _: show(value))
    axis.margins(x=0.03)
    axis.tick_params(labelsize=8, colors=_FAINT, length=0)
    axis.grid(visible=True, color=_GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(_GRID)


def _encode_figure(figure: "Figure") -> bytes:
    """Return the finest PNG that is small enough: few colours are what makes it small."""
    for dots, colours in _QUALITIES:
        picture = _quantise(figure, dots, colours)
        if len(picture) < MAX_BYTES:
            return picture
    raise ValueError(f"a picture has {len(picture)} bytes at its coarsest")


def _quantise(figure: "Figure", dots: int, colours: int) -> bytes:
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dots)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(colours).save(small, format="png", optimize=True)
    return small.getvalue()
