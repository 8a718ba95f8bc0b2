"""The schedule and the failure sensor, ticked on a real instance against a real receiver."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from market_pipeline.definitions import build_definitions
from market_pipeline.domain.errors import SettingError
from market_pipeline_tests.databases import read_column

OLD_SNAPSHOTS = """
    WITH made AS (INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base,
        quote, venue, calendar, intervals, price_basis)
        VALUES ('mock', 'x', 'X-USD', 'X', 'X', 'USD', 'mock', '24/7', '{1d}', 'unadjusted')
        RETURNING market_id)
    INSERT INTO market_data.market_snapshot (market_id, observed_at, price, fetched_at)
    SELECT market_id, observed_at, 1, observed_at FROM made, generate_series(
        '2020-01-01T00:00Z'::timestamptz, '2020-01-01T23:00Z', '1 hour') observed_at"""
SECRET = "s3cret-path"  # noqa: S105 - made up
Tick = Callable[[], None]


class Receiver:
    """A webhook on loopback that keeps what it is sent and answers as told."""

    def __init__(self) -> None:
        """Start serving."""
        self.posts: list[dict[str, Any]] = []
        self.status = 200
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}/{SECRET}"

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.posts.append(json.loads(body))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Stay silent."""

        return Handler


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver that ALERT_WEBHOOK_URL points to."""
    running = Receiver()
    monkeypatch.setenv("ALERT_WEBHOOK_URL", running.address)
    yield running
    running.close()


@pytest.fixture
def tick(instance: dg.DagsterInstance) -> Tick:
    """Evaluates the sensor as the daemon does; the first evaluation only sets the cursor."""
    repository = build_definitions().get_repository_def()
    sensor = repository.get_sensor_def("run_failure_alert")
    cursor: list[str | None] = [None]

    def evaluate() -> None:
        # A name, as in the daemon: runs of `dagster job execute` belong to no repository.
        context = dg.build_sensor_context(
            instance=instance, cursor=cursor[0], repository_def=repository,
            repository_name=repository.name,
        )  # fmt: skip
        evaluated = sensor.evaluate_tick(context)
        assert [one.error for one in evaluated.dagster_run_reactions or () if one.error] == []
        cursor[0] = evaluated.cursor

    evaluate()
    return evaluate


def fail(instance: dg.DagsterInstance) -> str:
    """Run the main job with a provider that nobody has, as `dagster job execute` would."""
    job = build_definitions().resolve_job_def("ingest")
    config = {"resources": {"request": {"config": {"provider": "nobody"}}}}
    result = job.execute_in_process(config, instance=instance, raise_on_error=False)
    assert not result.success
    return result.run_id


def test_a_failed_run_is_posted_with_its_reason_and_a_link(
    receiver: Receiver,
    instance: dg.DagsterInstance,
    tick: Tick,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run without a code location is seen too; the alert says why, where and which steps."""
    monkeypatch.setenv("DAGSTER_UI_URL", "https://dagster.example/")
    run_id = fail(instance)
    tick()
    (alert,) = receiver.posts
    assert alert["severity"] == "error"
    assert "ingest failed" in alert["message"]
    assert "nobody" in alert["message"]
    assert alert["link"] == f"https://dagster.example/runs/{run_id}"
    assert alert["context"] == {
        "run_id": run_id, "job": "ingest", "steps": ["markets"], "trigger": "manual",
    }  # fmt: skip


def test_each_failure_is_posted_once(
    receiver: Receiver, instance: dg.DagsterInstance, tick: Tick
) -> None:
    """The cursor moves on: a later tick repeats nothing, and a new failure is news."""
    fail(instance)
    tick()
    tick()
    assert len(receiver.posts) == 1
    fail(instance)
    tick()
    assert len(receiver.posts) == 2


def test_a_receiver_that_refuses_is_asked_again_and_loses_no_later_alert(
    receiver: Receiver, instance: dg.DagsterInstance, tick: Tick
) -> None:
    """A 500 is retried within the tick, does not raise, and the next failure is posted."""
    receiver.status = 500
    fail(instance)
    tick()
    assert len(receiver.posts) == 2
    receiver.status = 200
    run_id = fail(instance)
    tick()
    assert receiver.posts[-1]["context"]["run_id"] == run_id
    assert len(receiver.posts) == 3


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}/x", "not an address", "http://[::1"])
def test_a_receiver_that_is_not_there_does_not_break_the_tick(
    address: str,
    instance: dg.DagsterInstance,
    tick: Tick,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sensor that raised would lose its event for good."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ALERT_WEBHOOK_URL", address.format(port=free.getsockname()[1]))
        fail(instance)
        tick()


