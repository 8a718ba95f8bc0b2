"""A small installation whose provider keeps what it served, and what of it must be stored."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pandas as pd
from sqlalchemy import Engine

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window
from market_pipeline.ingestion.request import Route
from market_pipeline.providers.mock import MockProvider
from market_pipeline.storage.markets.registration import ensure_markets
from market_pipeline_tests.faults.invariants import assert_invariants
from market_pipeline_tests.ingestion.installation import MARCH, Installation

MARKETS = ("BTC-USD", "SPX", "VOD@XLON")
STORED = """
    SELECT symbol, interval, open_time, open, high, low, close, is_final
    FROM market_data.market_aggregate JOIN market_data.market USING (market_id)
    WHERE source_kind IN ('traded', 'points') AND interval <> '1w'"""
Bar = tuple[Any, ...]


class Watched(MockProvider):
    """The mock, and every bar that it has served."""

    def __init__(self, faults: str = "") -> None:
        super().__init__({"MOCK_FAULTS": faults})
        self.served: set[Bar] = set()

    def fetch_bars(self, market: Market, interval: Interval, window: Window, now: datetime) -> Any:
        """Answer, and note it."""
        answer = super().fetch_bars(market, interval, window, now)
        frame = answer if isinstance(answer, pd.DataFrame) else answer.to_frame()
        columns = ["open_time", "open", "high", "low", "close"]
        rows = frame[frame["is_final"]][columns].itertuples(index=False)
        named = (market.symbol, interval.value)
        self.note({(*named, opened.to_pydatetime(), *prices) for opened, *prices in rows})
        return answer

    def note(self, bars: set[Bar]) -> None:
        """Keep the final bars of an answer."""
        self.served |= bars


class Disturbed(Installation):
    """An installation that is disturbed in a run, and then runs once undisturbed.

    Attributes:
        provider: Of all its runs, with what it served.
    """

    def __init__(self, engine: Engine, symbols: Sequence[str] = MARKETS) -> None:
        super().__init__(engine, symbols)
        self.provider = Watched()

    def _route(self, faults: str) -> list[Route]:
        provider = self.provider if not faults else Watched(faults)
        return [(provider, market) for _, market in super()._route(faults)]

    def prepare(self) -> None:
        """Register the markets, so that a run has nothing but their bars to write first."""
        markets = [market for _, market in self._route("")]
        ensure_markets(self.engine, markets, claim_primary=True)

    def recover(self, now: datetime = MARCH, days: int = 30) -> None:
        """Run once more, and make sure that everything is as it must be."""
        assert_invariants(self.engine)
        self.ingest(now, days=days)
        assert_invariants(self.engine, is_repaired=True)
        self.compare_with_served()

    def compare_with_served(self) -> None:
        """Make sure that every final bar that was served is stored, and no other."""
        stored = {tuple(row.values())[:-1] for row in self.read(STORED) if row["is_final"]}
        lost, invented = self.provider.served - stored, stored - self.provider.served
        assert not lost, f"{len(lost)} lost, such as {min(lost)}"
        assert not invented, f"{len(invented)} invented, such as {min(invented)}"


@contextmanager
def go_through(installation: Disturbed, engine: Engine) -> Iterator[None]:
    """Let runs use another engine until the block ends."""
    direct, installation.engine = installation.engine, engine
    try:
        yield
    finally:
        installation.engine = direct
