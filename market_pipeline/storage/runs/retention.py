"""Retention: removes rows of old runs and old prices that nobody can need again.

Here: which rows are removed, in small transactions. Bars, revisions, versions, the quarantine and
the receipts of runs that changed anything stay for good. ``docs/tables.md`` has the rule of every
table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Engine, Select, Table, delete, func, select, tuple_

from market_pipeline.storage.ledgers import alert, ingestion_tick, market_event, quarantined_row
from market_pipeline.storage.server.watchdog import allow
from market_pipeline.storage.tables import (
    ingestion_run,
    ingestion_run_market,
    ingestion_run_table,
    market_snapshot,
)

KEPT_FOR = timedelta(days=90)
BATCH_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class PrunedCounts:
    """Rows that went, or would go: receipts of runs without change, snapshots, ended alerts."""

    receipts: int
    snapshots: int
    alerts: int = 0


@allow("bulk")
def prune(engine: Engine, now: datetime) -> PrunedCounts:
    """Remove what is old and tells nothing; a second time at the same clock removes nothing.

    Receipts, with their markets, tables and requests, of runs that changed nothing and came to
    their last write more than 90 days ago; ticks of which no receipt is left. Snapshots of UTC days
    that ended more than 90 days ago, but for the last of each market and day. Alerts, with their
    messages, that were resolved more than 90 days ago. Age counts from ``now`` (UTC). Each thousand
    rows are a transaction of their own, so that it can be stopped at any moment and blocks nobody.
    """
    receipts, snapshots = _find_receipts(now), _find_snapshots(now)
    run, price = ingestion_run.c, market_snapshot.c
    removed = _delete(engine, ingestion_run, [run.run_id], receipts)
    _delete(engine, ingestion_tick, [ingestion_tick.c.tick_id], _find_ticks(now))
    return PrunedCounts(
        removed,
        _delete(engine, market_snapshot, [price.market_id, price.observed_at], snapshots),
        _delete(engine, alert, [alert.c.alert_id], _find_alerts(now)),
    )


@allow("bulk")
def count_prunable(engine: Engine, now: datetime) -> PrunedCounts:
    """Return what :func:`prune` would remove."""
    doomed = (_find_receipts(now), _find_snapshots(now), _find_alerts(now))
    with engine.connect() as connection:
        counts = [
            connection.execute(select(func.count()).select_from(query.subquery())).scalar_one()
            for query in doomed
        ]
    return PrunedCounts(*counts)


def _find_receipts(now: datetime) -> "Select[Any]":
    """Select the runs without change; one that the quarantine or an event names explains them."""
    run = ingestion_run.c
    changes = [
        select(part.c.run_id).where(
            part.c.run_id == run.run_id, part.c.inserted + part.c.updated > 0
        )
        for part in (ingestion_run_market, ingestion_run_table)
    ]
    changes += [
        select(named.c.run_id).where(named.c.run_id == run.run_id)
        for named in (quarantined_row, market_event)
    ]
    ended_at = func.coalesce(run.completed_at, run.started_at)
    return select(run.run_id).where(
        ended_at < now - KEPT_FOR, *(~change.exists() for change in changes)
    )


def _find_snapshots(now: datetime) -> "Select[Any]":
    """Select all snapshots of a market and old day but the last."""
    price = market_snapshot.c
    day = func.date_trunc("day", price.observed_at, "UTC")
    following = func.lead(price.observed_at).over(
        partition_by=[price.market_id, day], order_by=price.observed_at
    )
    cutoff = (now - KEPT_FOR).replace(hour=0, minute=0, second=0, microsecond=0)
    old = (
        select(price.market_id, price.observed_at, following.label("following"))
        .where(price.observed_at < cutoff)
        .subquery()
    )
    return select(old.c.market_id, old.c.observed_at).where(old.c.following.is_not(None))


def _find_ticks(now: datetime) -> "Select[Any]":
    """Select the old ticks of which no run's receipt is left."""
    tick = ingestion_tick.c
    parts = select(ingestion_run.c.run_id).where(ingestion_run.c.tick_id == tick.tick_id)
    return select(tick.tick_id).where(tick.ended_at < now - KEPT_FOR, ~parts.exists())


def _find_alerts(now: datetime) -> "Select[Any]":
    return select(alert.c.alert_id).where(alert.c.resolved_at < now - KEPT_FOR)


def _delete(
    engine: Engine, table: Table, key: Sequence[ColumnElement[Any]], doomed: "Select[Any]"
) -> int:
    removed, bounded = 0, delete(table).where(tuple_(*key).in_(doomed.limit(BATCH_ROWS)))
    while True:
        with engine.begin() as connection:
            count = connection.execute(bounded).rowcount
        removed += count
        if count < BATCH_ROWS:
            return removed
