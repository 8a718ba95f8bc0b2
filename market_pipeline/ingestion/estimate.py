"""What a request would cost each provider, told before anybody is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any

from sqlalchemy import Connection

from market_pipeline.domain.budgets import BudgetLimit
from market_pipeline.ingestion.planning import MarketPlan, plan_market
from market_pipeline.ingestion.request import Request, Route
from market_pipeline.storage.budget import read_budget_limits
from market_pipeline.storage.coverage import read_coverage
from market_pipeline.storage.events import read_differences
from market_pipeline.storage.queries import read_markets


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
        return sum(len(plan.asks) for plan in self.plans)

    @property
    def bars(self) -> int:
        """How many bars the calendar expects in them."""
        return sum(plan.bars for plan in self.plans)

    def describe(self) -> dict[str, Any]:
        """Return calls, bars, minutes at the provider's rate, and the share of a day's calls."""
        rate, allowance = self.limit.calls_per_minute, self.limit.calls_a_day
        return {
            "provider": self.provider,
            "calls": self.calls,
            "bars": self.bars,
            "minutes": None if rate is None else round(self.calls / rate, 1),
            "share of a day": None if isinf(allowance) else f"{self.calls / allowance:.1%}",
        }

    def describe_markets(self) -> list[dict[str, Any]]:
        """Return one row for each market and interval with something to ask."""
        return [
            {
                "symbol": plan.market.symbol,
                "provider": self.provider,
                "interval": interval.value,
                "calls": len(asks),
                "bars": sum(ask.bars for ask in asks),
                "from": f"{asks[0].window.start:%Y-%m-%d %H:%M}",
                "to": f"{asks[-1].window.end:%Y-%m-%d %H:%M}",
                "purpose": ", ".join(dict.fromkeys(ask.purpose for ask in asks)),
            }
            for plan in self.plans
            for interval in plan.market.intervals
            if (asks := [ask for ask in plan.asks if ask.interval is interval])
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
