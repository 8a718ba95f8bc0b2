"""The transactions of a run: a batch with its weeks and its receipt lands whole or not at all."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pandas as pd
from sqlalchemy import Connection, Engine, Table, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from market_pipeline.domain.bars import build_weekly_bars
from market_pipeline.domain.intervals import Interval, floor_to_monday
from market_pipeline.domain.records import Market
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.ingestion.collect import BarBatch
from market_pipeline.ingestion.request import Request
from market_pipeline.storage.queries import read_daily_bars, read_markets
from market_pipeline.storage.staging import stage_frame
from market_pipeline.storage.tables import (
    ingestion_run,
    ingestion_run_market,
    ingestion_run_table,
    market,
    market_aggregate,
)
from market_pipeline.storage.upsert import (
    MERGE_LOCK,
    WriteCounts,
    merge_staged,
    take_dataset_version,
    upsert_frame,
)

_RANK = {"ok": 0, "partial": 1, "failed": 2}
_MARKET_COLUMNS = (
    "provider", "provider_market_id", "symbol", "name", "base", "quote", "venue", "calendar",
    "price_basis",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """The run on whose behalf rows are written."""

    run_id: UUID
    trigger: str
    started_at: datetime
    request: Request


def begin_receipt(connection: Connection, run: Run) -> None:
    """Make sure the run's receipt exists."""
    request = {
        "symbols": run.request.symbols,
        "lookback_days": run.request.lookback_days,
        "window_start": run.request.window.start.isoformat(),
        "window_end": run.request.window.end.isoformat(),
    }
    row = {
        "run_id": run.run_id,
        "trigger": run.trigger,
        "provider": ",".join(run.request.providers),
        "request": json.loads(json.dumps(request)),
        "started_at": run.started_at,
    }
    connection.execute(insert(ingestion_run).values(row).on_conflict_do_nothing())


def register_markets(
    connection: Connection, markets: Sequence[Market], claim_primary: bool
) -> WriteCounts:
    """Insert or update market rows; a symbol's primary is the configured provider's.

    Args:
        connection: In a transaction.
        markets: As routed.
        claim_primary: Take the place of another provider's primary market; without it only a
            vacant place is taken.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MERGE_LOCK})
    counts = WriteCounts()
    for one in markets:
        counts += _register_market(connection, one)
        _settle_primary(connection, one, claim_primary)
    return counts


def _register_market(connection: Connection, one: Market) -> WriteCounts:
    row = {name: getattr(one, name) for name in _MARKET_COLUMNS}
    row["intervals"] = [interval.value for interval in one.intervals]
    known = (
        connection.execute(
            select(market).where(
                market.c.provider == one.provider, market.c.symbol == one.symbol, market.c.is_active
            )
        )
        .mappings()
        .first()
    )
    if known is None:
        connection.execute(market.insert().values(row))
        return WriteCounts(inserted=1)
    changed = {name: value for name, value in row.items() if known[name] != value}
    if not changed:
        return WriteCounts(unchanged=1)
    connection.execute(
        update(market).where(market.c.market_id == known["market_id"]).values(changed)
    )
    return WriteCounts(updated=1)


def _settle_primary(connection: Connection, one: Market, claim: bool) -> None:
    primary = connection.execute(
        select(market.c.provider).where(market.c.symbol == one.symbol, market.c.is_primary)
    ).scalar()
    if primary == one.provider or (primary is not None and not claim):
        return
    same_symbol = update(market).where(market.c.symbol == one.symbol)
    connection.execute(same_symbol.where(market.c.is_primary).values(is_primary=False))
    connection.execute(
        same_symbol.where(market.c.provider == one.provider, market.c.is_active).values(
            is_primary=True
        )
    )


def write_bar_batch(engine: Engine, run: Run, batch: BarBatch) -> WriteCounts:
    """Commit one market's bars, the weeks they touch, and its part of the receipt."""
    with engine.begin() as connection:
        begin_receipt(connection, run)
        register_markets(connection, [batch.market], run.request.is_default_routing)
        market_id = find_market_id(connection, batch.market)
        counts = _write_bars(connection, run, batch.market, market_id, batch.judged.good)
        _write_market_receipt(connection, run, market_id, batch, counts)
        landed = "ok" if batch.outcome == "ok" else "partial"
        add_table_receipt(connection, run, market_aggregate.name, counts, landed)
    return counts


