"""Live prices of a provider that takes one request for each market."""

from collections.abc import Callable, Sequence

from market_pipeline.domain.errors import ProviderError
from market_pipeline.domain.records import Market, PriceSnapshot


def ask_each(
    markets: Sequence[Market], ask: Callable[[Market], list[PriceSnapshot]]
) -> list[PriceSnapshot]:
    """Return the prices of markets, one request each; a market whose request fails has none.

    Raises:
        ProviderError: Every market failed; the last failure, with the reason of each.
    """
    snapshots: list[PriceSnapshot] = []
    failures: dict[str, ProviderError] = {}
    for market in markets:
        try:
            snapshots += ask(market)
        except ProviderError as error:
            failures[market.symbol] = error
    if failures and not snapshots:
        last = list(failures.values())[-1]
        last.reasons = {symbol: str(error) for symbol, error in failures.items()}
        raise last
    return snapshots
