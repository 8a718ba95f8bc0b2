"""Arithmetic on half-open spans of time, for planning."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

from market_pipeline.domain.records import Window


def merge_windows(windows: Iterable[Window]) -> list[Window]:
    """Return the same time as disjoint windows in order; touching ones become one."""
    merged: list[Window] = []
    for window in sorted((w for w in windows if w.start < w.end), key=lambda w: w.start):
        if merged and window.start <= merged[-1].end:
            merged[-1] = Window(merged[-1].start, max(merged[-1].end, window.end))
        else:
            merged.append(window)
    return merged


def subtract_windows(windows: Iterable[Window], taken: Iterable[Window]) -> list[Window]:
    """Return what of ``windows`` lies in none of ``taken``, in order."""
    left: list[Window] = []
    cuts, at = merge_windows(taken), 0
    for window in merge_windows(windows):
        while at < len(cuts) and cuts[at].end <= window.start:
            at += 1
        left += _cut(window, cuts, at)
    return left


def intersect_windows(windows: Iterable[Window], limits: Iterable[Window]) -> list[Window]:
    """Return what of ``windows`` lies in one of ``limits``, in order."""
    bounds = merge_windows(limits)
    return [
        Window(max(window.start, bound.start), min(window.end, bound.end))
        for window in merge_windows(windows)
        for bound in bounds
        if max(window.start, bound.start) < min(window.end, bound.end)
    ]


def clip_windows(windows: Iterable[Window], limit: Window) -> list[Window]:
    """Return what of each window lies within a limit, in the order given."""
    clipped = (Window(max(w.start, limit.start), min(w.end, limit.end)) for w in windows)
    return [window for window in clipped if window.start < window.end]


def pack_windows(windows: Iterable[Window], longest: timedelta) -> list[Window]:
    """Return the fewest spans of at most ``longest`` that hold all windows, oldest first.

    Time between two windows is taken in where that saves a span.
    """
    packed: list[Window] = []
    for window in merge_windows(windows):
        start = window.start
        if packed and start < (limit := packed[-1].start + longest):
            start = min(window.end, limit)
            packed[-1] = Window(packed[-1].start, start)
        while start < window.end:
            packed.append(Window(start, min(start + longest, window.end)))
            start = packed[-1].end
    return packed


def _cut(window: Window, cuts: Sequence[Window], at: int) -> Iterator[Window]:
    """Yield what cuts, in order from a position on, leave of a window."""
    start = window.start
    while at < len(cuts) and cuts[at].start < window.end:
        if start < cuts[at].start:
            yield Window(start, cuts[at].start)
        start = cuts[at].end
        at += 1
    if start < window.end:
        yield Window(start, window.end)
