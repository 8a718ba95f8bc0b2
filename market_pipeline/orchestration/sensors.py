"""The sensors that raise alerts, deliver them, and end dead runs.

Each writes before it sends and can be repeated, because a sensor that raises loses its event. They
run without being switched on. The checks and the texts are elsewhere: ``alerting``, ``ingestion``.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

import dagster as dg
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from market_pipeline.alerting.delivery import check_alert_settings, deliver, send_at_once
from market_pipeline.alerting.kinds import CHECK_FAILED, RUN_FAILED
from market_pipeline.alerting.raising import Finding, clear_member, report
from market_pipeline.alerting.receivers import call_heartbeat
from market_pipeline.domain.errors import PipelineError
from market_pipeline.domain.ticks import TICK_TAG
from market_pipeline.domain.triggers import find_trigger
from market_pipeline.ingestion.alert_conditions import watch
from market_pipeline.ingestion.request import Route, build_request, filter_active
from market_pipeline.orchestration.automation import (
    find_last_ticks,
    ingest_job,
    is_schedule_on,
)
from market_pipeline.orchestration.causes import Cause, explain_run_failure, find_cause
from market_pipeline.orchestration.dead_runs import DeadRunScan, end_dead_runs
from market_pipeline.orchestration.executor import close_dead_receipts, close_receipt
from market_pipeline.orchestration.resources import Providers
from market_pipeline.orchestration.ticks import advance, finish
from market_pipeline.settings import read_variable
from market_pipeline.storage.alerts.outbox import has_alert_of_run
from market_pipeline.storage.runs.receipts import read_run_outcome
from market_pipeline.storage.runs.ticks import read_open_ticks
from market_pipeline.storage.server.database import open_database

_DELIVERY_SECONDS = 40.0
_GRAVE = ("error", "critical")
_CHECK_ERROR = "DagsterAssetCheckFailedError"
_ON = dg.DefaultSensorStatus.RUNNING
logger = logging.getLogger("market_pipeline.sensors")


@dg.run_failure_sensor(
    name="run_failure_alert",
    description="Raises an alert for every failed run, of any code location.",
    default_status=_ON,
    # Runs of `dagster job execute` carry no code location, so they are seen only this way.
    monitor_all_code_locations=True,
    minimum_interval_seconds=15,
)
def run_failure_alert(context: dg.RunFailureSensorContext) -> None:
    """Raise an alert of every failed run, unless the run has raised a graver one itself."""
    run, causes = context.dagster_run, _list_causes(context)
    event = context.failure_event
    reason = causes[0].text if causes else explain_run_failure(context.instance, run.run_id, event)
    finding = Finding(
        CHECK_FAILED if _is_check(causes) else RUN_FAILED,
        {run.job_name: reason},
        subject=_name_failure(run.job_name, causes),
        message=f"{run.job_name} failed: {reason}",
        context={
            "job": run.job_name,
            "steps": [cause.step for cause in causes],
            "trigger": find_trigger(run.tags),
        },
        run_id=UUID(run.run_id),
    )
    try:
        with _begin_transaction() as connection:
            close_receipt(connection, run, reason)
            # A part of a tick is a matter of the tick, which speaks when all of them have ended.
            is_told = TICK_TAG in run.tags and not _is_check(causes)
            if not (is_told or has_alert_of_run(connection, UUID(run.run_id), _GRAVE)):
                report(connection, [finding], datetime.now(UTC))
    except (SQLAlchemyError, PipelineError) as error:
        logger.error("an alert could not be written, so it is sent at once: %s", error)  # noqa: TRY400
        send_at_once(finding)


@dg.run_status_sensor(
    name="run_success_watch",
    description="Ends a job's alert when the job succeeds again, and calls HEARTBEAT_URL.",
    run_status=dg.DagsterRunStatus.SUCCESS,
    default_status=_ON,
    monitor_all_code_locations=True,
    minimum_interval_seconds=15,
)
def run_success_watch(context: dg.RunStatusSensorContext) -> None:
    """End the alerts of a job that succeeds again; call HEARTBEAT_URL after a good ingestion."""
    run = context.dagster_run
    kinds = (RUN_FAILED, CHECK_FAILED)
    with _begin_transaction() as connection:
        close_receipt(connection, run, None)
        if TICK_TAG in run.tags:
            return
        clear_member(connection, kinds, run.job_name, datetime.now(UTC))
        outcome = read_run_outcome(connection, UUID(run.run_id))
    if outcome == "ok":
        _call_heartbeat()


@dg.sensor(
    name="tick_watch",
    description="Launches the runs of a tick that is split into shards, and ends the tick.",
    job=ingest_job,
    default_status=_ON,
    # Where there are no ticks, one short look a minute.
    minimum_interval_seconds=5 if read_variable("INGESTION_SHARDS") != "1" else 60,
)
def tick_watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Launch the runs of ticks, and what derives from all markets when they have ended."""
    with open_database() as engine:
        with engine.connect() as connection:
            ticks = read_open_ticks(connection)
        requests = [request for tick in ticks for request in advance(context.instance, tick)]
        for tick in ticks:
            if finish(context.instance, engine, tick) == "ok":
                _call_heartbeat()
    told = dg.SkipReason(f"{len(ticks)} ticks are running")
    return dg.SensorResult(run_requests=requests, skip_reason=None if requests else told)


