"""The picture of coverage: markets on one side, time on the other, holes in red."""

from collections.abc import Mapping
from datetime import datetime

import numpy as np

from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.coverage_map import cut_time, map_coverage
from market_pipeline.orchestration.pictures import encode_figure, locate_dates, make_figure

MAX_ROWS = 24
COLUMNS = 160
_COLOURS = ("#0f9d76", "#a7d8c8", "#e5e7eb", "#d9483b")
_NAMES = ("final", "no trades, or before the first bar", "not asked for", "hole")
_INK, _FAINT = "#1f2937", "#6b7280"


def draw_coverage(rows: Mapping[str, Coverage], now: datetime) -> bytes | None:
    """Draw a heat map of what is settled and what is missing; None where nothing is stored.

    Args:
        rows: What is known, by label, such as ``BTC-USD 1h``; the first ``MAX_ROWS`` are drawn.
        now: The right edge (UTC).

    Returns:
        A PNG of less than ``pictures.MAX_BYTES``.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.dates import ConciseDateFormatter, date2num
    from matplotlib.patches import Patch

    shown = {label: row for label, row in list(rows.items())[:MAX_ROWS] if row.settled}
    if not shown:
        return None
    start = min(row.settled[0].start for row in shown.values())
    spans = cut_time(start, now, COLUMNS)
    states = np.stack([map_coverage(row, spans) for row in shown.values()])
    height = 0.26 * len(shown) + 0.9
    figure = make_figure(9.0, height)
    axis = figure.add_axes((0.14, 0.3 / height, 0.84, (0.26 * len(shown)) / height))
    left, right = date2num([start, now])  # type: ignore[no-untyped-call]
    edges = (left, right, len(shown) - 0.5, -0.5)
    colours = ListedColormap(_COLOURS)
    axis.imshow(states, cmap=colours, vmin=0, vmax=3, aspect="auto", extent=edges)
    axis.set_yticks(range(len(shown)), list(shown))
    dates = locate_dates()
    axis.xaxis.set_major_locator(dates)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(dates, tz="UTC", show_offset=False))  # type: ignore[no-untyped-call]
    axis.tick_params(length=0, labelsize=8, labelcolor=_FAINT)
    axis.spines[:].set_visible(False)
    for at in range(1, len(shown)):
        axis.axhline(at - 0.5, color="white", linewidth=1.5)
    figure.text(0.01, 0.99, "Coverage", va="top", fontsize=10, fontweight="bold", color=_INK)
    keys = [Patch(color=colour, label=name) for colour, name in zip(_COLOURS, _NAMES, strict=True)]
    figure.legend(handles=keys, loc="upper right", ncols=4, fontsize=8, frameon=False)
    return encode_figure(figure)
