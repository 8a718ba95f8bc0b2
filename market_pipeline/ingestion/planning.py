"""What a run would ask for, market by market; the same plan is shown and carried out."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from market_pipeline.domain.coverage import Coverage, wake_failures
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.planning import (
    RELOAD,
    Ask,
    plan_interval,
    plan_retries,
    plan_verification,
)
from market_pipeline.domain.records import HistoryTerms, Market, Window
from market_pipeline.domain.sessions import find_known_span
from market_pipeline.ingestion.request import BASE_MARGIN, Request, Route

Coverages = Mapping[Interval, Coverage]
_UNKNOWN = Coverage()


@dataclass(frozen=True, slots=True)
class MarketPlan:
    """The requests that make one market complete, the finest interval first.

    Attributes:
        market: Whose. asks: What is needed. retries: Holes outside the window, as far as the budget
            allows. verifications: What would be good to read again, as far as it allows.
        cut: Which part of the window its calendar does not know, in words; None: it knows all.
    """

    market: Market
    asks: tuple[Ask, ...]
    retries: tuple[Ask, ...]
    verifications: tuple[Ask, ...]
    cut: str | None = None

    @property
    def needed(self) -> tuple[Ask, ...]:
        """What brings bars that are missing."""
        return (*self.asks, *self.retries)

    @property
    def bars(self) -> int:
        """How many bars the calendar expects in what is needed."""
        return sum(ask.bars for ask in self.needed)


def plan_market(route: Route, coverages: Coverages, request: Request) -> MarketPlan:
    """Return what a request still needs of a market."""
    provider, market = route
    asks: list[Ask] = []
    retries: list[Ask] = []
    verifications: list[Ask] = []
    for interval in market.intervals:
        terms = provider.describe_history(market, interval)
        known = _wake(coverages.get(interval, _UNKNOWN), request)
        clock = (request.now, known, terms, find_earliest(terms, request))
        calendar, wall_clock = market.calendar, (request.asked_at, *clock[1:])
        asks += plan_interval(
            interval, calendar, request.window, *clock, request.asked_at, request.filled_from
        )
        retries += plan_retries(interval, calendar, request.window, *wall_clock)
        verifications += plan_verification(interval, calendar, *clock)
    cut = describe_cut(market, request.window)
    return MarketPlan(market, tuple(asks), tuple(retries), tuple(verifications), cut)


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


def plan_reload(route: Route, coverages: Coverages, request: Request) -> tuple[Ask, ...]:
    """Return the requests that read a whole market again: from its first bar to now."""
    provider, market = route
    asks: list[Ask] = []
    for interval in market.intervals:
        first = coverages.get(interval, _UNKNOWN).first_bar_at or request.window.start
        wanted = Window(min(first, request.window.start), request.now)
        terms = provider.describe_history(market, interval)
        limits = (request.now, _UNKNOWN, terms, find_earliest(terms, request))
        asks += plan_interval(interval, market.calendar, wanted, *limits)
    return tuple(Ask(ask.interval, ask.window, RELOAD, ask.bars) for ask in asks)


def find_earliest(terms: HistoryTerms, request: Request) -> datetime | None:
    """Return before when a provider has nothing (UTC); None: no limit known."""
    return None if terms.reaches_back is None else request.asked_at - terms.reaches_back
