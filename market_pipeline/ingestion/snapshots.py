"""Live prices, one call a provider."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from market_pipeline.domain.errors import ProviderError
from market_pipeline.domain.records import Market, PriceSnapshot
from market_pipeline.ingestion.request import Request, Route
from market_pipeline.providers.base import Provider


@dataclass(frozen=True, slots=True)
class SnapshotBatch:
    """Live prices and the markets that gave none."""

    snapshots: list[PriceSnapshot] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def collect_snapshots(routes: Sequence[Route], request: Request) -> SnapshotBatch:
    """Fetch live prices, one call a provider; one observed after the run's clock is left out."""
    batch = SnapshotBatch()
    markets: dict[str, list[Market]] = {}
    for provider, market in routes:
        markets.setdefault(provider.name, []).append(market)
    for provider in {route[0].name: route[0] for route in routes}.values():
        _collect_provider_snapshots(provider, markets[provider.name], request, batch)
    return batch


def _collect_provider_snapshots(
    provider: Provider, markets: list[Market], request: Request, batch: SnapshotBatch
) -> None:
    try:
        received = provider.fetch_snapshots(markets, request.now)
    except ProviderError as error:
        batch.failures.update({market.symbol: str(error) for market in markets})
        return
    usable = [
        one for one in received if one.observed_at <= request.now and 0 < one.price < float("inf")
    ]
    batch.snapshots.extend({one.market: one for one in usable}.values())
    silent = {market.symbol for market in markets} - {one.market.symbol for one in usable}
    batch.failures.update(dict.fromkeys(silent, "no price at or before the run's clock"))
