"""Raising: makes one open alert for each problem, and few messages about it.

An alert follows its cause. A problem that is found again is counted and not repeated. When the
cause has been gone for ``ALERT_COOLDOWN_MINUTES``, the alert ends, so a market that fails and
recovers often causes one alert. Everything is written in the caller's transaction.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from market_pipeline.alerting.kinds import CUSTOM, KINDS, AlertKind
from market_pipeline.alerting.messages import (
    AlertView,
    bound_context,
    build_body,
    clean,
    list_members,
)
from market_pipeline.domain.errors import SettingError
from market_pipeline.settings import SEVERITIES, read_whole_number
from market_pipeline.storage.alerts import outbox
from market_pipeline.storage.server import database

REMINDER = timedelta(days=1)
_SILENCE = timedelta(days=7)
_MAX_MEMBERS = 10_000


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check, good or bad.

    Attributes:
        members: Whom it is true of now, each with its reason; none: its cause is gone.
        evaluated: Who was looked at; None: everybody. Others stay as they were.
        subject: What tells alerts of one kind apart, such as a job.
        message: Where the kind has no summary of its members.
        severity: Where it is not the kind's.
    """

    kind: AlertKind
    members: Mapping[str, str] = field(default_factory=dict)
    evaluated: Collection[str] | None = None
    subject: str = ""
    message: str = ""
    severity: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)
    run_id: UUID | None = None

    @property
    def fingerprint(self) -> str:
        """Return the key that two reports of the same problem share."""
        return f"{self.kind.name}:{self.subject}" if self.subject else self.kind.name


def raise_alert(
    severity: str,
    message: str,
    context: Mapping[str, Any] | None = None,
    *,
    fingerprint: str = "",
    connection: Connection | None = None,
) -> None:
    """Raise an alert of your own; it ends by `market-pipeline alerts ack`, or a week's silence.

    Args:
        severity: ``info``, ``warning``, ``error`` or ``critical``; below ``ALERT_MIN_SEVERITY`` it
            is recorded, and not sent.
        message: What happened, in one line.
        context: What else is known; no secrets.
        fingerprint: What makes two alerts the same; by default the message.
        connection: The transaction it lands in; by default one of its own, on the database in use.

    Raises:
        SettingError: There is no such severity.
        StorageError: The database cannot be used.
    """
    if severity not in SEVERITIES:
        raise SettingError(f"severity {severity!r}: expected one of {', '.join(SEVERITIES)}")
    subject = fingerprint or message[:200]
    finding = Finding(
        CUSTOM, {message: message}, None, subject, message, severity, context=context or {}
    )
    if connection is not None:
        report(connection, [finding], datetime.now(UTC))
        return
    with database.open_database() as engine, engine.begin() as own:
        report(own, [finding], datetime.now(UTC))


def report(connection: Connection, findings: Sequence[Finding], now: datetime) -> None:
    """Open, count or clear the alerts of some findings, each of another fingerprint.

    One question to the database when there is nothing to do.
    """
    by_fingerprint = {finding.fingerprint: finding for finding in findings}
    known = outbox.find_open(connection, by_fingerprint)
    for fingerprint in sorted(by_fingerprint):
        _apply(connection, by_fingerprint[fingerprint], known.get(fingerprint), now)


def resolve_cleared(connection: Connection, now: datetime) -> int:
    """End the alerts whose cause has been gone for the cool-down, and return their number."""
    events = [kind.name for kind in KINDS.values() if kind.is_event]
    outbox.clear_silent(connection, events, now - _SILENCE, now)
    cleared = outbox.find_settled(connection, now - read_cooldown())
    for row in cleared:
        outbox.change_alert(connection, row.alert_id, resolved_at=now)
        if row.noticed_at is not None:
            _post(connection, "resolved", row.alert_id, now)
    return len(cleared)


def acknowledge(connection: Connection, alert_id: UUID, now: datetime) -> bool:
    """Acknowledge an open alert: no more reminders; an event ends. False if there is none."""
    row = outbox.find_alert(connection, alert_id)
    if row is None or row.resolved_at is not None:
        return False
    ends = {"cleared_at": row.cleared_at or now} if KINDS[row.kind].is_event else {}
    outbox.change_alert(connection, alert_id, acknowledged_at=now, **ends)
    return True


def clear_member(
    connection: Connection, kinds: Collection[AlertKind], member: str, now: datetime
) -> None:
    """Mark the cause of open alerts as gone: those of some kinds that list a member."""
    for row in outbox.find_open_kinds(connection, [kind.name for kind in kinds]):
        if member in row.members:
            outbox.change_alert(connection, row.alert_id, cleared_at=now)


