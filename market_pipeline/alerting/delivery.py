"""Delivery: sends the messages in the outbox, each at least once.

Runs do not wait for a receiver. A message gets its address when it is delivered, not when it is
raised, so a run needs no receiver's address. A message waits for a process that has a receiver. If
no process has a receiver any more, its messages go to the others. If a process dies while sending,
the message is sent again under the same id.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Engine, Row

from market_pipeline.alerting.kinds import TEST
from market_pipeline.alerting.messages import AlertView, build_body
from market_pipeline.alerting.raising import Finding, read_cooldown
from market_pipeline.alerting.receivers import Sent, check_web, read_keys, read_receivers
from market_pipeline.settings import SEVERITIES, read_choice, read_variable
from market_pipeline.storage.alerts import outbox

FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(minutes=15)
GIVEN_UP_AFTER = timedelta(days=3)
BROKEN_AFTER = timedelta(hours=1)
_BATCH = 100
logger = logging.getLogger("market_pipeline.alerting")


@dataclass(frozen=True, slots=True)
class Outbox:
    """The state of alerting; times are UTC.

    ``gone`` are the receivers that want no more. ``pending`` messages wait for these receivers or
    for any, ``given_up`` ones were given up within a day.
    """

    receivers: Sequence[str]
    gone: Sequence[str]
    pending: int
    oldest_pending: datetime | None
    last_sent: datetime | None
    given_up: int
    now: datetime

    @property
    def trouble(self) -> str | None:
        """Return the trouble of alerting itself; None: no trouble, or no receiver."""
        if not self.receivers:
            return None
        if self.gone:
            return f"{', '.join(self.gone)} answered 410: correct ALERT_WEBHOOK_URL"
        if self.oldest_pending is not None and self.now - self.oldest_pending > BROKEN_AFTER:
            return f"messages wait since {self.oldest_pending:%Y-%m-%d %H:%M} UTC"
        return f"{self.given_up} messages were given up today" if self.given_up else None


def check_alert_settings() -> None:
    """Refuse wrong settings of alerts before an alert is lost; errors repeat no secret."""
    read_choice("ALERT_MIN_SEVERITY", SEVERITIES)
    read_receivers()
    read_keys()
    read_cooldown()
    if address := read_variable("HEARTBEAT_URL"):
        check_web(address, "HEARTBEAT_URL")


def deliver(engine: Engine, seconds: float) -> int:
    """Send what is due, and return how many messages were taken.

    A receiver that fails is left alone until the next call, so that one that hangs does not keep
    the others waiting. Two processes at once share the work. A process without a receiver leaves
    the outbox alone: messages wait for one that has, three days at most. After ``seconds`` no
    further message is begun.
    """
    end, taken = time.monotonic() + seconds, 0
    receivers = {receiver.name: receiver for receiver in read_receivers()}
    if receivers:
        with engine.begin() as connection:
            _address(connection, list(receivers), datetime.now(UTC))
    while receivers and time.monotonic() < end:
        with engine.begin() as connection:
            due = outbox.take_due(connection, receivers, datetime.now(UTC))
            if due is None:
                break
            sent = receivers[due.receiver].send(str(due.message_id), due.body)
            note(connection, due, sent, datetime.now(UTC))
        taken += sent.is_ok
        if not sent.is_ok:
            del receivers[due.receiver]
    return taken


def read_outbox(connection: Connection, now: datetime) -> Outbox:
    """Return the state of alerting."""
    names = [receiver.name for receiver in read_receivers()]
    gone = sorted(outbox.find_gone(connection).intersection(names))
    state = outbox.read_outbox_state(connection, names, now)
    return Outbox(
        names, gone, state.pending, state.oldest_pending, state.last_sent, state.given_up, now
    )


def note(connection: Connection, due: Row[Any], sent: Sent, now: datetime) -> None:
    """Record the result of an attempt, and the time of the next one."""
    if sent.is_ok:
        outbox.note_try(connection, due, sent_at=now, given_up_at=None, error=None)
    elif sent.is_gone:
        logger.error("%s wants no more alerts (410): it is sent none", due.receiver)
        outbox.note_try(connection, due, given_up_at=now, error=outbox.GONE)
    elif now - due.created_at > GIVEN_UP_AFTER:
        logger.error("an alert to %s was given up: %s", due.receiver, sent.error)
        outbox.note_try(connection, due, given_up_at=now, error=sent.error)
    else:
        logger.warning("an alert to %s could not be delivered yet: %s", due.receiver, sent.error)
        pause = max(min(FIRST_PAUSE * 2 ** min(due.tries, 10), LONGEST_PAUSE), sent.wait)
        outbox.note_try(connection, due, next_try_at=now + pause, error=sent.error)


def _address(connection: Connection, names: Sequence[str], now: datetime) -> None:
    """Address raised messages to every receiver; those below the least severity to none.

    Nothing that is older than three days is sent, so a first receiver is not flooded.
    """
    outbox.give_up_old(connection, names, now - GIVEN_UP_AFTER, now)
    least = SEVERITIES.index(read_choice("ALERT_MIN_SEVERITY", SEVERITIES))
    messages = outbox.take_unaddressed(connection, names, now - BROKEN_AFTER, _BATCH)
    gone = outbox.find_gone(connection) if messages else set()
    for message in messages:
        if SEVERITIES.index(message.body["data"]["severity"]) < least:
            continue
        for name in names:
            lost = {"given_up_at": now, "error": outbox.GONE} if name in gone else {}
            outbox.address(connection, message, name, **lost)


def send_test(engine: Engine) -> dict[str, Sent]:
    """Send a test to every receiver now, and return the results by the receiver's name.

    One that was taken for gone is sent alerts again once it takes a test.
    """
    told = _view_finding(Finding(TEST, message="a test: alerts arrive"), datetime.now(UTC))
    body, results = build_body("test", told, told.raised_at), {}
    for receiver in read_receivers():
        message_id = uuid4()
        results[receiver.name] = sent = receiver.send(str(message_id), body)
        if sent.is_ok:
            with engine.begin() as connection:
                _record_test(connection, told, message_id, receiver.name, body)
    return results


def send_at_once(finding: Finding) -> None:
    """Send a finding without the outbox, once: for when the database cannot take it."""
    told = _view_finding(finding, datetime.now(UTC))
    least = read_choice("ALERT_MIN_SEVERITY", SEVERITIES)
    if SEVERITIES.index(told.severity) < SEVERITIES.index(least):
        return
    body = build_body("raised", told, told.raised_at)
    for receiver in read_receivers():
        sent = receiver.send(str(told.alert_id), body)
        if not sent.is_ok:
            logger.error("an alert to %s is lost: %s", receiver.name, sent.error)


def _view_finding(finding: Finding, now: datetime) -> AlertView:
    """Return a finding as an alert that has no row yet."""
    severity = finding.severity or finding.kind.severity
    return AlertView(
        uuid4(), finding.kind.name, severity, finding.message, finding.members, finding.context,
        finding.run_id, now, 1,
    )  # fmt: skip


def _record_test(
    connection: Connection, told: AlertView, message_id: UUID, receiver: str, body: dict[str, Any]
) -> None:
    now = datetime.now(UTC)
    values = {"fingerprint": f"test:{message_id}", "kind": told.kind, "severity": told.severity}
    times = {"raised_at": now, "seen_at": now, "cleared_at": now, "resolved_at": now, "times": 1}
    alert_id = outbox.insert_alert(connection, values | times | {"message": told.message})
    row = {"alert_id": alert_id, "body": body, "created_at": now, "next_try_at": now, "tries": 1}
    outbox.insert_delivery(connection, message_id, receiver, **row, sent_at=now)
