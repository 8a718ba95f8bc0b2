"""What a run would ask for, market by market; the same plan is shown and carried out."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.parsing import adopt_parsing
from market_pipeline.domain.planning import RELOAD, Ask, plan_interval, plan_verification
from market_pipeline.domain.records import HistoryTerms, Market, Window
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


def plan_market(route: Route, coverages: Coverages, request: Request) -> MarketPlan:
    """Return what a request still needs of a market."""
    provider, market = route
    asks: list[Ask] = []
    verifications: list[Ask] = []
    for interval in market.intervals:
        terms = provider.describe_history(market, interval)
        known = adopt_parsing(coverages.get(interval, _UNKNOWN), terms.parsing)
        clock = (request.now, known, terms, _find_earliest(terms, request))
        asks += plan_interval(
            interval, market.calendar, request.window, *clock, asked_at=request.asked_at
        )
        verifications += plan_verification(interval, market.calendar, *clock)
    return MarketPlan(market, tuple(asks), tuple(verifications))


def plan_reload(route: Route, coverages: Coverages, request: Request) -> tuple[Ask, ...]:
    """Return the requests that read a whole market again: from its first bar to now."""
    provider, market = route
    asks: list[Ask] = []
    for interval in market.intervals:
        first = coverages.get(interval, _UNKNOWN).first_bar_at or request.window.start
        wanted = Window(min(first, request.window.start), request.now)
        terms = provider.describe_history(market, interval)
        limits = (request.now, _UNKNOWN, terms, _find_earliest(terms, request))
        asks += plan_interval(interval, market.calendar, wanted, *limits)
    return tuple(Ask(ask.interval, ask.window, RELOAD, ask.bars) for ask in asks)


def _find_earliest(terms: HistoryTerms, request: Request) -> datetime | None:
    return None if terms.reaches_back is None else request.asked_at - terms.reaches_back
