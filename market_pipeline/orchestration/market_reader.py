"""What a downstream asset gets as its input: a lazy, bounded view of the stored markets and bars.

Not here: SQL (``storage.queries``), the write (``io_manager``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

import pandas as pd
from sqlalchemy import Engine

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.withholding import Flaw
from market_pipeline.ingestion.registration import register_markets
from market_pipeline.ingestion.request import BASE_MARGIN, Request, Route
from market_pipeline.storage.coverage import read_flaws
from market_pipeline.storage.queries import read_final_bars, read_markets


@dataclass(frozen=True)
class MarketReader:
    """The markets and bars that a run is about; nothing is read before it is asked for."""

    engine: Engine
    request: Request
    routes: list[Route]

    @cached_property
    def markets(self) -> pd.DataFrame:
        """The run's markets: market_id, provider, symbol, quote and calendar.

        Registers what no run has stored yet, so that any asset can be materialised first.
        """
        listed = [market for _, market in self.routes]
        with self.engine.begin() as connection:
            register_markets(connection, listed, self.request.is_default_routing)
            return read_markets(connection, [(one.provider, one.symbol) for one in listed])

    def read_final_bars(
        self, interval: Interval, days: int, market_ids: Sequence[int] | None = None
    ) -> pd.DataFrame:
        """Return final bars closed by the run's clock, and some more for the base close.

        Args:
            interval: The length of the bars.
            days: How far to look back.
            market_ids: Of these markets only; None: of all.
        """
        start = self.request.now - timedelta(days=days + 1) - 2 * BASE_MARGIN
        wanted = self.markets["market_id"].tolist() if market_ids is None else market_ids
        with self.engine.connect() as connection:
            return read_final_bars(connection, wanted, interval, start, self.request.now)

    def read_flaws(self, interval: Interval) -> list[Flaw]:
        """Return the unexplained holes and open events of the run's markets."""
        with self.engine.connect() as connection:
            return read_flaws(connection, self.markets["market_id"].tolist(), interval)
