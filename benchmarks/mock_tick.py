"""What the mock provider itself costs in a tick: a thousand markets, three new bars and a price."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from statistics import median

from benchmarks.bench import Bench, Measurement
from benchmarks.figures import Figure
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window
from market_pipeline.providers.mock import MockProvider

MARKETS = 1_000
_NAME = "mock_ms_per_market"
_NOW = datetime(2026, 3, 2, 15, 7, tzinfo=UTC)
_OVERLAPS = {Interval.HOUR: timedelta(hours=6), Interval.DAY: timedelta(days=4)}
"""What a run asks for when three bars are new: those, and a few that it has."""


def measure_mock(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield the processor time for each market; no walk is known from a tick before."""
    del wanted
    taken = []
    for number in range(1, bench.rounds + 1):
        tick = _Tick(seed=number)
        began = time.process_time()
        tick.run()
        taken.append((time.process_time() - began) * 1e3 / MARKETS)
        bench.report(f"round {number} of {bench.rounds}: mock {taken[-1]:.3g} ms a market")
    detail = {"ms": [round(one, 3) for one in taken], "markets": MARKETS}
    yield Figure(_NAME, round(median(taken), 3), "ms", len(taken), detail)


class _Tick:
    """A tick of a provider with a seed of its own, which has no walk in memory yet."""

    def __init__(self, seed: int) -> None:
        self._provider = MockProvider({"MOCK_SEED": str(seed)})
        found = (self._provider.find_market(f"M{number:04}-USD") for number in range(MARKETS))
        self._markets: list[Market] = [market for market in found if market is not None]

    def run(self) -> None:
        """Ask for the newest bars of each market, then for all prices at once."""
        for market in self._markets:
            for interval, span in _OVERLAPS.items():
                self._provider.fetch_bars(market, interval, Window(_NOW - span, _NOW), _NOW)
        self._provider.fetch_snapshots(self._markets, _NOW)


MEASUREMENT = Measurement("the mock provider in a tick", (_NAME,), measure_mock)
