"""``market-pipeline alerts``: what it prints and how it exits."""

import json
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from market_pipeline.alerting.raising import raise_alert
from market_pipeline_tests.cli.conftest import Command
from market_pipeline_tests.receiver import SECRET_PATH, Receiver, serve_receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on loopback."""
    with serve_receiver() as running:
        yield running


def settle(receiver: Receiver) -> dict[str, str]:
    """Return the variables under which alerts go to a receiver."""
    return {"ALERT_WEBHOOK_URL": receiver.address, "ALERT_ALLOW_PRIVATE": "true"}


def test_a_test_says_what_each_receiver_answered(command: Command, receiver: Receiver) -> None:
    """Exit 0 when all took it, 1 when one did not; the address is not repeated."""
    taken = command("alerts", "test", **settle(receiver))
    assert (taken.returncode, "delivered" in taken.stdout) == (0, True)
    assert receiver.bodies[0]["type"] == "alert.test"
    receiver.status = 403
    refused = command("alerts", "test", **settle(receiver))
    assert refused.returncode == 1
    assert "HTTP 403" in refused.stdout
    assert "not every receiver" in refused.stderr
    assert SECRET_PATH not in taken.stdout + refused.stdout + refused.stderr


def test_without_a_receiver_a_test_says_so(command: Command) -> None:
    """And which variable to set."""
    told = command("alerts", "test", ALERT_WEBHOOK_URL="")
    assert (told.returncode, "ALERT_WEBHOOK_URL" in told.stderr) == (1, True)


def test_alerts_are_listed_acknowledged_and_delivered(
    command: Command, engine: Engine, receiver: Receiver
) -> None:
    """What is open, what was taken on, and what waits."""
    assert "No alert is open" in command("alerts", "list").stdout
    with engine.begin() as connection:
        raise_alert("error", "disk at 97 %", connection=connection)
    (row,) = json.loads(command("alerts", "list", "--json").stdout)
    assert (row["message"], row["state"], row["times"]) == ("disk at 97 %", "open", 1)
    delivered = command("alerts", "deliver", **settle(receiver))
    assert delivered.stdout == "1 messages delivered\n"
    assert command("alerts", "ack", row["alert"]).returncode == 0
    (row,) = json.loads(command("alerts", "list", "--json").stdout)
    assert row["state"] == "gone"
    unknown = command("alerts", "ack", "00000000-0000-0000-0000-000000000000")
    assert (unknown.returncode, "alerts list" in unknown.stderr) == (1, True)
    assert command("alerts", "ack", "one").returncode == 2


def test_the_status_fails_when_alerting_does(
    command: Command, engine: Engine, receiver: Receiver
) -> None:
    """Messages that wait for an hour are what a watcher outside must see."""
    fine = command("alerts", "status", "--json", **settle(receiver))
    assert (fine.returncode, json.loads(fine.stdout)["trouble"]) == (0, "none")
    with engine.begin() as connection:
        raise_alert("error", "disk", connection=connection)
        connection.execute(
            text("UPDATE market_data.alert_delivery SET created_at = now() - interval '2 hours'")
        )
    broken = command("alerts", "status", **settle(receiver))
    assert broken.returncode == 1
    assert "alerting is in trouble: messages wait since" in broken.stderr


def test_a_wrong_receiver_is_refused_before_a_run_begins(command: Command) -> None:
    """By name, in one line, without repeating it."""
    refused = command("ingest", ALERT_WEBHOOK_URL="http://hooks.example.com/S3CRET")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: ALERT_WEBHOOK_URL")
    assert "S3CRET" not in refused.stderr
