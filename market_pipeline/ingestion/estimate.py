"""The cost of a request for each provider, estimated before any call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import isinf
from typing import Any

from sqlalchemy import Connection

from market_pipeline.domain.budgets import BudgetLimit
from market_pipeline.domain.completeness import name_backfill
from market_pipeline.domain.coverage import BEGINNING, Coverage
from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.ranges import clip_windows
from market_pipeline.domain.records import Market, Window
from market_pipeline.ingestion.plan import MarketPlan, plan_market
from market_pipeline.ingestion.request import Request, Route, build_request, filter_active
from market_pipeline.providers.registry import load_provider, route_served
from market_pipeline.storage.bars.events import read_differences
from market_pipeline.storage.coverage.ledger import read_coverage
from market_pipeline.storage.markets.lookup import read_every_market, read_markets
from market_pipeline.storage.runs.budget import read_budget_limits


@dataclass(frozen=True, slots=True)
class ProviderEstimate:
    """The requests of one provider.

    Attributes:
        provider: Its name. plans: What is needed of each market. limit: How often it may be asked.
    """

    provider: str
    plans: tuple[MarketPlan, ...]
    limit: BudgetLimit

    @property
    def calls(self) -> int:
        """How many requests are needed."""
        return sum(len(plan.needed) for plan in self.plans)

    @property
    def bars(self) -> int:
        """How many bars the calendar expects in them."""
        return sum(plan.bars for plan in self.plans)

    @property
    def day_ratio(self) -> float | None:
        """Calls as a share of a day's; None: the provider allows any number."""
        allowance = self.limit.calls_a_day
        return None if isinf(allowance) else self.calls / allowance

    def describe(self) -> dict[str, Any]:
        """Return calls, bars, minutes at the provider's rate, and the share of a day's calls."""
        rate, share = self.limit.calls_per_minute, self.day_ratio
        return {
            "provider": self.provider,
            "calls": self.calls,
            "bars": self.bars,
            "minutes": None if rate is None else round(self.calls / rate, 1),
            "share of a day": None if share is None else f"{share:.1%}",
        }

    def describe_cuts(self) -> list[str]:
        """Return what of the window is not asked for, as a market's calendar does not know it."""
        return [f"{plan.market.symbol}: {plan.cut}" for plan in self.plans if plan.cut]

    def describe_markets(self) -> list[dict[str, Any]]:
        """Return one row for each market and interval with something to ask."""
        return [
            {
                "symbol": plan.market.symbol,
                "provider": self.provider,
                "interval": interval.value,
                "calls": len(requests),
                "bars": sum(request.bars for request in requests),
                "from": min(request.window.start for request in requests),
                "to": max(request.window.end for request in requests),
                "purpose": ", ".join(dict.fromkeys(request.purpose for request in requests)),
            }
            for plan in self.plans
            for interval in plan.market.intervals
            if (requests := [request for request in plan.needed if request.interval is interval])
        ]


def estimate_request(
    connection: Connection, routes: Sequence[Route], request: Request, environ: Mapping[str, str]
) -> list[ProviderEstimate]:
    """Return what a request would ask of each provider; reads the ledger and asks nobody.

    Args:
        connection: On the market tables.
        routes: Provider and market of each symbol.
        request: What is wanted.
        environ: Where limits are set.
    """
    limits = read_budget_limits((provider for provider, _ in routes), environ)
    plans = plan_markets(connection, routes, request)
    return [
        ProviderEstimate(
            name,
            tuple(plan for plan in plans if plan.market.provider == name),
            limits[name],
        )
        for name in dict.fromkeys(provider.name for provider, _ in routes)
    ]


def estimate_run(
    connection: Connection, request: Request, environ: Mapping[str, str]
) -> tuple[list[ProviderEstimate], Mapping[str, str]]:
    """Return what a run would ask of each provider, and why symbols are unserved.

    Raises:
        MarketNotServedError: No provider serves any of the symbols.
        NothingIngestedError: Every market is deactivated.
    """
    routing = route_served(request.symbols, request.providers, environ)
    active = filter_active(connection, routing.routes)
    return estimate_request(connection, active, request, environ), routing.unserved