@dg.sensor(
    name="alert_delivery",
    description="Sends the messages that wait in the outbox of alerts.",
    default_status=_ON,
    minimum_interval_seconds=15,
)
def alert_delivery(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Send what waits in the outbox to ALERT_WEBHOOK_URL, at least once each."""
    del context
    with open_database() as engine:
        taken = deliver(engine, _DELIVERY_SECONDS)
    return dg.SkipReason(f"{taken} messages delivered")


@dg.sensor(
    name="alert_watch",
    description="Raises alerts for stale data, holes that stay and runs that do not begin.",
    default_status=_ON,
    minimum_interval_seconds=60,
)
def alert_watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Raise alerts of what no run can tell: stale data, holes that stay, no run; end old ones."""
    now = datetime.now(UTC)
    since = _read_since(context, now)
    with _begin_transaction() as connection:
        routes, wanted = _find_routes(connection, now)
        watch(connection, routes, find_last_ticks(now), since, now, wanted)
    return dg.SensorResult(
        skip_reason="watched", cursor=since.isoformat() if since is not None else ""
    )


@dg.sensor(
    name="dead_run_watch",
    description="Ends runs whose process is gone, closes their receipts, frees their slots.",
    default_status=_ON,
    minimum_interval_seconds=30,
)
def dead_run_watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """End runs whose process is gone, and free their slots; their failure raises the alert.

    A receipt needs no second look: its run holds the lock from before there is one.
    """
    with open_database() as engine:
        with engine.begin() as connection:
            look, dead = end_dead_runs(
                context.instance, connection, DeadRunScan.read(context.cursor)
            )
        close_dead_receipts(engine, context.instance)
    return dg.SensorResult(skip_reason=f"{len(dead)} dead runs ended", cursor=look.write())


def build_watches() -> list[dg.SensorDefinition]:
    """Return the sensors.

    Raises:
        SettingError: A setting of alerts is wrong; a tick that found out would lose its alert.
    """
    check_alert_settings()
    alerts = [run_failure_alert, run_success_watch, alert_delivery, alert_watch]
    return [*alerts, dead_run_watch, tick_watch]


def _call_heartbeat() -> None:
    called = call_heartbeat()
    if not called.is_ok:
        logger.warning("HEARTBEAT_URL could not be called: %s", called.error)


@contextmanager
def _begin_transaction() -> Iterator[Connection]:
    with open_database() as engine, engine.begin() as connection:
        yield connection


def _read_since(context: dg.SensorEvaluationContext, now: datetime) -> datetime | None:
    """Return when the schedule was first seen to be on; None while it is off."""
    if not is_schedule_on(context.instance):
        return None
    return datetime.fromisoformat(context.cursor) if context.cursor else now


def _find_routes(
    connection: Connection, now: datetime
) -> tuple[list[Route], Collection[str] | None]:
    """Return what runs ingest, and the symbols that they are asked for.

    No route when it is all deactivated, or cannot be told; None when the symbols cannot be told.
    """
    wanted = None
    try:
        request = build_request(now)
        wanted = request.symbols
        return filter_active(connection, Providers().route(request).routes), wanted
    except PipelineError as error:
        logger.warning("the list of ingested markets could not be read: %s", error)
        return [], wanted


def _name_failure(job: str, causes: Sequence[Cause]) -> str:
    """Return what failures have in common to be one alert: job, step and class of error."""
    if not causes or _is_check(causes):
        return job
    return f"{job}:{causes[0].step}:{causes[0].error_class}"


def _is_check(causes: Sequence[Cause]) -> bool:
    return any(cause.error_class == _CHECK_ERROR for cause in causes)


def _list_causes(context: dg.RunFailureSensorContext) -> list[Cause]:
    """Return why each step that failed did."""
    return [find_cause(event) for event in context.get_step_failure_events()]
