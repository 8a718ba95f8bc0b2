"""The plan of a run, market by market; the same plan is shown and carried out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from market_pipeline.domain.coverage import Coverage, wake_failures
from market_pipeline.domain.differences import Difference
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.parsing import adopt_parsing
from market_pipeline.domain.planning import (
    FetchRequest,
    plan_interval,
    plan_reload,
    plan_retries,
    plan_verification,
)
from market_pipeline.domain.ranges import intersect_windows, merge_windows, subtract_windows
from market_pipeline.domain.records import HistoryTerms, Market, Window
from market_pipeline.domain.sessions import EPOCH, find_known_span
from market_pipeline.ingestion.request import BASE_MARGIN, Request, Route

Coverages = Mapping[Interval, Coverage]
_UNKNOWN = Coverage()


@dataclass(frozen=True, slots=True)
class MarketPlan:
    """The requests that make one market complete, the finest interval first.

    Attributes:
        market: Whose. requests: What is needed.
        retries: Holes outside the window, as far as the budget
            allows. verifications: What would be good to read again, as far as it allows.
        cut: Which part of the window its calendar does not know, in words; None: it knows all.
    """

    market: Market
    requests: tuple[FetchRequest, ...]
    retries: tuple[FetchRequest, ...]
    verifications: tuple[FetchRequest, ...]
    cut: str | None = None

    @property
    def needed(self) -> tuple[FetchRequest, ...]:
        """What brings bars that are missing."""
        return (*self.requests, *self.retries)

    @property
    def bars(self) -> int:
        """How many bars the calendar expects in what is needed."""
        return sum(request.bars for request in self.needed)


def plan_market(
    route: Route, coverages: Coverages, request: Request, difference: Difference | None = None
) -> MarketPlan:
    """Return what a request still needs of a market; what its difference released comes last."""
    provider, market = route
    requests: list[FetchRequest] = []
    retries: list[FetchRequest] = []
    verifications: list[FetchRequest] = []
    for interval in market.intervals:
        terms = provider.describe_history(market, interval)
        calendar, earliest = market.calendar, find_earliest(terms, request)
        known = adopt_parsing(coverages.get(interval, _UNKNOWN), terms.parsing)
        known = _wake(known, request)
        # What a difference released is read again by requests of its own.
        rest = _set_aside(known, find_left(difference, interval, known, earliest))
        clock = (rest, terms, earliest)
        requests += plan_interval(
            interval, calendar, request.window, request.now, *clock,
            request.asked_at, request.filled_from,
        )  # fmt: skip
        retries += plan_retries(interval, calendar, request.window, request.asked_at, *clock)
        verifications += plan_verification(interval, calendar, request.now, *clock)
    requests += plan_reloads(route, coverages, request, difference)
    cut = describe_cut(market, request.window)
    return MarketPlan(market, tuple(requests), tuple(retries), tuple(verifications), cut)


def describe_cut(market: Market, window: Window) -> str | None:
    """Return which part of a window is not asked for, as no calendar knows it; None: all of it is.

    Args:
        market: Whose calendar counts.
        window: What is wanted (UTC).
    """
    known = find_known_span(market.calendar)
    if known is None:
        return None
    if window.start < known.start:
        return f"nothing before {known.start:%Y-%m-%d} is asked for: {market.calendar} begins there"
    if window.end > known.end + BASE_MARGIN:
        return f"nothing after {known.end:%Y-%m-%d} is asked for: {market.calendar} ends there"
    return None


def _wake(known: Coverage, request: Request) -> Coverage:
    """Return the coverage in which nothing waits that a span of history was asked for by name."""
    if request.filled_from is not None:
        return known
    return wake_failures(known, request.asked_at, request.window)


def plan_reloads(
    route: Route, coverages: Coverages, request: Request, difference: Difference | None
) -> tuple[FetchRequest, ...]:
    """Return the requests that read again what a difference released, whatever the look-back."""
    provider, market = route
    requests: list[FetchRequest] = []
    for interval in market.intervals:
        known = coverages.get(interval, _UNKNOWN)
        terms = provider.describe_history(market, interval)
        left = find_left(difference, interval, known, find_earliest(terms, request))
        clock = (request.now, known, terms, request.asked_at)
        requests += plan_reload(interval, market.calendar, left, *clock)
    return tuple(requests)


def find_left(
    difference: Difference | None, interval: Interval, known: Coverage, earliest: datetime | None
) -> list[Window]:
    """Return what of a difference's released spans is not read again yet, and can be."""
    trace = difference.traces.get(interval) if difference is not None else None
    if trace is None:
        return []
    left = subtract_windows(trace.released, known.settled)
    if earliest is None:
        return left
    return subtract_windows(left, [Window(EPOCH, max(earliest, EPOCH))])


def _set_aside(known: Coverage, left: Sequence[Window]) -> Coverage:
    """Return the coverage without what is read again anyway."""
    if not left:
        return known
    holes = [hole for hole in known.holes if not intersect_windows([hole.window], left)]
    settled = merge_windows([*known.settled, *left])
    return replace(known, settled=tuple(settled), holes=tuple(holes))


def find_earliest(terms: HistoryTerms, request: Request) -> datetime | None:
    """Return before when the provider has nothing (UTC); None: no limit known."""
    return None if terms.reaches_back is None else request.asked_at - terms.reaches_back
