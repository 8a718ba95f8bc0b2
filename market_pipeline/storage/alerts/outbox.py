"""The outbox of alerts: rows of ``alert`` and ``alert_delivery``, whatever their content.

An index allows one open alert for each fingerprint. A change of an alert locks its row first. Times
come from the caller and not from the database, so that a run and its tests use one clock.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Row, delete, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from market_pipeline.storage.ledgers import alert, alert_delivery
from market_pipeline.storage.tables import market

NOT_ADDRESSED = ""
GONE = "gone"
_WAITING = (alert_delivery.c.sent_at.is_(None), alert_delivery.c.given_up_at.is_(None))
# What became last of a message to each receiver.
_LAST_WORDS = text("""
    SELECT DISTINCT ON (receiver) receiver, error FROM market_data.alert_delivery
    WHERE coalesce(sent_at, given_up_at) IS NOT NULL
    ORDER BY receiver, coalesce(sent_at, given_up_at) DESC
""")
# How many messages wait, were sent and were given up, of some receivers and of none.
# What waits for other receivers is other processes' work and trouble.
_STATE = text(f"""
    SELECT count(*) FILTER (WHERE sent_at IS NULL AND given_up_at IS NULL) AS pending,
        min(created_at) FILTER (WHERE sent_at IS NULL AND given_up_at IS NULL) AS oldest_pending,
        max(sent_at) AS last_sent,
        count(*) FILTER (WHERE given_up_at > :since AND receiver <> '{NOT_ADDRESSED}') AS given_up
    FROM market_data.alert_delivery WHERE receiver = '{NOT_ADDRESSED}' OR receiver = ANY(:receivers)
""")


def _lock_open(connection: Connection, *conditions: Any) -> Sequence[Row[Any]]:
    query = select(alert).where(alert.c.resolved_at.is_(None), *conditions)
    return connection.execute(query.order_by(alert.c.fingerprint).with_for_update()).all()


def find_open(connection: Connection, fingerprints: Collection[str]) -> dict[str, Row[Any]]:
    """Return the open alerts of some fingerprints, locked until the transaction ends."""
    found = _lock_open(connection, alert.c.fingerprint.in_(sorted(fingerprints)))
    return {row.fingerprint: row for row in found}


def insert_alert(connection: Connection, values: Mapping[str, Any]) -> UUID | None:
    """Open an alert; None when another transaction has just opened one of the fingerprint."""
    statement = insert(alert).values(alert_id=uuid4(), **values).on_conflict_do_nothing()
    return connection.execute(statement.returning(alert.c.alert_id)).scalar()


def change_alert(connection: Connection, alert_id: UUID, **values: Any) -> None:
    """Change columns of an alert."""
    connection.execute(update(alert).where(alert.c.alert_id == alert_id).values(**values))


def find_alert(connection: Connection, alert_id: UUID) -> Row[Any] | None:
    """Return an alert, locked; None when there is none of the id."""
    query = select(alert).where(alert.c.alert_id == alert_id)
    return connection.execute(query.with_for_update()).one_or_none()


def read_alert(connection: Connection, alert_id: UUID) -> Row[Any] | None:
    """Return an alert as it is; None when there is none of the id."""
    return connection.execute(select(alert).where(alert.c.alert_id == alert_id)).one_or_none()


def read_deliveries(connection: Connection, alert_id: UUID) -> Sequence[Row[Any]]:
    """Return the messages about an alert, the oldest first."""
    query = select(alert_delivery).where(alert_delivery.c.alert_id == alert_id)
    return connection.execute(query.order_by(alert_delivery.c.created_at)).all()


def read_alerts(connection: Connection, limit: int, with_resolved: bool) -> Sequence[Row[Any]]:
    """Return the newest alerts, open ones only unless told."""
    query = select(alert).order_by(alert.c.raised_at.desc()).limit(limit)
    return connection.execute(
        query if with_resolved else query.where(alert.c.resolved_at.is_(None))
    ).all()


def name_state(alert: Row[Any]) -> str:
    """Return ``open``, ``acknowledged``, ``gone`` (its cause is) or ``resolved``."""
    if alert.resolved_at or alert.cleared_at:
        return "resolved" if alert.resolved_at else "gone"
    return "acknowledged" if alert.acknowledged_at else "open"


def find_settled(connection: Connection, before: datetime) -> Sequence[Row[Any]]:
    """Return open alerts whose cause was gone by then, locked; those others hold are skipped."""
    query = select(alert).where(alert.c.resolved_at.is_(None), alert.c.cleared_at <= before)
    locked = query.order_by(alert.c.fingerprint).with_for_update(skip_locked=True)
    return connection.execute(locked).all()


def clear_silent(
    connection: Connection, kinds: Collection[str], before: datetime, now: datetime
) -> None:
    """Take the cause of open alerts of some kinds for gone that were not raised since then."""
    silent = (alert.c.resolved_at.is_(None), alert.c.cleared_at.is_(None), alert.c.seen_at < before)
    connection.execute(
        update(alert).where(*silent, alert.c.kind.in_(sorted(kinds))).values(cleared_at=now)
    )


def find_open_kinds(connection: Connection, kinds: Collection[str]) -> Sequence[Row[Any]]:
    """Return the open alerts of some kinds whose cause is not gone, locked."""
    is_kind = alert.c.kind.in_(sorted(kinds))
    return _lock_open(connection, alert.c.cleared_at.is_(None), is_kind)


def has_alert_of_run(connection: Connection, run_id: UUID, severities: Collection[str]) -> bool:
    """Return whether a run raised an alert of one of the severities."""
    query = select(alert.c.alert_id).where(
        alert.c.run_id == run_id, alert.c.severity.in_(sorted(severities))
    )
    return connection.execute(query.limit(1)).first() is not None


def read_active_names(connection: Connection) -> set[str]:
    """Return ``provider:symbol`` of every market that is ingested, and the providers' names."""
    query = select(market.c.provider, market.c.symbol).where(market.c.is_active)
    found = connection.execute(query).all()
    return {f"{provider}:{symbol}" for provider, symbol in found} | {row.provider for row in found}