def test_without_a_receiver_nothing_is_posted(
    receiver: Receiver,
    instance: dg.DagsterInstance,
    tick: Tick,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty ALERT_WEBHOOK_URL means unset."""
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "")
    fail(instance)
    tick()
    assert receiver.posts == []


def test_an_alert_below_the_least_severity_is_not_posted(
    receiver: Receiver,
    instance: dg.DagsterInstance,
    tick: Tick,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failed run is an error, which is less than critical."""
    monkeypatch.setenv("ALERT_MIN_SEVERITY", "critical")
    fail(instance)
    tick()
    assert receiver.posts == []


def test_the_receivers_address_is_in_no_log(
    receiver: Receiver,
    instance: dg.DagsterInstance,
    tick: Tick,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Webhook addresses are secrets, whether the post succeeds or not."""
    caplog.set_level(logging.DEBUG)
    for status in (200, 500):
        receiver.status = status
        fail(instance)
        tick()
    assert receiver.posts
    assert SECRET not in caplog.text


def test_an_unknown_severity_is_refused_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick that found out would lose its alert."""
    monkeypatch.setenv("ALERT_MIN_SEVERITY", "loud")
    with pytest.raises(SettingError, match="ALERT_MIN_SEVERITY='loud'"):
        build_definitions()


def test_the_sensor_runs_without_being_switched_on() -> None:
    """Alerts need no click."""
    sensor = build_definitions().get_repository_def().get_sensor_def("run_failure_alert")
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING


def test_a_tick_of_the_schedule_asks_for_one_complete_run(instance: dg.DagsterInstance) -> None:
    """What it asks for is what the job accepts."""
    definitions = build_definitions()
    moment = datetime(2024, 3, 15, 12, tzinfo=UTC)
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=moment)
    schedule = definitions.get_repository_def().get_schedule_def("ingest_schedule")
    (request,) = schedule.evaluate_tick(context).run_requests or ()
    dg.validate_run_config(definitions.resolve_job_def("ingest"), dict(request.run_config))


@pytest.mark.parametrize(
    ("flag", "status"),
    [("", "STOPPED"), ("false", "STOPPED"), ("true", "RUNNING"), ("1", "RUNNING")],
)
def test_the_schedule_follows_its_two_settings(
    flag: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INGESTION_CRON_EXPRESSION says when, INGESTION_SCHEDULE_ENABLED whether; both in UTC."""
    monkeypatch.setenv("INGESTION_CRON_EXPRESSION", "7 3 * * 1-5")
    monkeypatch.setenv("INGESTION_SCHEDULE_ENABLED", flag)
    schedule = build_definitions().get_repository_def().get_schedule_def("ingest_schedule")
    assert schedule.cron_schedule == "7 3 * * 1-5"
    assert schedule.execution_timezone == "UTC"
    assert schedule.default_status.name == status


@pytest.mark.parametrize("expression", ["every day", "99 * * * *", "* * * *"])
def test_a_schedule_that_can_never_run_is_refused_at_load(
    expression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the variable and what it was."""
    monkeypatch.setenv("INGESTION_CRON_EXPRESSION", expression)
    with pytest.raises(SettingError) as refused:
        build_definitions()
    assert f"INGESTION_CRON_EXPRESSION={expression!r}" in str(refused.value)


def test_the_nightly_pruning_is_on_where_ingestion_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever schedules ingestion needs not think of it; nobody else's rows are removed."""
    for flag, status in (("", "STOPPED"), ("true", "RUNNING")):
        monkeypatch.setenv("INGESTION_SCHEDULE_ENABLED", flag)
        schedule = build_definitions().get_repository_def().get_schedule_def("prune_history_daily")
        assert schedule.default_status.name == status
        assert (schedule.job_name, schedule.execution_timezone) == ("prune_history", "UTC")


def test_the_pruning_job_removes_old_snapshots(
    engine: Engine, database_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the schedule starts it: without config, on the database in use."""
    with engine.begin() as connection:
        connection.execute(text(OLD_SNAPSHOTS))
    monkeypatch.setenv("DATABASE_URL", database_url)
    job = build_definitions().resolve_job_def("prune_history")
    assert job.execute_in_process(instance=instance).success
    kept = "SELECT to_char(observed_at, 'HH24') FROM market_data.market_snapshot"
    assert read_column(engine, kept) == ["23"]
