"""The IO manager: drains what assets return into PostgreSQL, and hands them lazy readers back."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import dagster as dg
import pandas as pd
from sqlalchemy import Engine

from market_pipeline.domain.errors import NothingIngestedError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market
from market_pipeline.ingestion.collect import BarBatch, BarStream, Route, SnapshotBatch
from market_pipeline.ingestion.request import BASE_MARGIN, Request
from market_pipeline.ingestion.write import (
    Run,
    mark_failed,
    register_markets,
    write_bar_batch,
    write_markets,
    write_rows,
)
from market_pipeline.orchestration.resources import (
    Database,
    IngestionRequest,
    Providers,
    describe_run,
)
from market_pipeline.storage.queries import read_final_bars, read_markets
from market_pipeline.storage.tables import metadata as tables
from market_pipeline.storage.upsert import WriteCounts


@dataclass(frozen=True, slots=True)
class MarketReader:
    """A lazy view of the stored markets and bars a run is about."""

    engine: Engine
    request: Request
    routes: "list[Route]"

    def read_markets(self) -> pd.DataFrame:
        """Return market_id, provider, symbol, quote and calendar of the run's markets."""
        with self.engine.begin() as connection:
            listed = [market for _, market in self.routes]
            register_markets(connection, listed, self.request.is_default_routing)
            return read_markets(connection, [(market.provider, market.symbol) for market in listed])

    def read_final_bars(self, interval: Interval, days: int) -> pd.DataFrame:
        """Return final bars closed by the run's clock, and some more for the base close."""
        start = self.request.now - timedelta(days=days + 1) - 2 * BASE_MARGIN
        market_ids = self.read_markets()["market_id"].tolist()
        with self.engine.connect() as connection:
            return read_final_bars(connection, market_ids, interval, start, self.request.now)


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Priced markets with their statistics: the rows, and who gave no price."""

    rows: pd.DataFrame
    markets: list[Market]
    batch: SnapshotBatch


@dataclass
class _Tally:
    """What a drained stream amounted to."""

    counts: WriteCounts = field(default_factory=WriteCounts)
    outcomes: Counter[str] = field(default_factory=Counter)
    lines: list[dict[str, Any]] = field(default_factory=list)

    def add(self, batch: BarBatch, counts: WriteCounts) -> None:
        self.counts += counts
        self.outcomes[batch.outcome] += 1
        self.lines.append(
            {
                "market": batch.market.symbol,
                "provider": batch.market.provider,
                "received": batch.received,
                "rejected": len(batch.judged.rejected),
                "inserted": counts.inserted,
                "updated": counts.updated,
                "unchanged": counts.unchanged,
                "outcome": batch.outcome,
                "reason": batch.reason or "",
            }
        )


class PostgresIOManager(dg.ConfigurableIOManager):
    """Upserts what an asset returns into the table of the same name, one transaction a batch."""

    database: dg.ResourceDependency[Database]
    request: dg.ResourceDependency[IngestionRequest]
    providers: dg.ResourceDependency[Providers]

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Write and report inserted / updated / unchanged as metadata."""
        run = describe_run(context, self.request)
        if isinstance(obj, BarStream):
            self._drain(context, run, obj)
        elif isinstance(obj, list):
            _report(context, write_markets(self.database.engine, run, obj))
        elif isinstance(obj, Snapshots):
            outcome = "partial" if obj.batch.failures else "ok"
            self._write(context, run, obj.rows, outcome)
        elif isinstance(obj, pd.DataFrame):
            self._write(context, run, obj, "ok")
        else:
            raise TypeError(
                f"cannot store a {type(obj).__name__}: expected a frame or a batch stream"
            )

    def load_input(self, context: dg.InputContext) -> MarketReader:
        """Return a reader bounded to the run's markets and clock."""
        request = describe_run(context, self.request).request
        return MarketReader(self.database.engine, request, list(self.providers.route(request)))

    def _drain(self, context: dg.OutputContext, run: Run, stream: BarStream) -> None:
        tally = _Tally()
        for batch in stream:
            counts = write_bar_batch(self.database.engine, run, batch)
            tally.add(batch, counts)
            context.log.info(_describe(batch, counts))
        _report(context, tally.counts)
        context.add_output_metadata({"markets": _build_table(tally.lines)})
        if set(tally.outcomes) == {"failed"}:
            mark_failed(self.database.engine, run)
            reasons = "; ".join(f"{line['market']}: {line['reason']}" for line in tally.lines[:20])
            raise NothingIngestedError(f"no market gave a usable bar. {reasons}")

    def _write(self, context: dg.OutputContext, run: Run, rows: pd.DataFrame, outcome: str) -> None:
        table = tables.tables[f"{tables.schema}.{find_table_name(context.asset_key)}"]
        counts = write_rows(self.database.engine, run, table, rows, outcome)
        _report(context, counts)
        context.add_output_metadata({"preview": _build_table(_preview(rows))})


def _describe(batch: BarBatch, counts: WriteCounts) -> str:
    written = f"{counts.inserted} inserted, {counts.updated} updated, {counts.unchanged} unchanged"
    return f"{batch.market.symbol}: {written}{'; ' + batch.reason if batch.reason else ''}"


def find_table_name(key: dg.AssetKey) -> str:
    """Return the table of an asset: assets are named in the plural."""
    return key.path[-1].removesuffix("s")


def _report(context: dg.OutputContext, counts: WriteCounts) -> None:
    context.add_output_metadata(
        {
            "rows_inserted": counts.inserted,
            "rows_updated": counts.updated,
            "rows_unchanged": counts.unchanged,
            "dagster/row_count": counts.written + counts.unchanged,
        }
    )


def _preview(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): _show(value) for name, value in row.items()}
        for row in rows.head(12).to_dict("records")
    ]


def _show(value: Any) -> Any:
    if isinstance(value, float):
        return None if pd.isna(value) else round(value, 6)
    return None if pd.isna(value) else (value if isinstance(value, int) else str(value))


def _build_table(lines: list[dict[str, Any]]) -> dg.TableMetadataValue | dg.TextMetadataValue:
    if not lines:
        return dg.MetadataValue.text("no rows")
    return dg.MetadataValue.table([dg.TableRecord(line) for line in lines])
