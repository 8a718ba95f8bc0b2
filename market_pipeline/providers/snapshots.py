"""Live prices of many markets: one request for each, or several in one."""

from collections.abc import Callable, Sequence

from market_pipeline.domain.errors import PermanentProviderError, ProviderError
from market_pipeline.domain.records import Market, PriceSnapshot

_REFUSED_STATUSES = frozenset({200, 400, 404})


def ask_each(
    markets: Sequence[Market], ask: Callable[[Market], list[PriceSnapshot]]
) -> list[PriceSnapshot]:
    """Return the prices of markets, one request each, on the terms of :func:`ask_together`."""
    return ask_together(markets, 1, lambda batch: ask(batch[0]))


def ask_together(
    markets: Sequence[Market],
    most: int,
    ask: Callable[[Sequence[Market]], list[PriceSnapshot]],
) -> list[PriceSnapshot]:
    """Return the prices of markets, so many in a request; a market whose request fails has none.

    An exchange refuses a whole list for one bad name: such a list is asked again in halves.

    Raises:
        ProviderError: Every market failed; the last failure, with the reason of each.
    """
    snapshots: list[PriceSnapshot] = []
    failures: dict[str, ProviderError] = {}
    waiting = [markets[at : at + most] for at in range(0, len(markets), most)]
    while waiting:
        batch = waiting.pop(0)
        try:
            snapshots += ask(batch)
        except ProviderError as error:
            half = len(batch) // 2
            if half and _is_refused(error):
                waiting[:0] = [batch[:half], batch[half:]]
            else:
                failures |= {market.symbol: error for market in batch}
    if failures and not snapshots:
        last = list(failures.values())[-1]
        last.reasons = {symbol: str(error) for symbol, error in failures.items()}
        raise last
    return snapshots


def _is_refused(error: ProviderError) -> bool:
    return isinstance(error, PermanentProviderError) and error.status in _REFUSED_STATUSES