def plan_markets(
    connection: Connection, routes: Sequence[Route], request: Request
) -> list[MarketPlan]:
    """Return the plan of every market, from one reading of the ledger."""
    known = read_markets(connection, [(market.provider, market.symbol) for _, market in routes])
    keys = zip(known["provider"], known["symbol"], known["market_id"], strict=True)
    ids = {(provider, symbol): int(key) for provider, symbol, key in keys}
    coverages: dict[int, dict[Any, Any]] = {}
    for (market_id, interval), coverage in read_coverage(connection, list(ids.values())).items():
        coverages.setdefault(market_id, {})[interval] = coverage
    differences = read_differences(connection, list(ids.values()))
    keyed = [(route, ids.get((route[1].provider, route[1].symbol), -1)) for route in routes]
    return [
        plan_market(route, coverages.get(key, {}), request, differences.get(key))
        for route, key in keyed
    ]


@dataclass(frozen=True, slots=True)
class Backfill:
    """What brings time that no run asks for by itself.

    Attributes:
        market: Whose. window: What nobody asked for, from the first gap to the last (UTC).
        estimate: What it costs; None: the market's provider cannot be used here.
    """

    market: Market
    window: Window
    estimate: ProviderEstimate | None

    @property
    def command(self) -> str:
        """The command to type."""
        return name_backfill(self.market, self.window)

    def describe(self) -> dict[str, Any]:
        """Return the command with its price: calls, and minutes at the provider's rate."""
        price = {} if self.estimate is None else self.estimate.describe()
        return {
            "command": self.command,
            "calls": price.get("calls"),
            "bars": price.get("bars"),
            "minutes": price.get("minutes"),
        }


def price_backfills(
    connection: Connection,
    gaps: Mapping[tuple[int, Interval], Sequence[Window]],
    request: Request,
    environ: Mapping[str, str],
) -> list[Backfill]:
    """Return what fills the gaps that runs leave, one command a market, and its price.

    Args:
        connection: On the market tables.
        gaps: What was never asked for, by market and interval.
        request: What a run is asked that is given no options.
        environ: Where providers and limits are set.
    """
    coverages = read_coverage(connection, sorted({market_id for market_id, _ in gaps}))
    priced = []
    for stored in read_every_market(connection):
        spans = [
            span for key, found in gaps.items() if key[0] == stored.market_id for span in found
        ]
        left = _leave_to_runs(stored.record, spans, request)
        if left:
            window = Window(min(s.start for s in left), max(s.end for s in left))
            known = {key[1]: one for key, one in coverages.items() if key[0] == stored.market_id}
            estimate = _estimate_span(stored.record, known, window, request.asked_at, environ)
            priced.append(Backfill(stored.record, window, estimate))
    return priced


def _leave_to_runs(market: Market, spans: Sequence[Window], request: Request) -> list[Window]:
    """Return what of some gaps lies before the reach of runs, all of it where none is made."""
    is_ingested = market.symbol in request.symbols and market.provider in request.providers
    reached = request.filled_from if is_ingested else None
    return clip_windows(spans, Window(BEGINNING, reached or request.now))


def _estimate_span(
    market: Market,
    known: Mapping[Interval, Coverage],
    window: Window,
    now: datetime,
    environ: Mapping[str, str],
) -> ProviderEstimate | None:
    start, end = window.start.isoformat(), window.end.isoformat()
    request = build_request(
        now, [market.symbol], market.provider, history_from=start, history_to=end
    )
    try:
        provider = load_provider(market.provider, environ)
        plan = plan_market((provider, market), known, request)
    except SettingError:
        return None
    limit = read_budget_limits([provider], environ)[provider.name]
    return ProviderEstimate(provider.name, (replace(plan, retries=()),), limit)
