"""Receipts as they are written: each transaction of a run adds to what was noted before.

Not here: what is noted (``ingestion.receipts``), the end of a receipt (``closing``).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, case, cast, func, update
from sqlalchemy.dialects.postgresql import JSONB, insert

from market_pipeline.domain.ticks import TickPart
from market_pipeline.storage.bulk.upsert import WriteCounts
from market_pipeline.storage.ledgers import ingestion_request
from market_pipeline.storage.tables import ingestion_run, ingestion_run_market, ingestion_run_table

_RANK = {"ok": 0, "partial": 1, "failed": 2}
CHANGES = ("inserted", "updated", "unchanged")
_ADDED = ("received", *CHANGES, *(f"derived_{name}" for name in CHANGES), "revised", "spikes")


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """What a run was asked, as its receipt keeps it.

    Attributes:
        run_id: The run. trigger: What started it. started_at: When it began (UTC).
        provider: Providers, in order, separated by commas.
        request: Symbols, look-back and window; what could not be read stands as it was given.
        part: Of which tick it is a part; None: of none.
    """

    run_id: UUID
    trigger: str
    started_at: datetime
    provider: str
    request: Mapping[str, Any]
    part: TickPart | None = None


def open_receipt(connection: Connection, asked: RecordedRequest) -> None:
    """Insert the receipt of a run, unless it has one."""
    row = {name: getattr(asked, name) for name in ("run_id", "trigger", "started_at", "provider")}
    row["request"] = json.loads(json.dumps(asked.request, default=str))
    if asked.part is not None:
        row |= {"tick_id": asked.part.tick_id, "shard": asked.part.shard}
    connection.execute(insert(ingestion_run).values(row).on_conflict_do_nothing())


def add_to_markets(
    connection: Connection, run_id: UUID, rows: Mapping[int, Mapping[str, Any]]
) -> None:
    """Add to the receipts of markets: counts of rows add up, all else is as of now.

    Args:
        connection: In a transaction.
        run_id: The run.
        rows: What is noted of each market, by market_id; all name the same columns.
    """
    if not rows:
        return
    keyed = [{"run_id": run_id, "market_id": key, **row} for key, row in sorted(rows.items())]
    statement = insert(ingestion_run_market)
    changes = _describe_additions(statement.excluded, frozenset(keyed[0]) - {"run_id", "market_id"})
    keys = ["run_id", "market_id"]
    merged = statement.on_conflict_do_update(index_elements=keys, set_=changes)
    # With an answer the rows go together; without one the driver would send each by itself.
    connection.execute(merged.returning(ingestion_run_market.c.market_id), keyed)


def _describe_additions(new: Any, names: frozenset[str]) -> dict[str, Any]:
    receipt = ingestion_run_market.c
    changes: dict[str, Any] = {name: new[name] for name in names}
    changes |= {name: receipt[name] + new[name] for name in _ADDED if name in names}
    for name in names & {"first_version", "watermark_before"}:
        changes[name] = func.coalesce(receipt[name], new[name])
    if "last_version" in names:
        changes["last_version"] = func.coalesce(new["last_version"], receipt["last_version"])
    return changes


def insert_requests(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Note requests; the columns are the table's."""
    if rows:
        connection.execute(insert(ingestion_request), list(rows))


def add_to_table(
    connection: Connection, run_id: UUID, table_name: str, counts: WriteCounts
) -> None:
    """Add counts to a run's receipt of a table."""
    receipt = ingestion_run_table.c
    row = {name: getattr(counts, name) for name in CHANGES}
    sums = {name: receipt[name] + row[name] for name in CHANGES}
    statement = insert(ingestion_run_table).values(run_id=run_id, table_name=table_name, **row)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["run_id", "table_name"], set_=sums)
    )


def add_to_request(connection: Connection, run_id: UUID, told: Mapping[str, Any]) -> None:
    """Add to what a run was asked, as its receipt keeps it."""
    receipt = ingestion_run.c
    noted = update(ingestion_run).where(receipt.run_id == run_id)
    connection.execute(noted.values(request=receipt.request.op("||")(cast(dict(told), JSONB))))


def note_end(connection: Connection, run_id: UUID) -> None:
    """Note that a run has ended which is no ingestion, so that it is not counted as one."""
    this_run = ingestion_run.c.run_id == run_id
    connection.execute(update(ingestion_run).where(this_run).values(ended_at=datetime.now(UTC)))


def worsen_outcome(connection: Connection, run_id: UUID, outcome: str) -> None:
    """Note an outcome, unless a worse one is noted, and that the run has just written."""
    receipt = ingestion_run.c
    known = func.coalesce(receipt.outcome, "ok")
    worst = case((case(_RANK, value=known) < _RANK[outcome], outcome), else_=known)
    # Assets may commit from several processes, each with a share of this row by its foreign key:
    # if both asked for it by FOR UPDATE, they would wait for each other.
    noted = update(ingestion_run).where(receipt.run_id == run_id)
    connection.execute(noted.values(completed_at=datetime.now(UTC), outcome=worst))
