"""The receipt of a run: what it asked for, what came, what was written, what is missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine

from market_pipeline.ingestion.batches import BarBatch
from market_pipeline.ingestion.request import Request
from market_pipeline.storage.bulk.upsert import WriteCounts
from market_pipeline.storage.runs.recording import (
    CHANGES,
    RecordedRequest,
    add_to_request,
    add_to_table,
    insert_requests,
    open_receipt,
    worsen_outcome,
)
from market_pipeline.storage.tables import market_aggregate

_MAX_REASON = 2_000


@dataclass(frozen=True, slots=True)
class Run:
    """The run on whose behalf rows are written."""

    run_id: UUID
    trigger: str
    started_at: datetime
    request: Request


def begin_receipt(connection: Connection, run: Run) -> None:
    """Make sure the run's receipt exists."""
    provider = ",".join(run.request.providers)
    request = describe_request(run.request)
    open_receipt(
        connection, RecordedRequest(run.run_id, run.trigger, run.started_at, provider, request)
    )


def describe_request(request: Request) -> dict[str, Any]:
    """Return a request as receipts keep it."""
    return {
        "symbols": request.symbols,
        "lookback_days": request.lookback_days,
        "window_start": request.window.start.isoformat(),
        "window_end": request.window.end.isoformat(),
    }


def add_requests(connection: Connection, run: Run, batches: Sequence[BarBatch]) -> None:
    """Note each request, so that a bar can be traced to it."""
    rows = [
        {
            "run_id": run.run_id,
            "market_id": batch.market_id,
            "interval": page.request.interval.value,
            "starts_at": page.request.window.start,
            "ends_at": page.request.window.end,
            "purpose": page.request.purpose,
            "asked_at": page.asked_at,
            "seconds": page.seconds,
            "received": page.received,
            "error": page.error,
        }
        for batch in batches
        for page in batch.pages
    ]
    insert_requests(connection, rows)


def add_table_receipt(
    connection: Connection, run: Run, table_name: str, counts: WriteCounts, outcome: str
) -> None:
    """Add counts to a run's receipt, and let its outcome only get worse."""
    add_to_table(connection, run.run_id, table_name, counts)
    worsen_outcome(connection, run.run_id, outcome)


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
    told = {"unserved": reasons, "deactivated": list(deactivated)}
    add_to_request(connection, run.run_id, told)
    if unserved:
        worsen_outcome(connection, run.run_id, "partial")


def mark_failed(engine: Engine, run: Run) -> None:
    """Close a run's receipt as failed: nothing usable came, or a step broke."""
    with engine.begin() as connection:
        begin_receipt(connection, run)
        add_table_receipt(connection, run, market_aggregate.name, WriteCounts(), "failed")


def describe_counts(fetched: WriteCounts, derived: WriteCounts) -> dict[str, int]:
    """Return the columns that count bars: fetched ones, and the days and weeks built from them."""
    return {
        **{name: getattr(fetched, name) for name in (*CHANGES, "revised")},
        **{f"derived_{name}": getattr(derived, name) for name in CHANGES},
    }


def describe_stop(reason: str, outcome: str) -> dict[str, Any]:
    """Return the receipt of a market that gave no batch."""
    counts = dict.fromkeys(("received", *CHANGES), 0)
    return {**counts, "outcome": outcome, "reason": reason[:_MAX_REASON]}


def shorten_reason(reasons: Sequence[str]) -> str | None:
    """Return reasons in one line; None when there are none."""
    return "; ".join(reasons)[:_MAX_REASON] or None