def forget_inactive(
    connection: Connection, now: datetime, wanted: Collection[str] | None = None
) -> None:
    """Take markets and providers that are not ingested any more out of open alerts.

    A symbol that no provider serves stands there without a provider's name; it goes when it is not
    among the symbols that runs are asked for. None: these cannot be told.
    """
    active = outbox.read_active_names(connection)
    kinds = [kind.name for kind in KINDS.values() if kind.lists_ingested]
    for row in outbox.find_open_kinds(connection, kinds):
        members = {
            name: why for name, why in row.members.items() if not _is_unwanted(name, active, wanted)
        }
        if len(members) < len(row.members):
            found = Finding(KINDS[row.kind], members, severity=row.severity, run_id=row.run_id)
            _apply(connection, found, row, now)


def _is_unwanted(name: str, active: Collection[str], wanted: Collection[str] | None) -> bool:
    # Symbols are upper case, names of providers lower case.
    known = wanted if name == name.upper() else active
    return known is not None and name not in known


def read_cooldown() -> timedelta:
    """Return how long an alert's cause must be gone before it is resolved: a week at most."""
    return timedelta(minutes=read_whole_number("ALERT_COOLDOWN_MINUTES", 0, 10_080))


def _apply(connection: Connection, found: Finding, row: Row[Any] | None, now: datetime) -> None:
    members = _merge(found, row)
    if not members:
        if row is not None and row.cleared_at is None:
            outbox.change_alert(connection, row.alert_id, cleared_at=now)
        return
    if row is None:
        _open(connection, found, members, now)
    else:
        _repeat(connection, found, row, members, now)


def _merge(found: Finding, row: Row[Any] | None) -> dict[str, str]:
    """Return the current members: those found, and earlier ones that were not checked."""
    before = {} if row is None or row.cleared_at is not None else row.members
    evaluated = before if found.evaluated is None else found.evaluated
    kept = {name: why for name, why in before.items() if name not in evaluated}
    return dict(sorted({**kept, **found.members}.items())[:_MAX_MEMBERS])


def _open(
    connection: Connection, found: Finding, members: Mapping[str, str], now: datetime
) -> None:
    severity = found.severity or found.kind.severity
    named = {"fingerprint": found.fingerprint, "kind": found.kind.name, "severity": severity}
    times = {"raised_at": now, "seen_at": now, "noticed_at": now, "times": 1}
    alert_id = outbox.insert_alert(connection, _build_values(found, members) | named | times)
    if alert_id is not None:
        _post(connection, "raised", alert_id, now)
        return
    row = outbox.find_open(connection, [found.fingerprint]).get(found.fingerprint)
    if row is not None:  # Another transaction has opened it meanwhile.
        _repeat(connection, found, row, _merge(found, row), now)


def _repeat(
    connection: Connection, found: Finding, row: Row[Any], members: Mapping[str, str], now: datetime
) -> None:
    severity = max(row.severity, found.severity or found.kind.severity, key=SEVERITIES.index)
    values = _build_values(found, members) | {"severity": severity, "seen_at": now}
    event = _choose_event(row, severity, members, now)
    if event is not None:
        values["noticed_at"] = now
    outbox.change_alert(connection, row.alert_id, times=row.times + 1, cleared_at=None, **values)
    if event is not None:
        _post(connection, event, row.alert_id, now)


def _choose_event(
    row: Row[Any], severity: str, members: Mapping[str, str], now: datetime
) -> str | None:
    """Return the reason for another message: it got worse, a member joined, or a day passed."""
    if severity != row.severity:
        return "updated"
    quiet = now - (row.noticed_at or row.raised_at)
    if quiet >= read_cooldown() and members.keys() - row.members.keys():
        return "updated"
    is_taken = row.acknowledged_at is not None
    return "reminder" if quiet >= REMINDER and not is_taken else None


def _build_values(found: Finding, members: Mapping[str, str]) -> dict[str, Any]:
    summary = found.kind.summary
    cleaned = {clean(name): clean(why) for name, why in members.items()}
    return {
        "message": list_members(cleaned, summary) if summary else clean(found.message),
        "members": cleaned,
        "context": bound_context(found.context),
        "run_id": found.run_id,
    }


def _post(connection: Connection, event: str, alert_id: UUID, now: datetime) -> None:
    row = outbox.find_alert(connection, alert_id)
    assert row is not None  # noqa: S101 - written in this transaction
    view = AlertView(**{field.name: getattr(row, field.name) for field in fields(AlertView)})
    outbox.post(connection, alert_id, build_body(event, view, now), now)
