"""What is read from the tables: markets, final bars, receipts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import pandas as pd
from sqlalchemy import (
    Connection,
    FromClause,
    Select,
    exists,
    func,
    literal_column,
    select,
    tuple_,
)

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import BAR_COLUMNS
from market_pipeline.storage.bulk.copy_out import (
    FLAG,
    INTEGER,
    NUMBER,
    TIME,
    WORD,
    Column,
    read_copied,
)
from market_pipeline.storage.runs.states import STATE, read_absent_markets
from market_pipeline.storage.tables import (
    ingestion_run,
    ingestion_run_market,
    ingestion_run_table,
    market,
    market_aggregate,
)

_PRICES = ("open", "high", "low", "close", "volume")
_SENT: Mapping[str, Column] = {
    "interval": WORD,
    **dict.fromkeys(("open_time", "close_time"), TIME),
    **dict.fromkeys(_PRICES, NUMBER),
    **dict.fromkeys(("volume_kind", "source_kind"), WORD),
    "trades": replace(NUMBER, send="coalesce(trades::double precision, 'NaN')"),
    "is_final": FLAG,
    **dict.fromkeys(("market_id", "dataset_version"), INTEGER),
}
_BAR_COLUMNS = {name: _SENT[name] for name in BAR_COLUMNS}
_FINAL_NAMES = ("market_id", "open_time", "close_time", *_PRICES, "dataset_version")
FINAL_COLUMNS = {name: _SENT[name] for name in _FINAL_NAMES}


def read_markets(connection: Connection, keys: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return the active markets of (provider, symbol) pairs, in market_id order.

    Returns:
        Columns ``market_id``, ``provider``, ``symbol``, ``quote``, ``calendar``.
    """
    columns = (
        market.c.market_id,
        market.c.provider,
        market.c.symbol,
        market.c.quote,
        market.c.calendar,
    )
    query = (
        select(*columns)
        .where(tuple_(market.c.provider, market.c.symbol).in_(keys), market.c.is_active)
        .order_by(market.c.market_id)
    )
    return read_frame(connection, query)


def has_bars(connection: Connection, market_id: int) -> bool:
    """Tell whether any bar of a market is stored."""
    query = select(exists().where(market_aggregate.c.market_id == market_id))
    return bool(connection.execute(query).scalar_one())


def count_bars(
    connection: Connection, market_id: int, interval: Interval, start: datetime, end: datetime
) -> int:
    """Return how many bars :func:`read_bars` would return."""
    query = select(func.count()).where(
        market_aggregate.c.market_id == market_id,
        market_aggregate.c.interval == interval.value,
        market_aggregate.c.open_time >= start,
        market_aggregate.c.open_time < end,
    )
    return int(connection.execute(query).scalar_one())


def read_bars(
    connection: Connection, market_id: int, interval: Interval, start: datetime, end: datetime
) -> pd.DataFrame:
    """Return one market's stored bars with open_time in ``[start, end)`` as a bar frame."""
    values = {"market_id": market_id, "interval": interval.value, "start": start, "end": end}
    return read_copied(connection, _build_bar_query, _BAR_COLUMNS, values)


def read_versioned_bars(
    connection: Connection, market_id: int, interval: Interval, start: datetime, end: datetime
) -> pd.DataFrame:
    """Return what :func:`read_bars` does, and the column ``dataset_version``."""
    values = {"market_id": market_id, "interval": interval.value, "start": start, "end": end}
    columns = {**_BAR_COLUMNS, "dataset_version": _SENT["dataset_version"]}
    return read_copied(connection, _build_bar_query, columns, values)


def _build_bar_query(selected: str) -> str:
    return f"""SELECT {selected} FROM {market_aggregate.fullname}
        WHERE market_id = %(market_id)s AND "interval" = %(interval)s
            AND open_time >= %(start)s AND open_time < %(end)s
        ORDER BY market_aggregate.open_time"""


