"""Where a statistic comes from: its row, the bars' revisions, the runs and their requests."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, func, literal_column, select

from market_pipeline.storage.ledgers import ingestion_request
from market_pipeline.storage.runs.states import STATE
from market_pipeline.storage.statistics.newest import rank_newest
from market_pipeline.storage.tables import (
    ingestion_run,
    market_aggregate,
    market_aggregate_revision,
    market_roi_statistic,
)

Row = Mapping[str, Any]


def read_newest_statistic(connection: Connection, market_id: int, horizon: str) -> Row | None:
    """Return the newest row of a market and horizon; of several methods, that in use."""
    columns = market_roi_statistic.c
    query = (
        select(market_roi_statistic)
        .where(columns.market_id == market_id, columns.horizon == horizon)
        .order_by(rank_newest())
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else {str(name): value for name, value in row.items()}


def read_horizons(connection: Connection, market_id: int) -> list[str]:
    """Return the horizons that a market has statistics of, the shortest first."""
    columns = market_roi_statistic.c
    query = select(columns.horizon).where(columns.market_id == market_id).distinct()
    return sorted(connection.execute(query).scalars(), key=lambda horizon: int(horizon[:-1]))


def read_revisions(
    connection: Connection, market_id: int, interval: str, first: datetime, last: datetime
) -> list[Row]:
    """Return what was replaced among the bars that open in ``[first, last]``, in order.

    Returns:
        ``open_time``, ``old_close``, ``close`` (what replaced it), ``replaced_at``, ``version`` and
        ``run_id`` of the replacement.
    """
    query = f"""
        SELECT old.open_time, old.close AS old_close, coalesce(now.close, later.close) AS close,
            old.known_until AS replaced_at, old.replaced_by_version AS version,
            old.replaced_by_run AS run_id
        FROM {market_aggregate_revision} old
        LEFT JOIN {market_aggregate} now ON {_follows("now")}
        LEFT JOIN {market_aggregate_revision} later ON {_follows("later")}
        WHERE old.market_id = %(market_id)s AND old.interval = %(interval)s
            AND old.open_time BETWEEN %(first)s AND %(last)s
        ORDER BY old.open_time, old.replaced_by_version
    """
    parameters = {"market_id": market_id, "interval": interval, "first": first, "last": last}
    return _list_rows(connection.exec_driver_sql(query, parameters))


def _follows(bar: str) -> str:
    return (
        f"{bar}.market_id = old.market_id AND {bar}.interval = old.interval "
        f"AND {bar}.open_time = old.open_time AND {bar}.dataset_version = old.replaced_by_version"
    )


def count_provisional_bars(
    connection: Connection, market_id: int, interval: str, first: datetime
) -> int:
    """Count the bars that open at or after a time (UTC) and are not final."""
    bars = market_aggregate.c
    query = (
        select(func.count())
        .where(bars.market_id == market_id, bars.interval == interval)
        .where(bars.open_time >= first, ~bars.is_final)
    )
    return int(connection.execute(query).scalar_one())


def read_receipts(connection: Connection, run_ids: Sequence[UUID]) -> list[Row]:
    """Return run_id, trigger, started_at and outcome of runs, the first begun first.

    A run that has not ended is ``running``, or ``interrupted`` when its process is gone.
    """
    run = ingestion_run.alias("run")
    state: Any = literal_column(STATE).label("outcome")
    query = (
        select(run.c.run_id, run.c.trigger, run.c.started_at, state)
        .where(run.c.run_id.in_(list(run_ids)))
        .order_by(run.c.started_at)
    )
    return _list_rows(connection.execute(query))


def read_requests(
    connection: Connection,
    run_ids: Sequence[UUID],
    market_id: int,
    interval: str,
    first: datetime,
    last: datetime,
) -> list[Row]:
    """Return the requests of runs for bars of a market that open in ``[first, last]``, in order."""
    asked = ingestion_request.c
    columns = (
        asked.run_id, asked.purpose, asked.starts_at, asked.ends_at, asked.asked_at,
        asked.seconds, asked.received, asked.error,
    )  # fmt: skip
    query = (
        select(*columns)
        .where(asked.run_id.in_(list(run_ids)), asked.market_id == market_id)
        .where(asked.interval == interval, asked.starts_at <= last, asked.ends_at > first)
        .order_by(asked.asked_at, asked.request_id)
    )
    return _list_rows(connection.execute(query))


def _list_rows(result: Any) -> list[Row]:
    return [dict(row) for row in result.mappings()]