def post(connection: Connection, alert_id: UUID, body: Mapping[str, Any], now: datetime) -> UUID:
    """Put a message into the outbox, and return its id; it is addressed by whoever delivers it."""
    message_id = uuid4()
    row = {"alert_id": alert_id, "body": dict(body), "created_at": now, "next_try_at": now}
    insert_delivery(connection, message_id, NOT_ADDRESSED, **row)
    return message_id


def insert_delivery(connection: Connection, message_id: UUID, receiver: str, **values: Any) -> None:
    """Put a message into the outbox for one receiver, once."""
    row = {"message_id": message_id, "receiver": receiver, **values}
    connection.execute(insert(alert_delivery).values(row).on_conflict_do_nothing())


def take_unaddressed(
    connection: Connection, receivers: Collection[str], overdue: datetime, limit: int
) -> Sequence[Row[Any]]:
    """Take messages that have no receiver out of the outbox, oldest first.

    A receiver that nobody has tried since its message was due is one that no process has any more:
    messages to other than these receivers that were due before ``overdue`` (UTC) have none.
    """
    key = alert_delivery.c
    is_lost = key.receiver.notin_(sorted(receivers)) & (key.next_try_at < overdue)
    query = (
        select(key.message_id, key.receiver)
        .where(or_(key.receiver == NOT_ADDRESSED, is_lost), *_WAITING)
        .order_by(key.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = delete(alert_delivery).where(tuple_(key.message_id, key.receiver).in_(query))
    found = connection.execute(taken.returning(alert_delivery)).all()
    return sorted(found, key=lambda row: row.created_at)


def address(connection: Connection, message: Row[Any], receiver: str, **values: Any) -> None:
    """Put a message that was taken back in, for one receiver."""
    names = ("alert_id", "body", "created_at", "next_try_at")
    row = {name: getattr(message, name) for name in names} | values
    insert_delivery(connection, message.message_id, receiver, **row)


def take_due(connection: Connection, receivers: Collection[str], now: datetime) -> Row[Any] | None:
    """Return the oldest message that is due to one of some receivers, locked; None when none is.

    Another process's are skipped, so that each is sent by one at a time.
    """
    query = select(alert_delivery).where(
        alert_delivery.c.receiver.in_(sorted(receivers)),
        alert_delivery.c.next_try_at <= now,
        *_WAITING,
    )
    ordered = query.order_by(alert_delivery.c.created_at).limit(1)
    return connection.execute(ordered.with_for_update(skip_locked=True)).one_or_none()


def note_try(connection: Connection, delivery: Row[Any], **values: Any) -> None:
    """Note what became of a try."""
    key = alert_delivery.c
    connection.execute(
        update(alert_delivery)
        .where(key.message_id == delivery.message_id, key.receiver == delivery.receiver)
        .values(tries=key.tries + 1, **values)
    )


def give_up_old(
    connection: Connection, receivers: Collection[str], before: datetime, now: datetime
) -> None:
    """Give up what was written before then and waits for none of these receivers."""
    key = alert_delivery.c
    connection.execute(
        update(alert_delivery)
        .where(key.receiver.notin_(sorted(receivers)), key.created_at < before, *_WAITING)
        .values(given_up_at=now, error="no process had a receiver for it in time")
    )


def find_gone(connection: Connection) -> set[str]:
    """Return the receivers whose last word was that they are gone."""
    return {row.receiver for row in connection.execute(_LAST_WORDS) if row.error == GONE}


def read_outbox_state(
    connection: Connection, receivers: Collection[str], now: datetime
) -> Row[Any]:
    """Return ``pending``, ``oldest_pending`` and ``last_sent`` (UTC), ``given_up`` of a day.

    Of messages to these receivers, and of those that nobody has addressed yet.
    """
    values = {"since": now - timedelta(days=1), "receivers": sorted(receivers)}
    return connection.execute(_STATE, values).one()
