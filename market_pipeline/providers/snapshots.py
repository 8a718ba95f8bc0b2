"""Live prices of many markets: one request for each, or several in one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from market_pipeline.domain.errors import PermanentProviderError, ProviderError
from market_pipeline.domain.records import Market, PriceSnapshot

Item = TypeVar("Item")
Result = TypeVar("Result")
_REFUSED_STATUSES = frozenset({200, 400, 404})


def ask_each(
    markets: Sequence[Market], ask: Callable[[Market], list[PriceSnapshot]], workers: int = 1
) -> list[PriceSnapshot]:
    """Return the prices of markets, one request each; a market whose request fails has none.

    Args:
        markets: In the order in which their prices are wanted.
        ask: Returns a market's price; with several workers it must be safe to share.
        workers: Requests under way at once (FETCH_WORKERS); each passes the limiter in force.

    Raises:
        ProviderError: Every market failed; the last failure, with the reason of each.
    """
    snapshots: list[PriceSnapshot] = []
    failures: dict[str, ProviderError] = {}

    def attempt(market: Market) -> list[PriceSnapshot] | ProviderError:
        try:
            return ask(market)
        except ProviderError as error:
            return error

    for market, answer in zip(markets, map_at_once(attempt, markets, workers), strict=True):
        if isinstance(answer, ProviderError):
            failures[market.symbol] = answer
        else:
            snapshots += answer
    return _require_some(snapshots, failures)


def ask_together(
    markets: Sequence[Market],
    most: int,
    ask: Callable[[Sequence[Market]], list[PriceSnapshot]],
) -> list[PriceSnapshot]:
    """Return the prices of markets, so many in a request, on the terms of :func:`ask_each`.

    An exchange refuses a whole list for one bad name: such a list is asked again in halves.
    """
    snapshots: list[PriceSnapshot] = []
    failures: dict[str, ProviderError] = {}
    waiting = [markets[at : at + most] for at in range(0, len(markets), most)]
    while waiting:
        batch = waiting.pop(0)
        try:
            snapshots += ask(batch)
        except ProviderError as error:
            half, is_refused = len(batch) // 2, error.status in _REFUSED_STATUSES
            if half and is_refused and isinstance(error, PermanentProviderError):
                waiting[:0] = [batch[:half], batch[half:]]
            else:
                failures |= {market.symbol: error for market in batch}
    return _require_some(snapshots, failures)


def _require_some(
    snapshots: list[PriceSnapshot], failures: Mapping[str, ProviderError]
) -> list[PriceSnapshot]:
    """Return the prices, or raise the last failure where there are failures alone."""
    if failures and not snapshots:
        last = list(failures.values())[-1]
        last.reasons = {symbol: str(error) for symbol, error in failures.items()}
        raise last
    return snapshots


def map_at_once(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterable[Result]:
    """Return a function's results in order; threads call it in the caller's context."""
    if min(workers, len(items)) < 2:
        return map(function, items)
    contexts = [copy_context() for _ in items]
    with ThreadPoolExecutor(min(workers, len(items)), thread_name_prefix="fetch") as pool:
        return list(pool.map(lambda context, item: context.run(function, item), contexts, items))
