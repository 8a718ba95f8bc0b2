"""What starts runs and what watches them: the jobs, their schedules, the failure sensor."""

import logging
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from market_pipeline.domain.triggers import TRIGGER_TAG
from market_pipeline.orchestration.resources import Database
from market_pipeline.settings import (
    SEVERITIES,
    read_choice,
    read_cron_expression,
    read_flag,
    read_variable,
)
from market_pipeline.storage.retention import prune

# Five failed runs a tick at most, so that a tick ends within Dagster's minute.
_TRIES = 2
_TIMEOUT_SECONDS = 4.0
_MAX_CHARACTERS = 1_000
_PRUNE_CRON = "40 3 * * *"
logger = logging.getLogger("market_pipeline.alerts")

ingest_job = dg.define_asset_job(
    "ingest",
    selection=dg.AssetSelection.all(),
    description="Fetch, store and analyse every configured market, once.",
)


@dg.op
def prune_old_rows(context: dg.OpExecutionContext, database: Database) -> None:
    """Remove receipts of runs without change and thin snapshots, both after 90 days."""
    removed = prune(database.engine, datetime.now(UTC))
    context.log.info("%d receipts and %d snapshots removed", removed.receipts, removed.snapshots)


@dg.op
def prune_dagster_runs(context: dg.OpExecutionContext) -> None:
    """Remove Dagster's own runs and events after DAGSTER_RETENTION_DAYS; Dagster keeps them all."""
    # Imported when first needed: Dagster's storage costs 0.15 s.
    from market_pipeline.orchestration.dagster_history import find_cutoff, prune_runs

    cutoff = find_cutoff(datetime.now(UTC))
    if cutoff is not None:
        context.log.info("%d of Dagster's runs removed", prune_runs(context.instance, cutoff))


@dg.job(description="Remove what is old and tells nothing: receipts, snapshots, Dagster's runs.")
def prune_history() -> None:
    """Keep tables from growing with what nobody can need again."""
    prune_old_rows()
    prune_dagster_runs()


def build_schedule() -> dg.ScheduleDefinition:
    """Return the ingestion schedule.

    Raises:
        SettingError: INGESTION_CRON_EXPRESSION is no cron expression.
    """
    return dg.ScheduleDefinition(
        name="ingest_schedule",
        job=ingest_job,
        cron_schedule=read_cron_expression(),
        execution_timezone="UTC",
        default_status=_choose_status(),
        description="Runs ingest by INGESTION_CRON_EXPRESSION, if INGESTION_SCHEDULE_ENABLED.",
    )


def build_prune_schedule() -> dg.ScheduleDefinition:
    """Return the daily schedule that keeps tables small, on where ingestion is scheduled."""
    return dg.ScheduleDefinition(
        name="prune_history_daily",
        job=prune_history,
        cron_schedule=_PRUNE_CRON,
        execution_timezone="UTC",
        default_status=_choose_status(),
        description="Runs prune_history every night, if INGESTION_SCHEDULE_ENABLED.",
    )


def _choose_status() -> dg.DefaultScheduleStatus:
    status = dg.DefaultScheduleStatus
    return status.RUNNING if read_flag("INGESTION_SCHEDULE_ENABLED") else status.STOPPED


@dg.run_failure_sensor(
    name="run_failure_alert",
    default_status=dg.DefaultSensorStatus.RUNNING,
    # Runs of `dagster job execute` carry no code location, so they are seen only this way.
    monitor_all_code_locations=True,
    minimum_interval_seconds=30,
)
def run_failure_alert(context: dg.RunFailureSensorContext) -> None:
    """Post every failed run to ALERT_WEBHOOK_URL."""
    run, causes = context.dagster_run, _list_causes(context)
    reason = next(iter(causes.values()), str(context.failure_event.message))
    send_alert(
        "error",
        f"{run.job_name} failed: {reason}"[:_MAX_CHARACTERS],
        f"{read_variable('DAGSTER_UI_URL').rstrip('/')}/runs/{run.run_id}",
        {
            "run_id": run.run_id,
            "job": run.job_name,
            "steps": list(causes),
            "trigger": run.tags.get(TRIGGER_TAG, "manual"),
        },
    )


def build_failure_sensor() -> dg.SensorDefinition:
    """Return the sensor that alerts of failed runs.

    Raises:
        SettingError: ALERT_MIN_SEVERITY is unknown; a tick that found out would lose its alert.
    """
    read_choice("ALERT_MIN_SEVERITY", SEVERITIES)
    return run_failure_alert


def _list_causes(context: dg.RunFailureSensorContext) -> dict[str, str]:
    """Return the innermost reason of each step that failed, in one line."""
    causes = {}
    for event in context.get_step_failure_events():
        error = event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        causes[str(event.step_key)] = (
            " ".join(error.message.split()) if error else "no reason given"
        )
    return causes


def send_alert(severity: str, message: str, link: str, context: dict[str, Any]) -> bool:
    """Post an alert; a sensor that raised would lose its event, so failures are logged instead.

    Returns:
        Whether a receiver took it; False also when none is configured or it is not severe enough.
    """
    address = read_variable("ALERT_WEBHOOK_URL")
    least = read_choice("ALERT_MIN_SEVERITY", SEVERITIES)
    if not address or SEVERITIES.index(severity) < SEVERITIES.index(least):
        return False
    body = {"severity": severity, "message": message, "link": link, "context": context}
    return any(_post(address, body) for _ in range(_TRIES))


def _post(address: str, body: dict[str, Any]) -> bool:
    import httpx

    # The address is a secret, and httpx repeats it in its logs and in its messages.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        httpx.post(address, json=body, timeout=_TIMEOUT_SECONDS).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        logger.warning("an alert could not be delivered: %s", type(error).__name__)
        return False
    return True
