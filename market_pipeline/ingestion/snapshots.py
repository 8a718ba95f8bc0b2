"""Live prices, one call for each provider, checked by the time of the request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from market_pipeline.domain.errors import ProviderError
from market_pipeline.domain.records import Market, PriceSnapshot
from market_pipeline.ingestion.request import Request, Route
from market_pipeline.providers.base import Provider

# How far a provider's clock may be ahead of ours.
ALLOWED_SKEW = timedelta(seconds=5)
_NONE_CAME = "the provider gave no price"
Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class SnapshotBatch:
    """Live prices and the markets that gave none."""

    snapshots: list[PriceSnapshot] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def _read_clock() -> datetime:
    return datetime.now(UTC)


def collect_snapshots(
    routes: Sequence[Route], request: Request, clock: Clock = _read_clock
) -> SnapshotBatch:
    """Fetch live prices, one call a provider; one from the future is left out, with the reason.

    Where a window end was given it is the present: a later price is from the future. Else the
    present is the moment at which the provider answers, and its clock may be 5 seconds ahead.

    Args:
        routes: Provider and market.
        request: What the run was asked.
        clock: Returns the wall clock (UTC).
    """
    batch = SnapshotBatch()
    markets: dict[str, list[Market]] = {}
    for provider, market in routes:
        markets.setdefault(provider.name, []).append(market)
    for provider in {route[0].name: route[0] for route in routes}.values():
        asked_at = clock() if request.is_live else request.now
        received = _fetch_from(provider, markets[provider.name], asked_at, batch)
        latest = clock() + ALLOWED_SKEW if request.is_live else request.now
        _take(received, latest, request, batch)
    return batch


def _fetch_from(
    provider: Provider, markets: list[Market], now: datetime, batch: SnapshotBatch
) -> list[PriceSnapshot]:
    """Return what a provider gives; the markets it gives nothing for are noted as failures."""
    try:
        received = provider.fetch_snapshots(markets, now)
    except ProviderError as error:
        reasons = {
            market.symbol: error.reasons.get(market.symbol, str(error)) for market in markets
        }
        batch.failures.update(reasons)
        return []
    silent = {market.symbol for market in markets} - {
        snapshot.market.symbol for snapshot in received
    }
    batch.failures.update(dict.fromkeys(sorted(silent), _NONE_CAME))
    return received


def _take(
    received: Sequence[PriceSnapshot], latest: datetime, request: Request, batch: SnapshotBatch
) -> None:
    """Keep the last usable price of each market; a market without one is a failure."""
    refused = {
        snapshot.market.symbol: _find_fault(snapshot, latest, request) for snapshot in received
    }
    usable = {
        snapshot.market: snapshot
        for snapshot in received
        if _find_fault(snapshot, latest, request) is None
    }
    batch.snapshots.extend(usable.values())
    kept = {market.symbol for market in usable}
    batch.failures.update(
        {symbol: why for symbol, why in refused.items() if why is not None and symbol not in kept}
    )


def _find_fault(snapshot: PriceSnapshot, latest: datetime, request: Request) -> str | None:
    """Return why a price cannot be stored; None: it can."""
    if not 0 < snapshot.price < float("inf"):
        return f"its price {snapshot.price:g} is not a positive number"
    if snapshot.observed_at <= latest:
        return None
    if not request.is_live:
        return (
            f"its price is of {snapshot.observed_at:%Y-%m-%d %H:%M:%S} UTC, after the window's end"
        )
    ahead = (snapshot.observed_at - latest + ALLOWED_SKEW).total_seconds()
    return f"its price is from {ahead:,.0f} s in the future: one of the clocks is wrong"
