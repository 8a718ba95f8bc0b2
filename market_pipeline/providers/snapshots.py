"""Live prices of a provider that takes one request for each market."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from market_pipeline.domain.errors import ProviderError
from market_pipeline.domain.records import Market, PriceSnapshot

Item = TypeVar("Item")
Result = TypeVar("Result")


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