def find_market_id(connection: Connection, one: Market) -> int:
    """Return the key of an active market."""
    return int(read_markets(connection, [(one.provider, one.symbol)])["market_id"].iloc[0])


def _write_bars(
    connection: Connection, run: Run, one: Market, market_id: int, bars: pd.DataFrame
) -> WriteCounts:
    if bars.empty:
        return WriteCounts()
    staged = stage_frame(connection, market_aggregate, bars.assign(market_id=market_id))
    stamps = {
        "dataset_version": take_dataset_version(connection),  # waits for the merges before it
        "known_at": datetime.now(UTC),
        "run_id": run.run_id,
    }
    counts = merge_staged(connection, staged, stamps)
    weeks = _rebuild_weeks(connection, run, one, market_id, bars)
    return counts + upsert_frame(
        connection, market_aggregate, weeks.assign(market_id=market_id), stamps
    )


def _rebuild_weeks(
    connection: Connection, run: Run, one: Market, market_id: int, bars: pd.DataFrame
) -> pd.DataFrame:
    days = bars.loc[bars["interval"] == Interval.DAY.value, "open_time"]
    if days.empty:
        return bars.iloc[:0]
    start = floor_to_monday(days.min().to_pydatetime())
    end = floor_to_monday(days.max().to_pydatetime()) + timedelta(weeks=1)
    stored = read_daily_bars(connection, market_id, start, end)
    return build_weekly_bars(stored, read_sessions(one.calendar, start, end), run.request.now)


def _write_market_receipt(
    connection: Connection, run: Run, market_id: int, batch: BarBatch, counts: WriteCounts
) -> None:
    row = {
        "run_id": run.run_id,
        "market_id": market_id,
        "received": batch.received,
        "quarantined": len(batch.judged.rejected),
        "inserted": counts.inserted,
        "updated": counts.updated,
        "unchanged": counts.unchanged,
        "outcome": batch.outcome,
        "reason": batch.reason,
    }
    statement = insert(ingestion_run_market).values(row)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["run_id", "market_id"], set_=dict(statement.excluded)
        )
    )


def write_rows(
    engine: Engine, run: Run, table: Table, rows: pd.DataFrame, outcome: str
) -> WriteCounts:
    """Commit computed or observed rows of one table, and its part of the receipt."""
    stamps: dict[str, object] = {}
    if "run_id" in table.info["stamps"]:
        stamps["run_id"] = run.run_id
    if "fetched_at" in table.info["stamps"]:
        stamps["fetched_at"] = datetime.now(UTC)
    with engine.begin() as connection:
        begin_receipt(connection, run)
        counts = upsert_frame(connection, table, rows, stamps)
        add_table_receipt(connection, run, table.name, counts, outcome)
    return counts


def write_markets(engine: Engine, run: Run, markets: Sequence[Market]) -> WriteCounts:
    """Commit the routed markets and their part of the receipt."""
    with engine.begin() as connection:
        begin_receipt(connection, run)
        counts = register_markets(connection, markets, run.request.is_default_routing)
        add_table_receipt(connection, run, market.name, counts, "ok")
    return counts


def add_table_receipt(
    connection: Connection, run: Run, table_name: str, counts: WriteCounts, outcome: str
) -> None:
    """Add counts to a run's receipt, and let its outcome only get worse."""
    receipt = ingestion_run_table.c
    row = {
        "run_id": run.run_id,
        "table_name": table_name,
        "inserted": counts.inserted,
        "updated": counts.updated,
        "unchanged": counts.unchanged,
    }
    sums = {name: receipt[name] + row[name] for name in ("inserted", "updated", "unchanged")}
    statement = insert(ingestion_run_table).values(row)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["run_id", "table_name"], set_=sums)
    )
    this_run = ingestion_run.c.run_id == run.run_id
    known = connection.execute(select(ingestion_run.c.outcome).where(this_run)).scalar()
    worst = max(outcome, known or "ok", key=_RANK.__getitem__)
    connection.execute(
        update(ingestion_run)
        .where(this_run)
        .values(completed_at=func.clock_timestamp(), outcome=worst)
    )


def mark_failed(engine: Engine, run: Run) -> None:
    """Close a run's receipt as failed: nothing usable came."""
    with engine.begin() as connection:
        begin_receipt(connection, run)
        add_table_receipt(connection, run, market_aggregate.name, WriteCounts(), "failed")
