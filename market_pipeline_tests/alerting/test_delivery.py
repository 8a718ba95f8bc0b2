"""Delivery: at least once, under one id, whatever the receiver does; to nobody it may not reach."""

import base64
import logging
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from standardwebhooks import Webhook, WebhookVerificationError

from market_pipeline.alerting.delivery import deliver, read_outbox, send_test
from market_pipeline.alerting.kinds import MARKETS_SHORT
from market_pipeline.alerting.raising import Finding, raise_alert, report
from market_pipeline.alerting.receivers import read_receivers
from market_pipeline_tests.commands import SCRIPTS
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.receiver import SECRET_PATH, Receiver, serve_receiver
from market_pipeline_tests.system.processes import run_in_background, wait_for

KEYS = [f"whsec_{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2)]
SECONDS = 30.0
Raise = Callable[..., None]


@pytest.fixture
def alarm(engine: Engine) -> Raise:
    """Raises an alert of its own name."""

    def call(name: str = "disk", severity: str = "error") -> None:
        with engine.begin() as connection:
            raise_alert(severity, name, connection=connection)

    return call


@pytest.fixture
def other() -> Iterator[Receiver]:
    """A second receiver."""
    with serve_receiver() as running:
        yield running


def make_due(engine: Engine) -> None:
    """Let the pause before the next try go by."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE market_data.alert_delivery SET next_try_at = now()"))


def age(engine: Engine, interval: str) -> None:
    """Make every message older."""
    query = text("UPDATE market_data.alert_delivery SET created_at = now() - CAST(:by AS interval)")
    with engine.begin() as connection:
        connection.execute(query, {"by": interval})


def read_deliveries(engine: Engine, column: str) -> list[Any]:
    """Return a column of the outbox."""
    query = f"SELECT {column} FROM market_data.alert_delivery ORDER BY receiver"
    return read_column(engine, query)


def test_the_official_library_verifies_what_is_sent(
    engine: Engine, receiver: Receiver, alarm: Raise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By either key while a secret is changed; not when a byte is changed; unsigned without one."""
    monkeypatch.setenv("ALERT_WEBHOOK_SECRET", " ".join(KEYS))
    alarm()
    assert deliver(engine, SECONDS) == 1
    (post,) = receiver.posts
    for key in KEYS:
        assert Webhook(key).verify(post.raw, post.headers) == post.body
        with pytest.raises(WebhookVerificationError):
            Webhook(key).verify(post.raw + b" ", post.headers)
    monkeypatch.setenv("ALERT_WEBHOOK_SECRET", "")
    alarm("other")
    deliver(engine, SECONDS)
    assert "webhook-signature" not in receiver.posts[-1].headers


def test_a_message_says_what_where_and_what_to_do(
    engine: Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Severity, message, run link, runbook: all that one needs at night."""
    monkeypatch.setenv("DAGSTER_UI_URL", "https://dagster.example/")
    run_id = "6f1cb7f0-6f3c-4b0e-8d6c-3e6c2f3e9a11"
    with engine.begin() as connection:
        found = Finding(MARKETS_SHORT, {"mock:A": "timeout"}, run_id=UUID(run_id))
        report(connection, [found], datetime.now(UTC))
    deliver(engine, SECONDS)
    (body,) = receiver.bodies
    assert body["type"] == "alert.raised"
    assert body["data"]["severity"] == "warning"
    assert body["data"]["members"] == [{"name": "mock:A", "reason": "timeout"}]
    assert body["data"]["link"] == f"https://dagster.example/runs/{run_id}"
    assert body["data"]["runbook"] == "RUNBOOK.md#some-markets-came-short-outcome-partial"


def test_f1_a_receiver_that_was_down_gets_it_afterwards_under_the_same_id(
    engine: Engine, receiver: Receiver, alarm: Raise
) -> None:
    """Pauses grow; nothing is lost; nothing is sent after it was taken."""
    alarm()
    receiver.status = 500
    pauses = []
    for _ in range(4):
        assert deliver(engine, SECONDS) == 0
        assert deliver(engine, SECONDS) == 0  # Not due: not asked.
        pauses += read_deliveries(engine, "extract(epoch FROM next_try_at - now())")
        make_due(engine)
    assert len(receiver.posts) == 4
    assert [round(float(pause) / 30) for pause in pauses] == [1, 2, 4, 8]
    receiver.status = 204
    assert deliver(engine, SECONDS) == 1
    make_due(engine)
    assert deliver(engine, SECONDS) == 0
    assert len(receiver.posts) == 5
    assert len(set(receiver.ids)) == 1
    assert len({post.raw for post in receiver.posts}) == 1


def test_f4_the_receivers_retry_after_is_honoured(
    engine: Engine, receiver: Receiver, alarm: Raise
) -> None:
    """429 with 1,000 seconds: not asked before."""
    receiver.status, receiver.headers = 429, {"Retry-After": "1000"}
    alarm()
    deliver(engine, SECONDS)
    (pause,) = read_deliveries(engine, "extract(epoch FROM next_try_at - now())")
    assert 900 < pause <= 1_000


def test_f4_a_receiver_that_is_gone_is_left_alone_until_a_test_arrives(
    engine: Engine, receiver: Receiver, alarm: Raise, caplog: pytest.LogCaptureFixture
) -> None:
    """410 ends it, visibly; a test that is taken begins it again."""
    receiver.status = 410
    alarm("one")
    deliver(engine, SECONDS)
    alarm("two")
    make_due(engine)
    deliver(engine, SECONDS)
    assert len(receiver.posts) == 1
    assert "410" in caplog.text
    with engine.connect() as connection:
        trouble = read_outbox(connection, datetime.now(UTC)).trouble
    assert trouble is not None
    assert "410" in trouble
    receiver.status = 200
    assert [sent.is_ok for sent in send_test(engine).values()] == [True]
    alarm("three")
    assert deliver(engine, SECONDS) == 1


def test_f4_a_redirect_is_not_followed(
    engine: Engine, receiver: Receiver, other: Receiver, alarm: Raise
) -> None:
    """Whoever answers chooses no other address."""
    receiver.status, receiver.headers = 308, {"Location": other.address}
    alarm()
    deliver(engine, SECONDS)
    assert (len(receiver.posts), other.posts) == (1, [])
    assert read_deliveries(engine, "error") == ["HTTP 308: redirects are not followed"]


def test_one_receivers_trouble_is_not_anothers(
    engine: Engine,
    receiver: Receiver,
    other: Receiver,
    alarm: Raise,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One fails after the first try of a call, the other gets everything in it."""
    monkeypatch.setenv("ALERT_WEBHOOK_URL", f"{receiver.address}\n {other.address}")
    receiver.status = 503
    for name in ("one", "two", "three"):
        alarm(name)
    assert deliver(engine, SECONDS) == 3
    assert (len(receiver.posts), len(other.posts)) == (1, 3)


def test_f9_two_deliverers_share_the_work(engine: Engine, receiver: Receiver, alarm: Raise) -> None:
    """Two daemons send each message once."""
    receiver.delay = 0.02
    for number in range(20):
        alarm(f"alert {number}")
    threads = [threading.Thread(target=deliver, args=(engine, SECONDS)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receiver.ids) == len(set(receiver.ids)) == 20


def test_f3_a_deliverer_killed_after_it_sent_sends_again_under_the_same_id(
    engine: Engine, receiver: Receiver, alarm: Raise, database_url: str, tmp_path: Path
) -> None:
    """At least once; the receiver tells them apart by the id."""
    alarm()
    receiver.delay = 60.0  # Longer than the deliverer waits, so than it lives.
    typed = [str(SCRIPTS / "market-pipeline"), "alerts", "deliver"]
    environment = {**os.environ, "DATABASE_URL": database_url}
    with run_in_background(typed, environment, tmp_path) as child:
        wait_for(lambda: receiver.posts, 60, "the first message", child)
        child.process.kill()
        child.process.wait()
    receiver.delay = 0.0
    # The killed session's lock goes with it, within a second.
    wait_for(lambda: deliver(engine, SECONDS), 60, "the second message")
    assert len(receiver.posts) == 2
    assert len(set(receiver.ids)) == 1


def test_what_is_not_severe_enough_is_recorded_and_not_sent(
    engine: Engine, receiver: Receiver, alarm: Raise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ALERT_MIN_SEVERITY."""
    monkeypatch.setenv("ALERT_MIN_SEVERITY", "critical")
    alarm("one", "error")
    alarm("two", "critical")
    assert deliver(engine, SECONDS) == 1
    assert [body["data"]["message"] for body in receiver.bodies] == ["two"]
    assert len(read_column(engine, "SELECT 1 FROM market_data.alert")) == 2


def test_a_message_waits_for_a_process_that_has_a_receiver(
    engine: Engine, receiver: Receiver, alarm: Raise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without one leaves the outbox alone, whether a message is addressed or not."""
    receiver.status = 500
    alarm("one")
    deliver(engine, SECONDS)
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "")
    alarm("two")
    make_due(engine)
    assert deliver(engine, SECONDS) == 0
    assert read_deliveries(engine, "coalesce(sent_at, given_up_at)") == [None, None]
    with engine.connect() as connection:
        assert read_outbox(connection, datetime.now(UTC)).trouble is None
    monkeypatch.setenv("ALERT_WEBHOOK_URL", receiver.address)
    receiver.status = 200
    with engine.connect() as connection:
        waiting = read_outbox(connection, datetime.now(UTC) + timedelta(minutes=61))
    assert waiting.trouble is not None
    assert waiting.trouble.startswith("messages wait since ")
    assert deliver(engine, SECONDS) == 2
    with engine.connect() as connection:
        outbox = read_outbox(connection, datetime.now(UTC) + timedelta(minutes=61))
    assert (outbox.trouble, outbox.pending, outbox.given_up) == (None, 0, 0)


def test_what_waited_for_three_days_floods_nobody(
    engine: Engine, receiver: Receiver, alarm: Raise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that is set for the first time gets nothing older, and is in no trouble for it."""
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "")
    alarm()
    age(engine, "73 hours")
    deliver(engine, SECONDS)
    monkeypatch.setenv("ALERT_WEBHOOK_URL", receiver.address)
    assert deliver(engine, SECONDS) == 0
    assert receiver.posts == []
    with engine.connect() as connection:
        outbox = read_outbox(connection, datetime.now(UTC))
    assert (outbox.trouble, outbox.pending) == (None, 0)


def test_a_receiver_that_no_process_has_any_more_gives_its_messages_to_the_others(
    engine: Engine,
    receiver: Receiver,
    other: Receiver,
    alarm: Raise,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After an hour in which nobody tried; until then another process may have it."""
    receiver.status = 500
    alarm()
    deliver(engine, SECONDS)
    make_due(engine)
    monkeypatch.setenv("ALERT_WEBHOOK_URL", other.address)
    assert deliver(engine, SECONDS) == 0
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE market_data.alert_delivery SET next_try_at = now() - interval '61 minutes'"
            )
        )
    assert deliver(engine, SECONDS) == 1
    assert other.ids == receiver.ids


def test_f8_alerting_that_fails_for_an_hour_is_trouble_and_after_three_days_given_up(
    engine: Engine, receiver: Receiver, alarm: Raise
) -> None:
    """It cannot tell of itself, so it is seen in state."""
    receiver.status = 500
    alarm()
    deliver(engine, SECONDS)
    with engine.connect() as connection:
        assert read_outbox(connection, datetime.now(UTC)).trouble is None
        later = read_outbox(connection, datetime.now(UTC) + timedelta(minutes=61))
    assert later.trouble is not None
    assert later.pending == 1
    age(engine, "4 days")
    make_due(engine)
    deliver(engine, SECONDS)
    with engine.connect() as connection:
        outbox = read_outbox(connection, datetime.now(UTC))
    assert (outbox.pending, outbox.given_up) == (0, 1)


def test_an_address_is_in_no_log_row_or_error(
    engine: Engine, receiver: Receiver, alarm: Raise, caplog: pytest.LogCaptureFixture
) -> None:
    """Webhook addresses are secrets, whatever becomes of a message."""
    caplog.set_level(logging.DEBUG)
    for status in (200, 500, 308):
        receiver.status = status
        alarm(str(status))
        deliver(engine, SECONDS)
    rows = read_column(engine, "SELECT to_jsonb(d)::text FROM market_data.alert_delivery d")
    assert len(receiver.posts) == 3
    assert SECRET_PATH not in caplog.text + "".join(map(str, rows))
    assert SECRET_PATH not in repr(read_receivers())


def test_other_schemes_go_through_apprise(
    engine: Engine, receiver: Receiver, alarm: Raise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message as people read it; a service that fails is asked again like any other."""
    chat = receiver.address.replace("http://", "json://")
    monkeypatch.setenv("ALERT_WEBHOOK_URL", chat)
    alarm("<!channel> @everyone disk")
    receiver.status = 500
    assert deliver(engine, SECONDS) == 0
    receiver.status = 200
    make_due(engine)
    assert deliver(engine, SECONDS) == 1
    body = receiver.bodies[-1]
    assert body["title"] == "raised error: custom"
    assert "disk" in body["message"]
    assert not set(body["message"]) & set("<@")
    monkeypatch.setenv("ALERT_ALLOW_PRIVATE", "false")
    alarm("again")
    assert deliver(engine, SECONDS) == 0
    assert (
        "private"
        in read_column(
            engine, "SELECT error FROM market_data.alert_delivery WHERE error IS NOT NULL"
        )[0]
    )  # type: ignore[operator]
