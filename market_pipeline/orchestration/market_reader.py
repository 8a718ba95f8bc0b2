"""The input of a downstream asset: a lazy, bounded view of the stored markets and bars.

Not here: SQL (``storage``), what is computed from it (``computing``), the write (``io_manager``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from sqlalchemy import Engine

from market_pipeline.domain.intervals import Interval
from market_pipeline.ingestion.request import Request, Route
from market_pipeline.storage.bars.final_bars import plan_market_spans, read_spans
from market_pipeline.storage.markets.lookup import read_markets


@dataclass(frozen=True)
class MarketReader:
    """The markets and bars that a run is about; nothing is read before it is asked for."""

    engine: Engine
    request: Request
    routes: list[Route]

    @cached_property
    def markets(self) -> pd.DataFrame:
        """The run's markets that are registered: market_id, provider, symbol, quote, calendar."""
        names = [(market.provider, market.symbol) for _, market in self.routes]
        with self.engine.connect() as connection:
            return read_markets(connection, names)

    @cached_property
    def calendars(self) -> dict[int, str]:
        """The calendar of each market."""
        return dict(zip(self.markets["market_id"], self.markets["calendar"], strict=True))

    def read_final_bars(
        self, interval: Interval, days: int, market_ids: Sequence[int]
    ) -> pd.DataFrame:
        """Return the final bars of each market, from its own last one back.

        Args:
            interval: The length of the bars.
            days: How far to look back, and some more for a base close.
            market_ids: Whose.
        """
        calendars = {market_id: self.calendars[market_id] for market_id in market_ids}
        with self.engine.connect() as connection:
            spans = plan_market_spans(connection, calendars, interval, days)
            return read_spans(connection, interval, spans)
