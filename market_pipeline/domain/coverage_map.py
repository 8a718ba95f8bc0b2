"""Coverage as a map: for each span of time, how well it is known."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt

from market_pipeline.domain.coverage import Coverage, Hole
from market_pipeline.domain.records import Window

SETTLED, EXPLAINED, MISSING, HOLE = range(4)
"""What a span is, the better first; the worst thing in it decides."""


def cut_time(start: datetime, end: datetime, count: int) -> list[Window]:
    """Return ``count`` windows of equal length from start to end."""
    step = (end - start) / count
    return [Window(start + at * step, start + (at + 1) * step) for at in range(count)]


def map_coverage(coverage: Coverage, spans: Sequence[Window]) -> npt.NDArray[np.int8]:
    """Return the state of each span, shape (len(spans),)."""
    return np.array([_classify(coverage, span) for span in spans], dtype=np.int8)


def _classify(coverage: Coverage, span: Window) -> int:
    holes = [hole for hole in coverage.holes if _touches(hole, span)]
    if any(not hole.is_explained for hole in holes):
        return HOLE
    is_settled = any(w.start <= span.start and span.end <= w.end for w in coverage.settled)
    if not is_settled:
        return MISSING
    return EXPLAINED if holes else SETTLED


def _touches(hole: Hole, span: Window) -> bool:
    return hole.window.start < span.end and span.start < hole.window.end
