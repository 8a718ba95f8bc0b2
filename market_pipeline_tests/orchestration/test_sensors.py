"""The sensors, ticked on a real instance with a real database, runs and receiver."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from market_pipeline.definitions import build_definitions
from market_pipeline.domain.errors import SettingError
from market_pipeline.orchestration import dead_runs
from market_pipeline_tests.databases import hold_up_writers, read_column
from market_pipeline_tests.orchestration.conftest import Materialise
from market_pipeline_tests.receiver import Receiver, serve_receiver
from market_pipeline_tests.system.processes import run_in_background, wait_for

pytestmark = pytest.mark.usefixtures("without_pictures")

SENSORS = (
    "run_failure_alert",
    "run_success_watch",
    "alert_delivery",
    "alert_watch",
    "dead_run_watch",
    "tick_watch",
)
WAIT_SECONDS = 300.0
Tick = Callable[[str], dg.SensorResult | Any]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver that ALERT_WEBHOOK_URL points to."""
    with serve_receiver() as running:
        monkeypatch.setenv("ALERT_WEBHOOK_URL", running.address)
        monkeypatch.setenv("ALERT_ALLOW_PRIVATE", "true")
        yield running


@pytest.fixture
def tick(instance: dg.DagsterInstance, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Tick:
    """Evaluates a sensor as the daemon does; the first tick of some only sets the cursor."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    repository = build_definitions().get_repository_def()
    cursors: dict[str, str | None] = {}

    def evaluate(name: str) -> Any:
        # A name, as in the daemon: runs of `dagster job execute` belong to no repository.
        context = dg.build_sensor_context(
            instance=instance, cursor=cursors.get(name), repository_def=repository,
            repository_name=repository.name,
        )  # fmt: skip
        evaluated = repository.get_sensor_def(name).evaluate_tick(context)
        assert [one.error for one in evaluated.dagster_run_reactions or () if one.error] == []
        cursors[name] = evaluated.cursor
        return evaluated

    for name in ("run_failure_alert", "run_success_watch"):
        evaluate(name)
    return evaluate


def run(instance: dg.DagsterInstance, **request: object) -> dg.ExecuteInProcessResult:
    """Run the main job as `dagster job execute` would."""
    job = build_definitions().resolve_job_def("ingest")
    config = {"resources": {"request": {"config": request}}}
    return job.execute_in_process(config, instance=instance, raise_on_error=False)


def read_open(engine: Engine) -> dict[str, list[str]]:
    """Return the members of the alerts whose cause is not gone, by fingerprint."""
    query = """SELECT jsonb_build_array(fingerprint, members) FROM market_data.alert
        WHERE resolved_at IS NULL AND cleared_at IS NULL"""
    return {one[0]: sorted(one[1]) for one in read_column(engine, query)}  # type: ignore[index]


def execute(engine: Engine, statement: str, **values: object) -> None:
    """Change rows."""
    with engine.begin() as connection:
        connection.execute(text(statement), values)


@pytest.mark.files
def test_a_failed_run_arrives_once_with_reason_link_and_runbook(
    receiver: Receiver,
    instance: dg.DagsterInstance,
    tick: Tick,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run without a code location is seen too; the next good one ends the alert."""
    monkeypatch.setenv("DAGSTER_UI_URL", "https://dagster.example/")
    failed = run(instance, provider="nobody")
    assert not failed.success
    for name in ("run_failure_alert", "alert_delivery") * 2:
        tick(name)
    (body,) = receiver.bodies
    data = body["data"]
    assert (body["type"], data["severity"], data["kind"]) == ("alert.raised", "error", "run_failed")
    assert data["message"].startswith("ingest failed: ")
    assert "nobody" in data["message"]
    assert data["link"] == f"https://dagster.example/runs/{failed.run_id}"
    assert data["context"] == {"job": "ingest", "steps": ["markets"], "trigger": "manual"}
    assert data["runbook"] == "RUNBOOK.md#a-run-failed"
    monkeypatch.setenv("ALERT_COOLDOWN_MINUTES", "0")
    assert run(instance, symbols=["BTC-USD"]).success
    tick("run_success_watch")
    tick("alert_watch")
    tick("alert_delivery")
    assert [one["type"] for one in receiver.bodies] == ["alert.raised", "alert.resolved"]


def test_another_failure_is_another_alert(
    engine: Engine, instance: dg.DagsterInstance, tick: Tick
) -> None:
    """By step and class of error; the same one again is counted; a good run ends them all."""
    for _ in range(2):
        run(instance, provider="nobody")
        tick("run_failure_alert")
    run(instance, provider="coingecko", symbols=["SPX"])
    tick("run_failure_alert")
    times = "SELECT jsonb_build_array(fingerprint, times) FROM market_data.alert ORDER BY raised_at"
    assert read_column(engine, times) == [
        ["run_failed:ingest:markets:SettingError", 2],
        ["run_failed:ingest:markets:MarketNotServedError", 1],
    ]
    assert run(instance, symbols=["BTC-USD"], lookback_days=2).success
    tick("run_success_watch")
    assert read_open(engine) == {}


def test_a_provider_is_down_also_when_one_market_had_nothing_to_ask(
    engine: Engine, materialise: Materialise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that were due failed: that is an error, and the provider's."""
    friday = {"window_end": "2024-03-15T21:30Z", "lookback_days": 2}
    assert materialise("market_aggregates", symbols=["SPX"], **friday).success
    monkeypatch.setenv("MOCK_FAULTS", "*:timeout")
    later = {"window_end": "2024-03-16T12:00Z", "lookback_days": 2}
    symbols = ["BTC-USD", "ETH-USD", "SPX"]
    materialise("market_aggregates", symbols=symbols, **later)
    assert read_open(engine) == {"provider_down": ["mock"]}


def test_markets_that_all_failed_are_an_error_not_a_warning(
    engine: Engine, materialise: Materialise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked among those that were due; one of several is a warning."""
    severity = "SELECT severity FROM market_data.alert WHERE kind = 'markets_short'"
    monkeypatch.setenv("MOCK_FAULTS", "ETH-USD:wrong_symbol")
    assert materialise("market_aggregates", lookback_days=2).success
    assert read_column(engine, severity) == ["warning"]
    with serve_receiver() as yahoo:
        yahoo.status = 404
        monkeypatch.setenv("YAHOO_BASE_URL", yahoo.address)
        asked = {"lookback_days": 2, "provider": "yahoo", "symbols": ["BTC-USD", "SPX"]}
        assert not materialise("market_aggregates", **asked).success
    assert read_column(engine, severity) == ["error"]


@pytest.mark.files
def test_a_symbol_that_no_provider_serves_is_told_until_nobody_wants_it(
    engine: Engine, materialise: Materialise, tick: Tick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands beside the markets that came short, and goes when it is served or left out."""
    monkeypatch.setenv("INGESTION_MARKETS", "BTC-USD,X:FOO")
    assert materialise(lookback_days=2).success
    assert read_open(engine) == {"markets_short": ["X:FOO"]}
    assert materialise(lookback_days=2, symbols=["BTC-USD"]).success
    tick("alert_watch")
    assert read_open(engine) == {"markets_short": ["X:FOO"]}
    monkeypatch.setenv("INGESTION_MARKETS", "BTC-USD")
    tick("alert_watch")
    assert read_open(engine) == {}


def test_a_missing_price_is_told_of_the_market_that_misses_it(
    engine: Engine, materialise: Materialise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own reason."""
    monkeypatch.setenv("MOCK_FAULTS", "*:timeout")
    materialise("market_snapshots")
    (members,) = read_column(
        engine, "SELECT members FROM market_data.alert WHERE kind = 'prices_missing'"
    )
    assert isinstance(members, dict)
    assert {name: name.removeprefix("mock:") in why for name, why in members.items()} == {
        "mock:BTC-USD": True, "mock:ETH-USD": True, "mock:SPX": True,
    }  # fmt: skip


def test_a_failure_that_cannot_be_written_is_sent_at_once(
    receiver: Receiver,
    instance: dg.DagsterInstance,
    tick: Tick,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sensor that raises loses its event; one without a database still has the receiver."""
    run(instance, provider="nobody")
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    tick("run_failure_alert")
    (body,) = receiver.bodies
    assert body["data"]["message"].startswith("ingest failed: ")


def test_a_provider_that_is_down_is_one_message(
    engine: Engine, receiver: Receiver, tick: Tick, materialise: Materialise,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The provider is down: that is one alert, and the run's failure is no second one."""
    monkeypatch.setenv("MOCK_FAULTS", "*:timeout")
    failed = materialise(symbols=["BTC-USD", "ETH-USD", "SPX"], lookback_days=2)
    assert not failed.success
    for name in ("run_failure_alert", "alert_delivery"):
        tick(name)
    (body,) = receiver.bodies
    assert (body["data"]["kind"], body["data"]["members_total"]) == ("provider_down", 1)
    assert read_open(engine) == {"provider_down": ["mock"]}
    monkeypatch.setenv("MOCK_FAULTS", "")
    assert materialise(lookback_days=2).success
    assert read_open(engine) == {}


def test_markets_that_came_short_are_told_in_the_runs_own_transaction(
    engine: Engine, materialise: Materialise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sensor is needed to know it; a run of other markets leaves it as it is."""
    monkeypatch.setenv("MOCK_FAULTS", "ETH-USD:timeout")
    assert materialise(lookback_days=2).success
    expected = {"markets_short": ["mock:ETH-USD"], "prices_missing": ["mock:ETH-USD"]}
    assert read_open(engine) == expected
    assert materialise(lookback_days=2, symbols=["BTC-USD"]).success
    assert read_open(engine) == expected
    monkeypatch.setenv("MOCK_FAULTS", "")
    assert materialise(lookback_days=2).success
    assert read_open(engine) == {}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, {"credentials_refused": ["yahoo"]}),
        (404, {"markets_short": ["yahoo:BTC-USD", "yahoo:SPX"]}),
    ],
)
def test_a_providers_refusal_is_not_its_markets(
    status: int,
    expected: dict[str, list[str]],
    engine: Engine,
    materialise: Materialise,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """401 is the provider's word about us, 404 about a market."""
    with serve_receiver() as yahoo:
        yahoo.status = status
        monkeypatch.setenv("YAHOO_BASE_URL", yahoo.address)
        failed = materialise(lookback_days=2, provider="yahoo", symbols=["BTC-USD", "SPX"])
    assert not failed.success
    assert read_open(engine) == expected


def test_a_good_run_calls_the_heartbeat_and_another_one_does_not(
    receiver: Receiver, instance: dg.DagsterInstance, tick: Tick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watcher outside hears nothing from a run that fails or comes short."""
    monkeypatch.setenv("HEARTBEAT_URL", receiver.address)
    monkeypatch.setenv("MOCK_FAULTS", "ETH-USD:timeout")
    assert run(instance, lookback_days=2).success
    tick("run_success_watch")
    assert receiver.posts == []
    monkeypatch.setenv("MOCK_FAULTS", "")
    assert run(instance, lookback_days=2).success
    tick("run_success_watch")
    assert [post.method for post in receiver.posts] == ["GET"]


def test_f2_a_hanging_receiver_does_not_delay_a_run(
    receiver: Receiver, materialise: Materialise, tick: Tick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run writes, and asks nobody."""
    assert tick
    receiver.delay = 30.0
    monkeypatch.setenv("MOCK_FAULTS", "ETH-USD:timeout")
    assert materialise(lookback_days=2).success
    assert receiver.posts == []


@pytest.mark.files
def test_no_run_at_all_is_told_while_the_schedule_is_on(
    engine: Engine,
    instance: dg.DagsterInstance,
    tick: Tick,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After twice its distance, also when there was never one; not while it is off."""
    monkeypatch.setenv("INGESTION_SCHEDULE_ENABLED", "true")
    run(instance, lookback_days=2)
    tick("alert_watch")
    assert read_open(engine) == {}
    old = datetime.now(UTC) - timedelta(hours=3)
    execute(engine, "UPDATE market_data.ingestion_run SET started_at = :old", old=old)
    tick("alert_watch")
    assert read_open(engine) == {}  # The schedule was seen to be on only now.
    monkeypatch.setenv("INGESTION_CRON_EXPRESSION", "* * * * * ")
    sensor = build_definitions().get_repository_def().get_sensor_def("alert_watch")
    context = dg.build_sensor_context(instance=instance, cursor=old.isoformat())
    for _ in range(2):
        sensor.evaluate_tick(context)
    assert read_open(engine) == {"no_run": ["ingest"]}
    monkeypatch.setenv("INGESTION_SCHEDULE_ENABLED", "false")
    sensor.evaluate_tick(context)
    assert "no_run" not in read_open(engine)


@pytest.mark.files
def test_stale_data_is_told_of_markets_that_are_ingested(
    engine: Engine, instance: dg.DagsterInstance, tick: Tick
) -> None:
    """By each market's calendar; a market that is deactivated raises none."""
    run(instance, lookback_days=10)
    tick("alert_watch")
    assert read_open(engine) == {}
    old = datetime.now(UTC) - timedelta(days=9)
    execute(engine, "UPDATE market_data.market_coverage SET watermark = :old", old=old)
    tick("alert_watch")
    assert read_open(engine)["data_stale"] == ["mock:BTC-USD", "mock:ETH-USD", "mock:SPX"]
    execute(engine, "UPDATE market_data.market SET is_active = false WHERE symbol = 'ETH-USD'")
    tick("alert_watch")
    assert read_open(engine)["data_stale"] == ["mock:BTC-USD", "mock:SPX"]


@pytest.mark.files
def test_holes_that_do_not_heal_are_told(
    engine: Engine, instance: dg.DagsterInstance, tick: Tick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for four times, or a day old; also when nobody asks for them any more."""
    monkeypatch.setenv("MOCK_FAULTS", "ETH-USD:timeout")
    run(instance, lookback_days=2)
    tick("alert_watch")
    assert "holes_stay" not in read_open(engine)
    old = datetime.now(UTC) - timedelta(days=2)
    execute(engine, "UPDATE market_data.coverage_hole SET first_seen_at = :old", old=old)
    tick("alert_watch")
    assert read_open(engine)["holes_stay"] == ["mock:ETH-USD"]
    monkeypatch.setenv("MOCK_FAULTS", "")
    run(instance, lookback_days=2, symbols=["BTC-USD"])
    execute(engine, "UPDATE market_data.coverage_hole SET reason = 'out_of_reach'")
    tick("alert_watch")
    assert read_open(engine)["holes_stay"] == ["mock:ETH-USD"]


def test_a_blocking_check_that_fails_is_critical(
    engine: Engine, instance: dg.DagsterInstance, tick: Tick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored bars that are wrong are the worst that can happen."""
    from market_pipeline.orchestration import checks

    bad = checks.CheckResult({"bars": 1}, [{"market": "BTC-USD"}])
    monkeypatch.setitem(checks.CHECKS, "keys_unique", lambda _: bad)  # type: ignore[arg-type]
    assert not run(instance, lookback_days=2).success
    tick("run_failure_alert")
    assert read_open(engine) == {"check_failed:ingest": ["ingest"]}


@pytest.mark.files
def test_a3_a_killed_run_is_ended_within_two_looks_and_its_slot_is_free(
    engine: Engine, instance: dg.DagsterInstance, tick: Tick, database_url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It would stay Started for ever; a run that lives, though it is suspended, is left alone."""
    monkeypatch.setattr(dead_runs, "SILENT_SECONDS", 0.0)
    environment = {
        **os.environ, "DATABASE_URL": database_url, "DAGSTER_HOME": instance.root_directory,
    }  # fmt: skip
    with (
        hold_up_writers(database_url),
        run_in_background([sys.executable, "-c", _CHILD], environment, tmp_path) as child,
    ):
        query = "SELECT 1 FROM market_data.fetch_claim"
        wait_for(lambda: read_column(engine, query), WAIT_SECONDS, "a claim", child)
        (run_id,) = (one.run_id for one in instance.get_runs())
        child.process.send_signal(signal.SIGSTOP)
        for _ in range(3):
            tick("dead_run_watch")
        assert _find_status(instance, run_id) == "STARTED"
        child.process.kill()
        child.process.wait()
    wait_for(lambda: not _has_lock(engine), WAIT_SECONDS, "the end of the session")
    tick("dead_run_watch")
    assert _find_status(instance, run_id) == "STARTED"
    tick("dead_run_watch")
    assert _find_status(instance, run_id) == "FAILURE"
    error = "SELECT error FROM market_data.ingestion_run WHERE ended_at IS NOT NULL"
    assert str(read_column(engine, error)[0]).startswith("interrupted: ")
    tick("run_failure_alert")
    assert read_open(engine) == {"run_failed:ingest": ["ingest"]}
    assert run(instance, lookback_days=2).success


@pytest.mark.parametrize("name", ["ingest", "backfill_history", "statistics"])
def test_a3_a_run_that_is_killed_before_its_first_step_is_ended_as_well(
    name: str, instance: dg.DagsterInstance, tick: Tick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had no time to hold a lock; a tick would wait for it for an hour."""
    monkeypatch.setattr(dead_runs, "SILENT_SECONDS", 0.0)
    job = build_definitions().resolve_job_def(name)
    began = instance.create_run_for_job(
        job, status=dg.DagsterRunStatus.STARTED, tags=dict(job.run_tags)
    )
    run_id = began.run_id
    tick("dead_run_watch")
    assert _find_status(instance, run_id) == "STARTED"
    tick("dead_run_watch")
    assert _find_status(instance, run_id) == "FAILURE"


def test_runs_of_others_are_left_alone(instance: dg.DagsterInstance, tick: Tick) -> None:
    """A run that never showed its life by a lock cannot be checked by it."""
    other = instance.create_run_for_job(_other_job, status=dg.DagsterRunStatus.STARTED)
    for _ in range(3):
        tick("dead_run_watch")
    assert _find_status(instance, other.run_id) == "STARTED"


@pytest.mark.parametrize("name", SENSORS)
def test_the_watches_run_without_being_switched_on(name: str) -> None:
    """Alerts need no click."""
    sensor = build_definitions().get_repository_def().get_sensor_def(name)
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING


def test_a_wrong_setting_is_refused_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick that found out would lose its alert."""
    monkeypatch.setenv("ALERT_MIN_SEVERITY", "loud")
    with pytest.raises(SettingError, match="ALERT_MIN_SEVERITY='loud'"):
        build_definitions()


@dg.job(name="other")
def _other_job() -> None:
    """A job of somebody else."""


_CHILD = """
import dagster as dg
from market_pipeline.definitions import build_definitions
config = {"resources": {"request": {"config": {"lookback_days": 2}}}}
with dg.DagsterInstance.get() as instance:
    build_definitions().resolve_job_def("ingest").execute_in_process(config, instance=instance)
"""


def _has_lock(engine: Engine) -> bool:
    query = f"SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = {0x6D70_6C76}"
    return bool(read_column(engine, query))


def _find_status(instance: dg.DagsterInstance, run_id: str) -> str:
    found = instance.get_run_by_id(run_id)
    assert found is not None
    return found.status.value
