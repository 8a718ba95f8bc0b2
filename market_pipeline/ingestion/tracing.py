"""The difference of one market during a run: compares pages, and follows the difference.

Here: comparing a page with the stored bars, and the next page to ask for. Not here: the rules
(``domain.differences``), requests (``fetch``), and the writing (``commit``).
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

import numpy as np
import numpy.typing as npt
from sqlalchemy import Engine

from market_pipeline.domain.arrays import Micros
from market_pipeline.domain.columns import BarColumns, join_columns
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.differences import (
    REPAIRING,
    RESCALED,
    TRACING,
    WITHDRAWN,
    BarComparison,
    Difference,
    Edge,
    Trace,
    compare,
    find_span,
    find_window,
    follow,
    keep_prices,
    plan_probe,
    plan_trace,
    widen,
)
from market_pipeline.domain.grids import find_grid, to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.planning import TRACE, FetchRequest
from market_pipeline.domain.ranges import intersect_windows, merge_windows, subtract_windows
from market_pipeline.domain.reconciliation import find_inside, list_known_spans, release_settled
from market_pipeline.domain.records import HistoryTerms, Window
from market_pipeline.domain.sessions import EPOCH, LAST_DAY
from market_pipeline.ingestion.batches import BarPage, ClaimedMarket
from market_pipeline.ingestion.plan import find_earliest, plan_reloads
from market_pipeline.ingestion.request import Request
from market_pipeline.storage.bars.stored import SeriesSpan, read_spans

MOST_TRACES = 200
"""The most pages of a run: a provider that says something else each time would have no end."""


class DifferenceWatch:
    """Compares a market's pages with what is stored, and follows what differs.

    Args:
        engine: Where the bars are.
        held: The market, and what runs before this one have left open.
        request: The run's.
        coverages: As the run found them. A bar that is settled there is stored and final.
    """

    def __init__(
        self,
        engine: Engine,
        held: ClaimedMarket,
        request: Request,
        coverages: dict[Interval, Coverage],
    ) -> None:
        left_open, self.coverages = held.left_open, coverages
        self.is_stored, self.releases = left_open.difference is not None, False
        self._engine, self._held, self._request = engine, held, request
        self._provider, self._market = held.route
        self._has_failed, self._version = False, left_open.version
        self._doubtful = {
            interval: span
            for interval, span in left_open.written_since.items()
            if intersect_windows(self._find_coverage(interval).settled, [span])
        }
        self.difference = self._take_up(left_open.difference)

    @property
    def is_tracing(self) -> bool:
        """Whether the state changes with every page, and must be stored with it."""
        return self.difference is not None and self.difference.stage in (TRACING, WITHDRAWN)

    def note_stored(self) -> None:
        """Take in that a batch with the state as it is was handed over."""
        self.is_stored, self.releases = self.difference is not None, False
        if self.difference is not None and self.difference.stage == WITHDRAWN:
            self.difference, self.is_stored = None, False

    def review(self, page: BarPage) -> BarPage:
        """Return a page without what may not be stored.

        An empty answer about stored bars becomes a failure: the provider had them before. Final
        bars that differ from known ones are left out while the difference is traced.
        """
        if page.error is None and self._may_meet_stored(page.request):
            stored = self._read_stored(page.request)
            page = (
                self._compare(page, stored)
                if page.received
                else _reject_unexpected_empty(page, len(stored))
            )
        self._has_failed |= page.request.purpose == TRACE and page.error is not None
        return page

    def iterate_trace(self) -> Iterator[FetchRequest]:
        """Yield requests until the difference has ended on all sides; reviews change what comes.

        At the end what differs is released: from then on it is missing, and read again.
        """
        for _ in range(MOST_TRACES):
            if self.difference is None or self.difference.stage != TRACING or self._has_failed:
                return
            request = self._plan_next(self.difference)
            if request is None:
                self._release(self.difference)
                return
            yield request

    def iterate_reload(self) -> Iterator[FetchRequest]:
        """Yield the requests for what this run has released."""
        if self.releases:
            route = (self._provider, self._market)
            yield from plan_reloads(route, self.coverages, self._request, self.difference)

    def _read_stored(self, request: FetchRequest) -> BarColumns:
        """Return the stored final bars of a request's window, in order."""
        if request in self._held.overlaps:
            return self._held.overlaps[request]
        with self._engine.connect() as connection:
            span = SeriesSpan(self._held.market_id, request.interval, request.window)
            bars, _ = read_spans(connection, [span])
        bars = bars.take(bars.is_final)
        return bars.take(np.argsort(bars.open_time))

    def _may_meet_stored(self, request: FetchRequest) -> bool:
        known = self.coverages.get(request.interval, Coverage())
        part = find_grid(self._market.calendar, request.interval, request.window).cut(
            request.window
        )
        if find_inside(list_known_spans(known), part.opens).any():
            return True
        trace = (
            self.difference.traces.get(request.interval) if self.difference is not None else None
        )
        return trace is not None and bool(intersect_windows(trace.released, [request.window]))

    def _compare(self, page: BarPage, stored: BarColumns) -> BarPage:
        request, good = page.request, page.validated.good
        is_own = good.interval == request.interval.value
        own = good.take(is_own)
        noise = self._describe_terms(request.interval).noise_ratio
        seen = compare(stored, own, request.window, noise)
        is_known = find_inside(list_known_spans(self._find_coverage(request.interval)), seen.opens)
        is_ours = self._find_ours(stored, seen, request.interval)
        compared = seen.select(is_known & ~is_ours)
        self._follow(request, compared)
        is_kept = np.ones(len(own), dtype=bool)
        is_kept[seen.places[(seen.differs & is_known) | is_ours]] = False
        bars = join_columns([keep_prices(own, seen).take(is_kept), good.take(~is_own)])
        return replace(page, validated=replace(page.validated, good=bars))

    def _follow(self, request: FetchRequest, seen: BarComparison) -> None:
        known, calendar = self.difference, self._market.calendar
        self.difference = follow(known, request.interval, seen, calendar, request.purpose == TRACE)
        if self.difference is None:
            return
        if self.difference.version is None:
            self.difference = replace(self.difference, version=self._version)
        if known is not None and known.stage != self.difference.stage == TRACING:
            self.difference = replace(self.difference, doubtful=self._doubtful)

    def _find_ours(
        self, stored: BarColumns, seen: BarComparison, interval: Interval
    ) -> npt.NDArray[np.bool_]:
        """Tell which bars were multiplied here: the provider's are in another scale.

        One that lies in a hole was multiplied for want of an answer, which is welcome now.
        """
        opens = stored.open_time[stored.source_kind == RESCALED]
        holes = [hole.window for hole in self._find_coverage(interval).holes]
        return np.isin(seen.opens, opens[~find_inside(holes, opens)])

    def _plan_next(self, known: Difference) -> FetchRequest | None:
        """Return the next page of a trace, or of an interval that was not looked at yet."""
        for plan in (self._plan_trace, self._plan_probe):
            for interval in self._market.intervals:
                known, window = plan(known, interval)
                self.difference = known
                if window is not None:
                    grid = find_grid(self._market.calendar, interval, window)
                    return FetchRequest(interval, window, TRACE, grid.count(window))
        return None

    def _plan_trace(
        self, known: Difference, interval: Interval
    ) -> tuple[Difference, Window | None]:
        trace = known.traces.get(interval)
        if trace is None:
            return known, None
        terms, earliest = self._describe_reach(interval)
        opens = self._list_known(interval)
        trace, window = plan_trace(trace, opens, interval, terms.page, to_micros(earliest))
        return replace(known, traces={**known.traces, interval: trace}), window

    def _plan_probe(
        self, known: Difference, interval: Interval
    ) -> tuple[Difference, Window | None]:
        if interval in known.traces:
            return known, None
        start, end = find_span(known, self._market.calendar)
        terms, earliest = self._describe_reach(interval)
        span, opens = Window(start, end or LAST_DAY), self._list_known(interval)
        window = plan_probe(opens, span, interval, terms.page, to_micros(earliest))
        if window is None:
            known = replace(known, traces={**known.traces, interval: None})
        return known, window

    def _release(self, known: Difference) -> None:
        """Let what differs, and what is doubtful, be missing as far as the provider reaches."""
        traces = dict(known.traces)
        for interval, span in known.doubtful.items():
            traces[interval] = widen(traces.get(interval), span, self._market.calendar, interval)
        for interval, trace in traces.items():
            if trace is not None:
                traces[interval] = self._release_trace(interval, trace)
        self.difference = replace(known, stage=REPAIRING, traces=traces, doubtful={})
        self.releases = True

    def _release_trace(self, interval: Interval, trace: Trace) -> Trace:
        _, earliest = self._describe_reach(interval)
        window = find_window(trace, self._market.calendar, interval)
        reached = subtract_windows([window], [Window(EPOCH, earliest)])
        known = self._find_coverage(interval)
        freed = intersect_windows(list_known_spans(known), reached)
        released = tuple(merge_windows([*trace.released, *freed]))
        self.coverages[interval] = release_settled(known, released)
        return replace(trace, released=released)

    def _take_up(self, difference: Difference | None) -> Difference | None:
        if difference is None:
            return None
        if difference.stage == TRACING:
            difference = replace(difference, doubtful=self._doubtful)
        elif not difference.traces:
            difference = self._adopt(difference)
        is_any = difference.list_traces() or difference.doubtful
        return difference if is_any else replace(difference, stage=WITHDRAWN)

    def _adopt(self, difference: Difference) -> Difference:
        """Return a reload that the version before has begun, as it is noted now."""
        traces: dict[Interval, Trace | None] = {}
        for interval, known in self.coverages.items():
            if known.first_bar_at is None or known.watermark is None:
                continue
            whole = Window(known.first_bar_at, known.watermark)
            opens = find_grid(self._market.calendar, interval, whole).cut(whole).opens
            if len(opens):
                lower, upper = (Edge(int(at), int(at), is_found=True) for at in opens[[0, -1]])
                traces[interval] = Trace(lower, upper, (whole,))
        return replace(difference, traces=traces)

    def _list_known(self, interval: Interval) -> Micros:
        """Return where the expected bars open that are stored and final."""
        known = self._find_coverage(interval)
        spans = list_known_spans(known)
        if not spans:
            return np.empty(0, dtype=np.int64)
        whole = Window(spans[0].start, spans[-1].end)
        part = find_grid(self._market.calendar, interval, whole).cut(whole)
        return part.opens[find_inside(spans, part.opens)]

    def _find_coverage(self, interval: Interval) -> Coverage:
        return self.coverages.get(interval, Coverage())

    def _describe_terms(self, interval: Interval) -> HistoryTerms:
        return self._provider.describe_history(self._market, interval)

    def _describe_reach(self, interval: Interval) -> tuple[HistoryTerms, datetime]:
        terms = self._describe_terms(interval)
        return terms, max(find_earliest(terms, self._request) or EPOCH, EPOCH)


def _reject_unexpected_empty(page: BarPage, stored: int) -> BarPage:
    """Turn an empty answer about a span that has bars into a failure: it had them before."""
    if not stored:
        return page
    return replace(
        page, error=f"the provider has no bars in this window, but {stored} bars of it are stored"
    )
