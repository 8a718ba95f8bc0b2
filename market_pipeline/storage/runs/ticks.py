"""Ticks as rows: what was asked for once, and which of them have not ended.

A tick's receipt is made of its runs' (``receipts``). Not here: who launches the runs
(``orchestration.ticks``).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from market_pipeline.storage.ledgers import ingestion_tick
from market_pipeline.storage.rows import Row, fetch
from market_pipeline.storage.runs.claims import build_is_living

# The newest run of each part of a tick; a retry takes its original's place.
NEWEST_RUNS = """
    SELECT DISTINCT ON (shard) * FROM market_data.ingestion_run
    WHERE tick_id = tick.tick_id ORDER BY shard, started_at DESC"""
_PARTS = text(f"""
    SELECT part.shard, run.run_id, coalesce(CASE WHEN run.ended_at IS NOT NULL THEN run.outcome
            WHEN {build_is_living("run.run_id")} THEN 'running'
            WHEN run.run_id IS NOT NULL THEN 'interrupted' END, 'missing') AS outcome, run.error
    FROM market_data.ingestion_tick tick
    CROSS JOIN unnest(tick.filled_shards || 0) AS part (shard)
    LEFT JOIN LATERAL ({NEWEST_RUNS}) run USING (shard)
    WHERE tick.tick_id = :tick_id ORDER BY part.shard = 0, part.shard
""")


@dataclass(frozen=True, slots=True)
class Tick:
    """A request that several runs carry out; the attributes are the table's columns."""

    tick_id: UUID
    trigger: str
    provider: str
    request: Mapping[str, Any]
    shards: int
    filled_shards: list[int]
    version: str
    started_at: datetime


_COLUMNS = [ingestion_tick.c[name] for name in Tick.__dataclass_fields__]


def insert_tick(connection: Connection, tick: Tick) -> None:
    """Insert a tick; one that is there already stays as it is."""
    connection.execute(insert(ingestion_tick).values(asdict(tick)).on_conflict_do_nothing())


def has_tick(connection: Connection, tick_id: UUID) -> bool:
    """Tell whether a tick is known."""
    query = select(ingestion_tick.c.tick_id).where(ingestion_tick.c.tick_id == tick_id)
    return connection.execute(query).first() is not None


def read_open_ticks(connection: Connection) -> list[Tick]:
    """Return the ticks that have not ended, the oldest first."""
    query = select(*_COLUMNS).where(ingestion_tick.c.ended_at.is_(None))
    found = connection.execute(query.order_by(ingestion_tick.c.started_at))
    return [Tick(**row) for row in found.mappings()]


def count_open_ticks(connection: Connection) -> int:
    """Return how many ticks have not ended."""
    query = select(func.count()).where(ingestion_tick.c.ended_at.is_(None))
    return int(connection.execute(query).scalar_one())


def end_tick(connection: Connection, tick_id: UUID) -> bool:
    """Note that all runs of a tick have ended; tell whether nobody had noted it before."""
    this_tick = (ingestion_tick.c.tick_id == tick_id) & ingestion_tick.c.ended_at.is_(None)
    noted = update(ingestion_tick).where(this_tick).values(ended_at=func.clock_timestamp())
    return connection.execute(noted).rowcount > 0


def read_parts(connection: Connection, tick_id: UUID) -> list[Row]:
    """Return the parts of a tick: shard, run_id, outcome and error; the deriving one (0) is last.

    ``outcome`` is that of a run's receipt, or ``missing`` where no run has begun. There are none of
    what is no tick.
    """
    return fetch(connection, _PARTS, tick_id=tick_id)
