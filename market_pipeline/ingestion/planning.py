"""What a run would ask for, market by market; the same plan is shown and carried out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.differences import Difference
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.parsing import adopt_parsing
from market_pipeline.domain.planning import Ask, plan_interval, plan_reload, plan_verification
from market_pipeline.domain.ranges import intersect_windows, merge_windows, subtract_windows
from market_pipeline.domain.records import HistoryTerms, Market, Window
from market_pipeline.ingestion.fetching import EPOCH
from market_pipeline.ingestion.request import Request, Route

Coverages = Mapping[Interval, Coverage]
_UNKNOWN = Coverage()


@dataclass(frozen=True, slots=True)
class MarketPlan:
    """The requests that make one market complete, the finest interval first.

    Attributes:
        market: Whose. asks: What is needed. verifications: What would be good to read again.
    """

    market: Market
    asks: tuple[Ask, ...]
    verifications: tuple[Ask, ...]

    @property
    def bars(self) -> int:
        """How many bars the calendar expects in what is needed."""
        return sum(ask.bars for ask in self.asks)


def plan_market(
    route: Route, coverages: Coverages, request: Request, difference: Difference | None = None
) -> MarketPlan:
    """Return what a request still needs of a market; what its difference released comes last."""
    provider, market = route
    asks: list[Ask] = []
    verifications: list[Ask] = []
    for interval in market.intervals:
        terms = provider.describe_history(market, interval)
        known = adopt_parsing(coverages.get(interval, _UNKNOWN), terms.parsing)
        earliest = find_earliest(terms, request)
        rest = _set_aside(known, find_left(difference, interval, known, earliest))
        asks += plan_interval(
            interval, market.calendar, request.window, request.now, rest, terms, earliest,
            request.asked_at,
        )  # fmt: skip
        clock = (request.now, known, terms, earliest)
        verifications += plan_verification(interval, market.calendar, *clock)
    reloads = plan_reloads(route, coverages, request, difference)
    return MarketPlan(market, (*asks, *reloads), tuple(verifications))


def plan_reloads(
    route: Route, coverages: Coverages, request: Request, difference: Difference | None
) -> tuple[Ask, ...]:
    """Return the requests that read again what a difference released, whatever the look-back."""
    provider, market = route
    asks: list[Ask] = []
    for interval in market.intervals:
        known = coverages.get(interval, _UNKNOWN)
        terms = provider.describe_history(market, interval)
        left = find_left(difference, interval, known, find_earliest(terms, request))
        clock = (request.now, known, terms, request.asked_at)
        asks += plan_reload(interval, market.calendar, left, *clock)
    return tuple(asks)


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