def read_last_run_id(connection: Connection) -> UUID | None:
    """Return the run that began last."""
    query = select(ingestion_run.c.run_id).order_by(ingestion_run.c.started_at.desc()).limit(1)
    return connection.execute(query).scalar()


def read_runs(connection: Connection, limit: int) -> pd.DataFrame:
    """Return the receipts of the last runs, newest first; ``outcome`` as of :func:`read_run`."""
    run = ingestion_run.alias("run")
    query = _select_run(run).order_by(run.c.started_at.desc()).limit(limit)
    return read_frame(connection, query)


def read_run(connection: Connection, run_id: UUID) -> dict[str, Any] | None:
    """Return a run's own line of its receipt; None for a run that wrote none.

    ``outcome`` is ``ok``, ``partial`` or ``failed`` once the run has ended; before that it is
    ``running`` while its process lives, and ``interrupted`` when it does not.
    """
    run = ingestion_run.alias("run")
    query = _select_run(run).where(run.c.run_id == run_id)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else dict(row)


def _select_run(run: FromClause) -> "Select[Any]":
    state: Any = literal_column(STATE).label("outcome")
    return select(*(state if one.name == "outcome" else one for one in run.c))


def read_market_list(connection: Connection) -> pd.DataFrame:
    """Return every market as people know it, by symbol and provider; without its key."""
    columns = [
        market.c[name]
        for name in (
            "symbol", "provider", "name", "base", "quote", "venue", "calendar", "price_basis",
            "is_active", "is_primary",
        )
    ]  # fmt: skip
    return read_frame(connection, select(*columns).order_by(market.c.symbol, market.c.provider))


def count_received(connection: Connection, run_id: UUID) -> int:
    """Return how many bars a run has received so far."""
    received = func.coalesce(func.sum(ingestion_run_market.c.received), 0)
    query = select(received).where(ingestion_run_market.c.run_id == run_id)
    return int(connection.execute(query).scalar_one())


def read_run_outcome(connection: Connection, run_id: UUID) -> str | None:
    """Return the ``outcome`` of :func:`read_run`; None for a run that wrote no receipt."""
    run = read_run(connection, run_id)
    return None if run is None else run["outcome"]


def read_run_end(connection: Connection, run_id: UUID) -> tuple[datetime, str] | None:
    """Return when (UTC) a run ended and its outcome; None while it runs, or without a receipt."""
    run = ingestion_run.c
    query = select(run.ended_at, run.outcome).where(run.run_id == run_id, run.ended_at.is_not(None))
    row = connection.execute(query).one_or_none()
    return None if row is None else (row.ended_at, row.outcome)


def read_run_markets(connection: Connection, run_id: UUID) -> pd.DataFrame:
    """Return a run's receipt by market; markets that were asked for without one come last."""
    receipt = ingestion_run_market.c
    query = (
        select(
            market.c.symbol,
            market.c.provider,
            *(c for c in receipt if c.name not in {"run_id", "market_id"}),
        )
        .join(market, market.c.market_id == receipt.market_id)
        .where(receipt.run_id == run_id)
        .order_by(market.c.symbol, market.c.provider)
    )
    found, absent = read_frame(connection, query), read_absent_markets(connection, run_id)
    rows = pd.DataFrame(absent, columns=found.columns, dtype=object)
    return pd.concat([found.astype(object), rows], ignore_index=True) if absent else found


def read_run_tables(connection: Connection, run_id: UUID) -> pd.DataFrame:
    """Return a run's receipt by table."""
    receipt = ingestion_run_table.c
    query = (
        select(receipt.table_name, receipt.inserted, receipt.updated, receipt.unchanged)
        .where(receipt.run_id == run_id)
        .order_by(receipt.table_name)
    )
    return read_frame(connection, query)


def read_frame(connection: Connection, query: "Select[Any]") -> pd.DataFrame:
    """Return a query's rows as a frame with its column names, also when there are none."""
    result = connection.execute(query)
    return pd.DataFrame(result.fetchall(), columns=list(result.keys()))
