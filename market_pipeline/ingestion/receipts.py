"""The receipt of a run: what it asked for, what came, what was written, what is missing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, cast, func, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert

from market_pipeline.ingestion.fetching import BarPage
from market_pipeline.ingestion.request import Request
from market_pipeline.storage.bulk.upsert import WriteCounts
from market_pipeline.storage.ledgers import ingestion_request
from market_pipeline.storage.tables import (
    ingestion_run,
    ingestion_run_market,
    ingestion_run_table,
    market_aggregate,
)

_RANK = {"ok": 0, "partial": 1, "failed": 2}
_CHANGES = ("inserted", "updated", "unchanged")
_ADDED = (*_CHANGES, *(f"derived_{name}" for name in _CHANGES), "revised", "spikes")
_MAX_REASON = 2_000


@dataclass(frozen=True, slots=True)
class Run:
    """The run on whose behalf rows are written."""

    run_id: UUID
    trigger: str
    started_at: datetime
    request: Request


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """What a run was asked, as its receipt keeps it.

    Attributes:
        run_id: The run. trigger: What started it. started_at: When it began (UTC).
        provider: Providers, in order, separated by commas.
        request: Symbols, look-back and window; what could not be read stands as it was given.
    """

    run_id: UUID
    trigger: str
    started_at: datetime
    provider: str
    request: Mapping[str, Any]


def begin_receipt(connection: Connection, run: Run) -> None:
    """Make sure the run's receipt exists."""
    provider = ",".join(run.request.providers)
    request = describe_request(run.request)
    open_receipt(
        connection, RecordedRequest(run.run_id, run.trigger, run.started_at, provider, request)
    )


def open_receipt(connection: Connection, asked: RecordedRequest) -> None:
    """Insert the receipt of a run, unless it has one."""
    row = {name: getattr(asked, name) for name in ("run_id", "trigger", "started_at", "provider")}
    row["request"] = json.loads(json.dumps(asked.request, default=str))
    connection.execute(insert(ingestion_run).values(row).on_conflict_do_nothing())


def describe_request(request: Request) -> dict[str, Any]:
    """Return a request as receipts keep it."""
    return {
        "symbols": request.symbols,
        "lookback_days": request.lookback_days,
        "window_start": request.window.start.isoformat(),
        "window_end": request.window.end.isoformat(),
    }


def add_market_receipt(
    connection: Connection, run: Run, market_id: int, row: dict[str, Any]
) -> None:
    """Add a batch to a market's receipt: counts of rows add up, all else is as of now."""
    statement = insert(ingestion_run_market).values(run_id=run.run_id, market_id=market_id, **row)
    receipt, new = ingestion_run_market.c, statement.excluded
    changes: dict[str, Any] = {name: new[name] for name in row}
    changes |= {name: receipt[name] + new[name] for name in _ADDED if name in row}
    for name in ("first_version", "watermark_before"):
        if name in row:
            changes[name] = func.coalesce(receipt[name], new[name])
    changes["received"] = func.greatest(receipt["received"], new["received"])
    if "last_version" in row:
        changes["last_version"] = func.coalesce(new["last_version"], receipt["last_version"])
    connection.execute(
        statement.on_conflict_do_update(index_elements=["run_id", "market_id"], set_=changes)
    )


def add_requests(
    connection: Connection, run: Run, market_id: int, pages: Sequence[BarPage]
) -> None:
    """Note each request, so that a bar can be traced to it."""
    rows = [
        {
            "run_id": run.run_id,
            "market_id": market_id,
            "interval": page.request.interval.value,
            "starts_at": page.request.window.start,
            "ends_at": page.request.window.end,
            "purpose": page.request.purpose,
            "asked_at": page.asked_at,
            "seconds": page.seconds,
            "received": page.received,
            "error": page.error,
        }
        for page in pages
    ]
    if rows:
        connection.execute(insert(ingestion_request), rows)


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
    sums = {name: receipt[name] + row[name] for name in _CHANGES}
    statement = insert(ingestion_run_table).values(row)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["run_id", "table_name"], set_=sums)
    )
    _worsen(connection, run, outcome)


def note_left_out(
    connection: Connection, run: Run, unserved: Mapping[str, str], deactivated: Sequence[str]
) -> None:
    """Note the symbols that a run does not fetch; one that no provider serves makes it partial.

    Args:
        connection: In a transaction.
        run: The run.
        unserved: Who was asked and why not, by symbol.
        deactivated: Symbols of markets that somebody deactivated.
    """
    begin_receipt(connection, run)
    reasons = {name: f"no provider serves it. Asked: {asked}" for name, asked in unserved.items()}
    told = cast({"unserved": reasons, "deactivated": list(deactivated)}, JSONB)
    receipt = ingestion_run.c
    noted = update(ingestion_run).where(receipt.run_id == run.run_id)
    connection.execute(noted.values(request=receipt.request.op("||")(told)))
    if unserved:
        _worsen(connection, run, "partial")


def end_receipt(connection: Connection, run: Run) -> None:
    """Note that a run has ended which is no ingestion, so that it is not counted as one."""
    this_run = ingestion_run.c.run_id == run.run_id
    connection.execute(update(ingestion_run).where(this_run).values(ended_at=datetime.now(UTC)))


def mark_failed(engine: Engine, run: Run) -> None:
    """Close a run's receipt as failed: nothing usable came, or a step broke."""
    with engine.begin() as connection:
        begin_receipt(connection, run)
        add_table_receipt(connection, run, market_aggregate.name, WriteCounts(), "failed")


def describe_counts(fetched: WriteCounts, derived: WriteCounts) -> dict[str, int]:
    """Return the columns that count bars: fetched ones, and the days and weeks built from them."""
    return {
        **{name: getattr(fetched, name) for name in (*_CHANGES, "revised")},
        **{f"derived_{name}": getattr(derived, name) for name in _CHANGES},
    }


def describe_stop(reason: str, outcome: str) -> dict[str, Any]:
    """Return the receipt of a market that gave no batch."""
    counts = dict.fromkeys(("received", *_CHANGES), 0)
    return {**counts, "outcome": outcome, "reason": reason[:_MAX_REASON]}


def shorten_reason(reasons: Sequence[str]) -> str | None:
    """Return reasons in one line; None when there are none."""
    return "; ".join(reasons)[:_MAX_REASON] or None


def _worsen(connection: Connection, run: Run, outcome: str) -> None:
    this_run = ingestion_run.c.run_id == run.run_id
    # Locked: markets of one run commit from one process, but assets may not.
    query = select(ingestion_run.c.outcome).where(this_run).with_for_update()
    known = connection.execute(query).scalar()
    worst = max(outcome, known or "ok", key=_RANK.__getitem__)
    connection.execute(
        update(ingestion_run).where(this_run).values(completed_at=datetime.now(UTC), outcome=worst)
    )
