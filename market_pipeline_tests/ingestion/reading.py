"""The mock read by one version of a parser or another, and what that leaves in the database."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pandas as pd
from sqlalchemy import Engine, text

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import HistoryTerms, Market, Window
from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.mock import MockProvider
from market_pipeline.storage.coverage.ledger import read_coverage

NOON = datetime(2024, 3, 15, 12, tzinfo=UTC)
DAYS = 12
PRICES = ["open", "high", "low", "close"]


class Reader(MockProvider):
    """The mock, read by a version of choice: each version gives other digits."""

    def __init__(
        self, parsing: int, faults: str = "", page: timedelta | None = None,
        reaches_back: timedelta | None = None,
    ) -> None:  # fmt: skip
        super().__init__({"MOCK_FAULTS": faults})
        self.parsing, self.page, self.reaches_back = parsing, page, reaches_back
        self.asked: list[tuple[Interval, Window]] = []

    def describe_history(self, market: Market, interval: Interval) -> HistoryTerms:
        """Return the mock's terms, with the version."""
        page = self.page or super().describe_history(market, interval).page
        return HistoryTerms(page, reaches_back=self.reaches_back, parsing=self.parsing)

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> pd.DataFrame:
        """Return the mock's bars, scaled by the version."""
        self.asked.append((interval, window))
        bars = super().fetch_bars(market, interval, window, now)
        return bars.assign(**{name: bars[name] * (1 + self.parsing / 250) for name in PRICES})


def run(engine: Engine, provider: MockProvider, now: datetime, symbol: str = "BTC-USD") -> UUID:
    """Ingest one market as a run of its own."""
    market = provider.find_market(symbol)
    assert market is not None
    request = build_request(datetime.now(UTC), [symbol], "mock", DAYS, now.isoformat())
    done = Run(uuid4(), "manual", now, request)
    for _ in BarStream(engine, done, [(provider, market)]):
        pass
    return done.run_id


def read(engine: Engine, query: str, **values: object) -> list[dict[str, Any]]:
    """Return a query's rows."""
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(query), values).mappings()]


def read_finals(engine: Engine) -> set[tuple[Any, ...]]:
    """Return every final bar that was fetched."""
    rows = read(
        engine,
        """SELECT interval, open_time, open, high, low, close FROM market_data.market_aggregate
            WHERE is_final AND interval <> '1w'""",
    )
    return {tuple(row.values()) for row in rows}


def count(engine: Engine, table: str) -> int:
    """Return how many rows a table has."""
    return int(read(engine, f"SELECT count(*) AS n FROM market_data.{table}")[0]["n"])


def read_older(engine: Engine) -> dict[Interval, Sequence[Window]]:
    """Return what version 1 has read."""
    with engine.connect() as connection:
        found = read_coverage(connection, [1])
    return {key[1]: known.older_parsings.get(1, ()) for key, known in found.items()}
