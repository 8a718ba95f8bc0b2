"""A small installation: markets of the mock provider, ingested and computed at given clocks.

The real stream, transactions, assets and database, without Dagster around them: runs begin when the
test says so, by the wall clock as well, and can be cut off after any commit.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Engine, Table, text

from market_pipeline.domain.records import Market
from market_pipeline.ingestion.commit import write_markets, write_rows
from market_pipeline.ingestion.drive import BarStream, WaveLimits
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import Request, Route, build_request, filter_active
from market_pipeline.orchestration import assets
from market_pipeline.orchestration.market_reader import MarketReader
from market_pipeline.providers.mock import MockProvider
from market_pipeline.storage.statistics.computed_inputs import write_fingerprints
from market_pipeline.storage.tables import market_comparison, market_roi_statistic, market_snapshot

MARCH = datetime(2024, 3, 15, 12, tzinfo=UTC)


class Installation:
    """Markets, and a database that they are ingested into.

    Args:
        engine: The database.
        symbols: Of the markets; ``SPX@XLON`` is SPX with London's sessions.
    """

    def __init__(self, engine: Engine, symbols: Sequence[str]) -> None:
        self.engine = engine
        self._symbols = symbols

    def ingest(
        self,
        now: datetime,
        faults: str = "",
        days: int = 30,
        history_from: str = "",
        history_to: str = "",
        commits: int | None = None,
    ) -> UUID:
        """Run once, by the given clock.

        Args:
            now: The run's clock and the wall clock.
            faults: As MOCK_FAULTS.
            days: The look-back.
            history_from: With ``history_to``: fill this span instead.
            history_to: See ``history_from``.
            commits: Cut the run off after so many commits; None: it ends.
        """
        names = [symbol.partition("@")[0] for symbol in self._symbols]
        request = build_request(now, names, "mock", days, now.isoformat(), history_from, history_to)
        run = Run(uuid4(), "manual", now, request)
        with self.engine.connect() as connection:
            routes = filter_active(connection, self._route(faults))
        write_markets(self.engine, run, [market for _, market in routes])
        limits = WaveLimits() if commits is None else WaveLimits(markets=1)
        stream = iter(BarStream(self.engine, run, routes, limits))
        for _ in count() if commits is None else range(commits):
            if next(stream, None) is None:
                break
        else:
            stream.close()  # type: ignore[attr-defined]
            return run.run_id
        self._compute(run, request, routes)
        return run.run_id

    def _route(self, faults: str) -> list[Route]:
        provider = MockProvider({"MOCK_FAULTS": faults})
        return [(provider, _find_market(provider, symbol)) for symbol in self._symbols]

    def _compute(self, run: Run, request: Request, routes: list[Route]) -> None:
        reader = MarketReader(self.engine, request, routes)
        prices = _call(assets.market_snapshots, reader).value
        write_rows(self.engine, run, market_snapshot, prices.rows, "ok")
        self._keep(run, market_comparison, _call(assets.market_comparisons, reader))
        self._keep(run, market_roi_statistic, _call(assets.market_roi_statistics, reader))

    def _keep(self, run: Run, table: Table, computed: Any) -> None:
        def note(connection: Connection) -> None:
            write_fingerprints(connection, table.name, computed.fingerprints, run.run_id)

        write_rows(self.engine, run, table, computed.rows, "ok", note)

    def read(self, query: str, **values: object) -> list[dict[str, Any]]:
        """Return a query's rows."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(query), values).mappings()]

    def empty(self) -> None:
        """Forget everything."""
        tables = self.read(
            "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') AS names "
            "FROM pg_tables WHERE schemaname = 'market_data' AND tablename <> 'alembic_version'"
        )
        with self.engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {tables[0]['names']} CASCADE"))


def _call(asset: Any, reader: MarketReader) -> Any:
    """Return what an asset's body returns: an instance for each call would take a second."""
    return asset.op.compute_fn.decorated_fn(reader)


def _find_market(provider: MockProvider, symbol: str) -> Market:
    name, _, calendar = symbol.partition("@")
    market = provider.find_market(name)
    assert market is not None
    return replace(market, calendar=calendar) if calendar else market
