"""Differences: final bars that come back with other prices, and how far the change reaches.

Here: comparing bars, following a difference to both sides until it ends, and what to ask for next.
Not here: asking, and storing what came again (``ingestion``).

A difference begins with one page. It has two edges: the lowest and the highest bar that differs.
Each edge is followed outwards, in pages that double what has been compared. An edge is found when
20 bars beyond it agree one after another, or when no stored bar is left. Then the span between the
edges is read again. Moments are microseconds since 1970, UTC, as in grids.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.arrays import BoolArray, FloatArray, Micros
from market_pipeline.domain.columns import PRICES, BarColumns
from market_pipeline.domain.grids import find_grid, from_micros, to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window

AGREEING_BARS = 20
"""A difference has ended where so many bars in a row agree."""
FIRST_PAGE_BARS = 20
ONE_FACTOR_SPREAD = 2e-3
"""Adjusted prices are rounded, so the factors of one rescaling agree to this only."""
ONE_FACTOR_BARS = 20
"""One factor is believed for bars that cannot be read again from so many bars on."""
TRACING, REPAIRING, SEAM, WITHDRAWN = "tracing", "repairing", "seam", "withdrawn"
RESCALED = "rescaled"
"""The source kind of bars that were multiplied here: no provider sent them so."""
DOWN, UP = -1, 1
_LONGEST_CLOSURE = timedelta(days=40)
_NOTHING = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class BarComparison:
    """Stored final bars beside what came for them, in order of time.

    Attributes:
        window: What was asked for. opens: open_time of the bars that are in both.
        places: Their positions among the bars received.
        stored: Their stored prices, one row a bar. received: The new ones.
        differs: Whether a price differs by more than the noise.
        volume_factors: New volume over old one; NaN where one is missing or zero.
    """

    window: Window
    opens: Micros
    places: npt.NDArray[np.intp]
    stored: FloatArray
    received: FloatArray
    differs: BoolArray
    volume_factors: FloatArray

    def select(self, wanted: BoolArray) -> "BarComparison":
        """Return the same of some of the bars."""
        return BarComparison(
            self.window,
            self.opens[wanted],
            self.places[wanted],
            self.stored[wanted],
            self.received[wanted],
            self.differs[wanted],
            self.volume_factors[wanted],
        )


@dataclass(frozen=True, slots=True)
class Edge:
    """One side of a difference, as far as it was followed.

    Attributes:
        at: open_time of the outermost bar that differs. seen: Compared up to here.
        agreed: Bars in a row that agree, up to ``seen``. compared: Bars compared in all.
        is_found: The difference has ended there.
    """

    at: int
    seen: int
    agreed: int = 0
    compared: int = 0
    is_found: bool = False


@dataclass(frozen=True, slots=True)
class Trace:
    """A difference in the bars of one interval.

    Attributes:
        lower, upper: Its edges. released: Spans that are read again, once the trace has ended.
        base: A span that belongs to it in any case, of an earlier trace.
    """

    lower: Edge
    upper: Edge
    released: tuple[Window, ...] = ()
    base: Window | None = None

    @property
    def is_found(self) -> bool:
        """Whether both ends were found."""
        return self.lower.is_found and self.upper.is_found


@dataclass(frozen=True, slots=True)
class Difference:
    """The knowledge about a market's difference.

    Attributes:
        stage: ``tracing``; ``repairing`` while its span is read again; ``seam`` where a part that
            cannot be read again stays as it was; ``withdrawn``: the stored values came again.
        traces: By interval; None where the bars of its span agree.
        ratio: New price over old price, the median. spread: Largest relative distance from it.
        bars: How many differed. volume_ratio: New volume over old volume, the median.
        version: Newest dataset version before it was seen: newer bars are in the new scale.
        doubtful: Where runs before this one stored bars while it was open, by interval: whether in
            the scale of today nobody knows, so they are read again as well.
    """

    stage: str = TRACING
    traces: Mapping[Interval, Trace | None] = field(default_factory=lambda: MappingProxyType({}))
    ratio: float = 1.0
    spread: float = 0.0
    bars: int = 0
    volume_ratio: float | None = None
    version: int | None = None
    doubtful: Mapping[Interval, Window] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def has_one_factor(self) -> bool:
        """Whether one factor explains all that was compared."""
        return self.bars >= ONE_FACTOR_BARS and self.spread <= ONE_FACTOR_SPREAD

    def list_traces(self) -> list[tuple[Interval, Trace]]:
        """Return the traces of the intervals whose bars differ."""
        return [(interval, trace) for interval, trace in self.traces.items() if trace is not None]


def compare(
    stored: BarColumns, received: BarColumns, window: Window, noise_ratio: float
) -> BarComparison:
    """Put stored final bars beside the final bars received; volume never counts as a difference.

    Args:
        stored: Stored bars of one interval, each once.
        received: Bars of the same interval, each once.
        window: What was asked for.
        noise_ratio: A price may differ by this fraction and be the same.
    """
    old, new = np.flatnonzero(stored.is_final), np.flatnonzero(received.is_final)
    opens, at_old, at_new = np.intersect1d(
        stored.open_time[old], received.open_time[new], assume_unique=True, return_indices=True
    )
    olds, news = old[at_old], new[at_new]
    before, after = stored.stack_prices()[olds], received.stack_prices()[news]
    differs = np.any(np.abs(after - before) > noise_ratio * np.abs(before), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = received.volume[news] / stored.volume[olds]
    factors[~np.isfinite(factors) | (factors <= 0)] = np.nan
    return BarComparison(window, opens, news, before, after, differs, factors)


def keep_prices(received: BarColumns, seen: BarComparison) -> BarColumns:
    """Return received bars with the stored prices where the new ones are the same within noise."""
    rows, columns = np.nonzero((seen.received != seen.stored) & ~seen.differs[:, None])
    if not len(rows):
        return received
    prices = received.stack_prices()
    prices[seen.places[rows], columns] = seen.stored[rows, columns]
    return received.with_prices(prices)


def multiply_bars(bars: pd.DataFrame, ratio: float, volume_ratio: float | None) -> pd.DataFrame:
    """Return bars in the new scale, marked; volumes move only if those that came again did.

    Args:
        bars: A bar frame.
        ratio: New price over old price.
        volume_ratio: New volume over old one, as it was seen; None: nothing is known of it.
    """
    scaled = {name: bars[name] * ratio for name in PRICES}
    moves = volume_ratio is not None and (
        abs(math.log(volume_ratio * ratio)) < abs(math.log(volume_ratio))
    )
    volume = bars["volume"] / ratio if moves else bars["volume"]
    return bars.assign(**scaled, volume=volume, source_kind=RESCALED)


def follow(
    known: Difference | None,
    interval: Interval,
    seen: BarComparison,
    calendar: str,
    is_next: bool = False,
) -> Difference | None:
    """Return what is known of a difference after one more page; None: there is none.

    Args:
        known: What was known before.
        interval: The page's.
        seen: Its bars that the ledger knows as stored and final.
        calendar: The market's.
        is_next: It was asked for by :func:`plan_trace` or :func:`plan_probe`.
    """
    if known is not None and known.stage == WITHDRAWN:
        return follow(None, interval, seen, calendar, is_next) or known
    if known is not None and known.stage == REPAIRING:
        return _trace_again(known, interval, seen, calendar) if seen.differs.any() else known
    traces = dict(known.traces) if known is not None else {}
    trace = traces.pop(interval, None)
    if trace is not None and not _is_gone(trace, seen):
        lower, upper = trace.lower, trace.upper
        traces[interval] = replace(
            trace,
            lower=_move(lower, DOWN, seen, is_next),
            upper=_move(upper, UP, seen, is_next),
        )
    elif seen.differs.any():
        traces[interval] = Trace(_begin_edge(DOWN, seen), _begin_edge(UP, seen))
    elif is_next or (known is not None and interval in known.traces and trace is None):
        traces[interval] = None
    if known is None and not traces:
        return None
    known = known or Difference()
    stage = TRACING if any(traces.values()) or known.doubtful else WITHDRAWN
    return _weigh(replace(known, stage=stage, traces=traces), seen)


def _trace_again(
    known: Difference, interval: Interval, seen: BarComparison, calendar: str
) -> Difference:
    """Follow a difference among bars that were read again: the provider changed its mind twice.

    What has not been read again yet is older by more than one factor.
    """
    old = known.traces.get(interval)
    again = Trace(_begin_edge(DOWN, seen), _begin_edge(UP, seen))
    if old is not None:
        base = find_window(old, calendar, interval)
        again = replace(again, released=old.released, base=base)
    traces = {**known.traces, interval: again}
    return _weigh(replace(known, stage=TRACING, traces=traces, spread=1.0), seen)


def _is_gone(trace: Trace, seen: BarComparison) -> bool:
    """Tell whether a bar at an edge came as it is stored: the provider took the difference back."""
    return bool(np.isin([trace.lower.at, trace.upper.at], seen.opens[~seen.differs]).any())


def _begin_edge(side: int, seen: BarComparison) -> Edge:
    at = side * int((side * seen.opens[seen.differs]).max())
    agreed = int((side * seen.opens > side * at).sum())
    far, _ = _find_ends(side, seen.window)
    return Edge(at, side * far, agreed, len(seen.opens), agreed >= AGREEING_BARS)


def _move(edge: Edge, side: int, seen: BarComparison, is_next: bool) -> Edge:
    """Return an edge after one more page, which may lie anywhere."""
    opens = side * seen.opens
    outermost = int(opens[seen.differs].max(initial=_NOTHING))
    far, near = _find_ends(side, seen.window)
    extends = far > side * edge.seen and (is_next or near <= side * edge.seen)
    if outermost <= side * edge.at and not extends:
        return edge
    if outermost > side * edge.at:
        agreed = int((opens > outermost).sum())
    else:
        agreed = edge.agreed + int((opens > side * edge.seen).sum())
    return Edge(
        side * max(side * edge.at, outermost),
        side * far,
        agreed,
        edge.compared + len(opens),
        agreed >= AGREEING_BARS,
    )


def _find_ends(side: int, window: Window) -> tuple[int, int]:
    """Return the far and the near end of a window, growing outwards."""
    first, last = to_micros(window.start), to_micros(window.end) - 1
    return (last, first - 1) if side == UP else (-first, -last - 1)


def _weigh(known: Difference, seen: BarComparison) -> Difference:
    """Take the factors of a page's differing bars in; the first page's median stays the ratio."""
    if not seen.differs.any():
        return known
    factors = seen.received[seen.differs] / seen.stored[seen.differs]
    ratio, volume_ratio = known.ratio, known.volume_ratio
    if not known.bars:
        ratio = float(np.median(factors[:, -1]))
        volumes = seen.volume_factors[seen.differs]
        is_told = ~np.isnan(volumes)
        volume_ratio = float(np.median(volumes[is_told])) if is_told.any() else None
    spread = max(known.spread, float(np.abs(factors / ratio - 1).max()))
    bars = known.bars + int(seen.differs.sum())
    return replace(known, ratio=ratio, spread=spread, bars=bars, volume_ratio=volume_ratio)


def plan_trace(
    trace: Trace, known: Micros, interval: Interval, page: timedelta, earliest: int
) -> tuple[Trace, Window | None]:
    """Return a trace, with the ends that need no page marked as found, and the next page if any.

    A page takes the bar at the edge in again: if that has come back, so has the difference.

    Args:
        trace: So far.
        known: open_time of all expected bars that are stored and final, in order.
        interval: Of the bars.
        page: The longest span of one request.
        earliest: The provider has nothing before it.
    """
    lower, window = _plan_down(trace.lower, known, interval, page, earliest)
    trace = replace(trace, lower=lower)
    if window is not None:
        return trace, window
    upper, window = _plan_up(trace.upper, known, interval, page)
    return replace(trace, upper=upper), window


def _plan_down(
    edge: Edge, known: Micros, interval: Interval, page: timedelta, earliest: int
) -> tuple[Edge, Window | None]:
    beyond = known[known < edge.seen]
    within = beyond[beyond >= earliest]
    if edge.is_found or not len(within):
        # What cannot be compared is taken to differ like the last bar that could.
        is_cut = not edge.is_found and len(beyond) > 0 and not edge.agreed
        return replace(edge, at=int(beyond[0]) if is_cut else edge.at, is_found=True), None
    first, last = within[-max(FIRST_PAGE_BARS, edge.compared) :][[0, -1]]
    end = from_micros(edge.at) + interval.duration
    if end - page >= from_micros(last):
        end = from_micros(last) + interval.duration
    return edge, Window(max(from_micros(first), end - page), end)


def _plan_up(
    edge: Edge, known: Micros, interval: Interval, page: timedelta
) -> tuple[Edge, Window | None]:
    beyond = known[known > edge.seen]
    if edge.is_found or not len(beyond):
        return replace(edge, is_found=True), None
    first, last = beyond[: max(FIRST_PAGE_BARS, edge.compared)][[0, -1]]
    start = from_micros(edge.at)
    if start + page <= from_micros(first):
        start = from_micros(first)
    return edge, Window(start, min(from_micros(last) + interval.duration, start + page))


def plan_probe(
    known: Micros, span: Window, interval: Interval, page: timedelta, earliest: int
) -> Window | None:
    """Return the newest page of another interval's bars within a difference's span, if any.

    A day holds hours of the day before where an exchange opens before midnight UTC, so the span
    begins a day earlier.
    """
    start = max(to_micros(span.start - timedelta(days=1)), earliest)
    inside = known[(known >= start) & (known < to_micros(span.end))]
    if not len(inside):
        return None
    end = from_micros(inside[-1]) + interval.duration
    return Window(max(from_micros(inside[0]), end - page), end)


def find_window(trace: Trace, calendar: str, interval: Interval) -> Window:
    """Return from the lowest differing bar to where the bar after the highest one opens."""
    start, end = from_micros(trace.lower.at), find_next_open(calendar, interval, trace.upper.at)
    base = trace.base or Window(start, end)
    return Window(min(start, base.start), max(end, base.end))


def widen(trace: Trace | None, span: Window, calendar: str, interval: Interval) -> Trace:
    """Return a trace to which a span belongs in any case."""
    if trace is None:
        first, last = to_micros(span.start), to_micros(span.end) - 1
        return Trace(Edge(first, first, is_found=True), Edge(last, last, is_found=True), base=span)
    window = find_window(trace, calendar, interval)
    return replace(trace, base=Window(min(window.start, span.start), max(window.end, span.end)))


def find_span(difference: Difference, calendar: str) -> tuple[datetime, datetime | None]:
    """Return from where to where a difference goes; None: it may reach up to now."""
    traces = difference.list_traces()
    windows = [find_window(trace, calendar, interval) for interval, trace in traces]
    windows += difference.doubtful.values()
    is_ended = all(trace.upper.is_found for _, trace in traces)
    start = min(window.start for window in windows)
    return start, max(window.end for window in windows) if is_ended else None


def find_next_open(calendar: str, interval: Interval, opened: int) -> datetime:
    """Return where the first expected bar after one opens (UTC)."""
    start = from_micros(opened)
    grid = find_grid(calendar, interval, Window(start, start + _LONGEST_CLOSURE))
    at = int(np.searchsorted(grid.opens, opened, side="right"))
    return from_micros(grid.opens[at]) if at < len(grid.opens) else start + interval.duration
