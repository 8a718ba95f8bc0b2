"""What starts runs and what watches them: the job, its schedule, the failure sensor."""

import logging

import dagster as dg
import httpx

from market_pipeline.settings import read_choice, read_cron_expression, read_flag, read_variable

SEVERITIES = ("info", "warning", "error", "critical")
_TRIES = 3
_TIMEOUT_SECONDS = 5.0
logger = logging.getLogger("market_pipeline.alerts")

ingest_job = dg.define_asset_job(
    "ingest",
    selection=dg.AssetSelection.all(),
    description="Fetch, store and analyse every configured market, once.",
)


def build_schedule() -> dg.ScheduleDefinition:
    """Return the ingestion schedule.

    Raises:
        SettingError: INGESTION_CRON_EXPRESSION is no cron expression.
    """
    status = dg.DefaultScheduleStatus
    return dg.ScheduleDefinition(
        name="ingest_schedule",
        job=ingest_job,
        cron_schedule=read_cron_expression(),
        execution_timezone="UTC",
        default_status=status.RUNNING
        if read_flag("INGESTION_SCHEDULE_ENABLED")
        else status.STOPPED,
        description="Runs ingest by INGESTION_CRON_EXPRESSION, if INGESTION_SCHEDULE_ENABLED.",
    )


@dg.run_failure_sensor(
    name="run_failure_alert",
    default_status=dg.DefaultSensorStatus.RUNNING,
    # Runs of `dagster job execute` carry no code location, so they are seen only this way.
    monitor_all_code_locations=True,
    minimum_interval_seconds=30,
)
def run_failure_alert(context: dg.RunFailureSensorContext) -> None:
    """Post every failed run to ALERT_WEBHOOK_URL."""
    run = context.dagster_run
    send_alert(
        "error",
        f"{run.job_name} failed: {context.failure_event.message}"[:1_000],
        {"run_id": run.run_id, "job": run.job_name, "link": f"/runs/{run.run_id}"},
    )


def send_alert(severity: str, message: str, context: dict[str, str]) -> bool:
    """Post an alert; a sensor that raised would lose its event, so failures are logged instead.

    Returns:
        Whether a receiver took it; False also when none is configured or it is not severe enough.
    """
    address = read_variable("ALERT_WEBHOOK_URL")
    least = read_choice("ALERT_MIN_SEVERITY", SEVERITIES)
    if not address or SEVERITIES.index(severity) < SEVERITIES.index(least):
        return False
    body: dict[str, object] = {"severity": severity, "message": message, "context": context}
    return any(_post(address, body) for _ in range(_TRIES))


def _post(address: str, body: dict[str, object]) -> bool:
    try:
        httpx.post(address, json=body, timeout=_TIMEOUT_SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        # The address is a secret, and httpx repeats it in its messages.
        logger.warning("an alert could not be delivered: %s", type(error).__name__)
        return False
    return True
