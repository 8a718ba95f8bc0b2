"""Requests over HTTP that must not run twice, whichever API process they reach.

A row stands for a launch: one run in Dagster. Equal requests share the row ``flight:HASH`` while
the run lasts. ``key:KEY`` and ``cron:MINUTE`` keep it for a day. The process that launches holds a
lease. If it is killed, the next process first looks in Dagster for the run that it had launched.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Row, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from market_pipeline.domain.errors import KeyReusedError
from market_pipeline.storage.ledgers import idempotency_key

KEPT_FOR = timedelta(hours=24)
LEASE = timedelta(seconds=30)
_FORGOTTEN_ROWS = 100
# Lets equal requests take turns.
_LOCK = text("SELECT pg_advisory_xact_lock(1297107801, hashtext(:request_hash))")
_NOW = func.clock_timestamp()


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of a request: the launch that serves it, its run, and the run's answer.

    ``is_owner``: the caller is to launch it now. ``was_tried``: somebody may have done so before.
    """

    launch_id: UUID
    run_id: UUID | None
    is_owner: bool = False
    was_tried: bool = False
    answer_status: int | None = None
    answer: Any = None


def claim_launch(
    connection: Connection,
    request_hash: str,
    key: str | None = None,
    ended_run_id: UUID | None = None,
) -> Claim:
    """Find the launch that serves a request, or begin one; equal requests take turns.

    The connection is in a transaction of its own. Under ``key`` the request is remembered, beside
    its flight. ``ended_run_id`` is known to be over, and so no longer in flight.

    Raises:
        KeyReusedError: The key stands for another request.
    """
    connection.execute(_LOCK, {"request_hash": request_hash})
    _forget_expired(connection)
    row = _read(connection, key) if key else None
    if row is None:
        row = _board_flight(connection, request_hash, ended_run_id)
        if key:
            _remember(connection, key, row)
    elif row.request_hash != request_hash:
        raise KeyReusedError("the Idempotency-Key stands for another request of the last 24 hours")
    if row.run_id is not None or row.answer_status is not None:
        return Claim(row.launch_id, row.run_id, False, True, row.answer_status, row.answer)
    is_owner = _take_lease(connection, row.launch_id)
    return Claim(row.launch_id, None, is_owner, row.lease_until is not None)


def note_run(connection: Connection, launch_id: UUID, run_id: UUID) -> None:
    """Note the run of a launch."""
    _change(connection, idempotency_key.c.launch_id == launch_id, run_id=run_id)


def release_launch(connection: Connection, launch_id: UUID) -> None:
    """Let others try a launch that came to nothing, or that nobody knows to have come to more."""
    _change(connection, idempotency_key.c.launch_id == launch_id, lease_until=_NOW)


def store_answer(connection: Connection, run_id: UUID, status: int, answer: Any) -> None:
    """Keep the answer of a run that ended; the first one stays."""
    row = idempotency_key.c
    is_open = (row.run_id == run_id) & row.answer_status.is_(None)
    _change(connection, is_open, answer_status=status, answer=answer)


def _board_flight(connection: Connection, request_hash: str, ended: UUID | None) -> Row[Any]:
    key = f"flight:{request_hash}"
    row = _read(connection, key)
    is_over = row is not None and (
        row.answer_status is not None or (ended is not None and row.run_id == ended)
    )
    if row is not None and not is_over:
        return row
    connection.execute(delete(idempotency_key).where(idempotency_key.c.key == key))
    _insert(connection, key, request_hash=request_hash, launch_id=uuid4())
    row = _read(connection, key)
    assert row is not None  # noqa: S101 - inserted under the lock
    return row


def _remember(connection: Connection, key: str, row: Row[Any]) -> None:
    names = ("request_hash", "launch_id", "run_id", "lease_until")
    if not _insert(connection, key, **{name: getattr(row, name) for name in names}):
        raise KeyReusedError("the Idempotency-Key is in use for another request at this moment")


def _take_lease(connection: Connection, launch_id: UUID) -> bool:
    row = idempotency_key.c
    is_free = row.lease_until.is_(None) | (row.lease_until <= _NOW)
    where = (row.launch_id == launch_id) & row.run_id.is_(None) & is_free
    return _change(connection, where, lease_until=_NOW + LEASE) > 0


def _forget_expired(connection: Connection) -> None:
    """Remove some rows that are a day old, so that the table stays small by being used."""
    row = idempotency_key.c
    expired = select(row.key).where(row.expires_at <= _NOW).limit(_FORGOTTEN_ROWS)
    expired = expired.with_for_update(skip_locked=True)
    connection.execute(delete(idempotency_key).where(row.key.in_(expired)))


def _read(connection: Connection, key: str) -> Row[Any] | None:
    row = idempotency_key.c
    query = select(idempotency_key).where(row.key == key, row.expires_at > _NOW)
    return connection.execute(query).one_or_none()


def _insert(connection: Connection, key: str, **values: Any) -> bool:
    times = {"created_at": _NOW, "expires_at": _NOW + KEPT_FOR}
    statement = insert(idempotency_key).values(key=key, **values, **times)
    return connection.execute(statement.on_conflict_do_nothing()).rowcount > 0


def _change(connection: Connection, where: Any, **values: Any) -> int:
    return connection.execute(update(idempotency_key).where(where).values(**values)).rowcount
