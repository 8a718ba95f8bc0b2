"""The IO manager: writes the output of assets to PostgreSQL, and gives assets lazy readers.

Not here: the transactions (``ingestion.commit``), the metadata for the UI (``report``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import dagster as dg
import pandas as pd
from pydantic import PrivateAttr
from sqlalchemy import Connection, Engine, Table

from market_pipeline.ingestion.commit import write_markets, write_rows
from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import Route
from market_pipeline.ingestion.run_alerts import report_prices
from market_pipeline.ingestion.snapshots import SnapshotBatch
from market_pipeline.observability.tracing import span
from market_pipeline.orchestration.causes import told_plainly
from market_pipeline.orchestration.computing import Computed
from market_pipeline.orchestration.draining import drain
from market_pipeline.orchestration.market_reader import MarketReader
from market_pipeline.orchestration.plots import WriteContext, draw_coverage_map, draw_picture
from market_pipeline.orchestration.report import (
    MAX_LINES,
    MaterializationSummary,
    build_market_lines,
    build_numbers,
    build_picture,
    build_row_lines,
    build_table,
    describe_relation,
    repeat_description,
)
from market_pipeline.orchestration.resources import (
    Database,
    IngestionRequest,
    Providers,
    describe_run,
    find_routes,
)
from market_pipeline.storage.markets.registration import register_markets
from market_pipeline.storage.statistics.computed_inputs import write_fingerprints
from market_pipeline.storage.tables import SCHEMA, market_aggregate
from market_pipeline.storage.tables import metadata as tables


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Priced markets with their statistics: the rows, and who gave no price."""

    rows: pd.DataFrame
    batch: SnapshotBatch


class PostgresIOManager(dg.ConfigurableIOManager):
    """Upserts what an asset returns into the table of the same name, one transaction a batch."""

    database: dg.ResourceDependency[Database]
    request: dg.ResourceDependency[IngestionRequest]
    providers: dg.ResourceDependency[Providers]
    _readers: dict[UUID, MarketReader] = PrivateAttr(default_factory=dict)

    @told_plainly()
    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Write, then report what the database did as metadata."""
        run, key = describe_run(context, self.request), dg.AssetKey(context.step_key)
        table = find_table(key)
        written = self._write(context, run, table, obj)
        metadata = {
            **build_numbers(written),
            **describe_relation(self.database.engine, table),
            # The UI reads a table's lineage from its newest materialisation alone.
            **repeat_description(context.definition_metadata),
            **self._illustrate(run, table, written),
        }
        if context.has_asset_key:
            context.add_output_metadata(metadata)
        else:  # Of an op, named like the asset that it adds to.
            context.log_event(dg.AssetMaterialization(key, metadata=metadata))

    @told_plainly()
    def load_input(self, context: dg.InputContext) -> MarketReader:
        """Return a reader bounded to the run's markets and clock."""
        return self._read_for(describe_run(context, self.request))

    def _read_for(self, run: Run) -> MarketReader:
        if run.run_id not in self._readers:
            routes = find_routes(self.providers, self.database, run)
            # So that any asset can be materialised first.
            _register(self.database.engine, run, routes)
            self._readers[run.run_id] = MarketReader(self.database.engine, run.request, routes)
        return self._readers[run.run_id]

    def _write(
        self, context: dg.OutputContext, run: Run, table: Table, output: object
    ) -> MaterializationSummary:
        engine = self.database.engine
        if isinstance(output, BarStream):
            return drain(context, output)
        if isinstance(output, list):
            with span("upsert", table=table.name) as handle:
                counts = write_markets(engine, run, output)
                handle.set_attributes(**counts.describe())
            return MaterializationSummary(
                counts, build_market_lines(output), {"run_markets": len(output)}
            )
        if isinstance(output, Snapshots):
            failures = output.batch.failures
            _warn(context, failures)
            routes = self._read_for(run).routes

            def tell(connection: Connection) -> None:
                report_prices(connection, run.run_id, routes, failures)

            return self._write_rows(run, table, output.rows, len(failures), tell)
        if isinstance(output, Computed):
            return self._write_computed(context, run, table, output)
        raise TypeError(f"cannot store a {type(output).__name__}: expected rows or a stream")

    def _write_computed(
        self, context: dg.OutputContext, run: Run, table: Table, output: Computed
    ) -> MaterializationSummary:
        """Write what was computed, and in the same transaction what it was computed from."""
        if output.note:
            context.log.info("%s: %s", table.name, output.note)

        def tell(connection: Connection) -> None:
            write_fingerprints(connection, table.name, output.fingerprints, run.run_id)

        written = self._write_rows(run, table, output.rows, tell=tell)
        return replace(written, note=output.note)

    def _write_rows(
        self,
        run: Run,
        table: Table,
        rows: pd.DataFrame,
        short: int = 0,
        tell: Callable[[Connection], None] | None = None,
    ) -> MaterializationSummary:
        outcome = "partial" if short else "ok"
        with span("upsert", table=table.name) as trace:
            counts = write_rows(self.database.engine, run, table, rows, outcome, tell)
            trace.set_attributes(**counts.describe())
        markets = self._read_for(run).markets
        lines = build_row_lines(
            rows, dict(zip(markets["market_id"], markets["symbol"], strict=True))
        )
        return MaterializationSummary(
            counts, lines, {"run_markets": len(markets), "markets_short": short}, rows
        )

    def _illustrate(
        self, run: Run, table: Table, written: MaterializationSummary
    ) -> dict[str, Any]:
        """Return what is worth a look.

        Events are kept for ever: a run without news, four an hour, adds no table and no picture.
        """
        shown: dict[str, Any] = {"not_computed": written.note} if written.note else {}
        if written.is_news and written.lines:
            shown["rows"] = build_table(written.lines)
        if written.counts.written:
            source = WriteContext(run.run_id, self._read_for(run), written.rows)
            shown |= _draw_pictures(table, source, f"{table.name} on {run.request.now:%Y-%m-%d}")
        return shown


def _draw_pictures(table: Table, source: WriteContext, title: str) -> dict[str, Any]:
    if (png := draw_picture(table.name, source)) is None:
        return {}
    coverage = draw_coverage_map(source) if table is market_aggregate else None
    drawn = {"picture": build_picture(png, title)}
    return drawn | ({"coverage": build_picture(coverage, "coverage")} if coverage else {})


def find_table(key: dg.AssetKey) -> Table:
    """Return the table of an asset: assets are named like their tables, in the plural."""
    return tables.tables[f"{SCHEMA}.{key.path[-1].removesuffix('s')}"]


def _register(engine: Engine, run: Run, routes: Sequence[Route]) -> None:
    """Store those of a run's markets that no run has stored yet."""
    listed = [market for _, market in routes]
    with engine.begin() as connection:
        register_markets(connection, listed, run.request.is_default_routing)


def _warn(context: dg.OutputContext, failures: Mapping[str, str]) -> None:
    for symbol, reason in list(failures.items())[:MAX_LINES]:
        context.log.warning("%s: no price: %s", symbol, reason)
