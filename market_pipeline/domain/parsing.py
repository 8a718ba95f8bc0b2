"""Parsing versions: the ways in which a provider's answers were read, and the bars that each made.

When the reading changes, the same answer gives other bars. Bars of an older version stay as they
are until somebody reads the market again on purpose. New answers for them are no corrections, so
they are neither compared with the stored bars nor written over them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np

from market_pipeline.domain.columns import BarColumns
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.grids import Grid, find_grid, from_micros, to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.ranges import merge_windows, subtract_windows
from market_pipeline.domain.records import Window

TO_READ_AGAIN = 0
"""In the place of a version: bars that wait to be read again for another reason."""
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class ReadSpan:
    """A span whose stored bars one version read.

    Attributes:
        parsing: The version.
        window: By open_time (UTC).
        first_close: Of the first final bar in it (UTC); None: it has none.
    """

    parsing: int
    window: Window
    first_close: datetime | None = None


def adopt_parsing(coverage: Coverage, parsing: int) -> Coverage:
    """Return the coverage of a series that is read by a version from now on.

    What is stored and was read by the version so far becomes older, whichever is the greater.
    """
    if coverage.parsing == parsing:
        return coverage
    left = retire_spans(coverage, coverage.current, coverage.parsing)
    older = {key: spans for key, spans in left.older_parsings.items() if key != parsing}
    return replace(left, parsing=parsing, older_parsings=older)


def retire_spans(coverage: Coverage, spans: Iterable[Window], parsing: int) -> Coverage:
    """Return the coverage with the stored bars of some spans marked as read by a version."""
    stored = subtract_windows(spans, [hole.window for hole in coverage.holes])
    known = coverage.older_parsings.get(parsing, ())
    return _keep_older(coverage, {parsing: merge_windows([*known, *stored])})


def _keep_older(coverage: Coverage, changed: Mapping[int, Sequence[Window]]) -> Coverage:
    older = {**coverage.older_parsings, **changed}
    kept = {parsing: tuple(spans) for parsing, spans in older.items() if spans}
    return replace(coverage, older_parsings=kept)


def leave_older(bars: BarColumns, coverage: Coverage) -> BarColumns:
    """Return the bars of an answer without those that an older version has stored."""
    is_older = np.zeros(len(bars), dtype=bool)
    for span in coverage.older:
        start, end = to_micros(span.start), to_micros(span.end)
        is_older |= (start <= bars.open_time) & (bars.open_time < end)
    return bars.take(~is_older) if is_older.any() else bars


def renew_spans(
    coverage: Coverage, interval: Interval, calendar: str, asked: Window, bars: BarColumns
) -> Coverage:
    """Return the coverage after bars of older versions were replaced by what came.

    Args:
        coverage: As it was.
        interval: Of the bars.
        calendar: The market's.
        asked: What was asked for; outside of it nothing changes.
        bars: What was stored of the answer: what did not come final stays as it was read.
    """
    if not coverage.older_parsings:
        return coverage
    grid = find_grid(calendar, interval, asked)
    renewed = subtract_windows([asked], _find_left(grid, asked, bars))
    older = coverage.older_parsings.items()
    return _keep_older(
        coverage, {parsing: subtract_windows(spans, renewed) for parsing, spans in older}
    )


def _find_left(grid: Grid, asked: Window, bars: BarColumns) -> list[Window]:
    """Return the time of the expected bars that did not come final, each up to the next bar."""
    opens = grid.cut(asked).opens
    came = np.isin(opens, bars.open_time[bars.is_final])
    edges = [*map(from_micros, opens), asked.end]
    return merge_windows(Window(edges[at], edges[at + 1]) for at in np.flatnonzero(~came))


def list_spans(coverage: Coverage) -> list[ReadSpan]:
    """Return which version read the stored bars of which span, in order."""
    holes = [hole.window for hole in coverage.holes]
    current = subtract_windows(coverage.current, holes)
    spans = [ReadSpan(coverage.parsing, window) for window in current]
    for parsing, windows in coverage.older_parsings.items():
        spans += [ReadSpan(parsing, window) for window in windows]
    return sorted(spans, key=lambda span: span.window.start)


def find_changes(spans: Sequence[ReadSpan]) -> list[datetime]:
    """Return the moments between bars of different versions, just before the later one's close.

    What ends at a bar's close and begins before such a moment mixes two versions.
    """
    filled = [span for span in spans if span.first_close is not None]
    return [
        after.first_close - _INSTANT
        for before, after in pairwise(filled)
        if before.parsing != after.parsing and after.first_close is not None
    ]
