"""The jobs and their schedules. The sensors are in ``sensors``."""

from datetime import UTC, datetime
from itertools import islice
from operator import sub
from uuid import UUID, uuid5

import dagster as dg

from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.triggers import ALIVE_TAGS
from market_pipeline.ingestion.request import build_request
from market_pipeline.ingestion.ticks import open_tick
from market_pipeline.orchestration.causes import told_plainly
from market_pipeline.orchestration.dagster_internals import (
    is_valid_cron_string,
    iterate_past_ticks,
    read_schedule_switch,
)
from market_pipeline.orchestration.resources import Database
from market_pipeline.settings import name_errors, read_flag, read_shards, read_variable, shorten
from market_pipeline.storage.runs.retention import prune
from market_pipeline.storage.server.database import open_database

SCHEDULE = "ingest_schedule"
_TICKS = UUID("f6a1c1c6-7c5e-4b0b-9a53-1f0e6d7f2b4e")
_PRUNE_CRON = "40 3 * * *"
# A week of every quarter of an hour.
_TICKS_OF_A_WEEK = 700

ingest_job = dg.define_asset_job(
    "ingest",
    selection=dg.AssetSelection.all(),
    description="Fetch, store and analyse every configured market, once.",
    tags=ALIVE_TAGS,
)


@dg.op
@told_plainly()
def prune_old_rows(context: dg.OpExecutionContext, database: Database) -> None:
    """Remove receipts of runs without change and thin snapshots, both after 90 days."""
    removed = prune(database.engine, datetime.now(UTC))
    context.log.info(
        "%d receipts, %d snapshots and %d alerts removed",
        removed.receipts, removed.snapshots, removed.alerts,
    )  # fmt: skip


@dg.op
@told_plainly()
def prune_dagster_runs(context: dg.OpExecutionContext) -> None:
    """Remove Dagster's own runs and events after DAGSTER_RETENTION_DAYS; Dagster keeps them all."""
    # Imported when first needed: Dagster's storage costs 0.15 s.
    from market_pipeline.orchestration.dagster_history import find_cutoff, prune_runs

    cutoff = find_cutoff(datetime.now(UTC))
    if cutoff is not None:
        context.log.info("%d of Dagster's runs removed", prune_runs(context.instance, cutoff))


@dg.job(description="Remove old receipts without change, old snapshots and Dagster's old runs.")
def prune_history() -> None:
    """Keep tables from growing with what nobody can need again."""
    prune_old_rows()
    prune_dagster_runs()


def read_cron_expression() -> str:
    """Return when the schedule runs.

    Here and not in the settings, because Dagster decides what a cron expression is.

    Raises:
        SettingError: INGESTION_CRON_EXPRESSION is not a five-field cron expression.
    """
    text = read_variable("INGESTION_CRON_EXPRESSION")
    with name_errors(f"INGESTION_CRON_EXPRESSION={shorten(text)!r}"):
        if not is_valid_cron_string(text):
            raise SettingError("expected five cron fields, such as */15 * * * *")
    return text


def build_schedule() -> dg.ScheduleDefinition:
    """Return the ingestion schedule.

    Raises:
        SettingError: INGESTION_CRON_EXPRESSION or INGESTION_SHARDS is wrong.
    """
    return dg.ScheduleDefinition(
        name=SCHEDULE,
        job=ingest_job,
        execution_fn=open_scheduled_tick if read_shards() > 1 else None,
        cron_schedule=read_cron_expression(),
        execution_timezone="UTC",
        default_status=_choose_status(),
        description="Runs ingest by INGESTION_CRON_EXPRESSION, if INGESTION_SCHEDULE_ENABLED.",
    )


def open_scheduled_tick(context: dg.ScheduleEvaluationContext) -> dg.SkipReason:
    """Open a tick that several runs share; asked again for the same moment, it stays one."""
    tick_id = uuid5(_TICKS, context.scheduled_execution_time.isoformat())
    request = build_request(datetime.now(UTC))
    with open_database() as engine:
        open_tick(engine, tick_id, request, "schedule", read_shards())
    return dg.SkipReason(f"tick {tick_id} is open: the sensor tick_watch launches its runs")


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


def find_last_ticks(now: datetime, count: int = 3) -> list[datetime]:
    """Return the schedule's last ticks before now, the newest first (UTC).

    Raises:
        SettingError: INGESTION_CRON_EXPRESSION is no cron expression.
    """
    return list(islice(iterate_past_ticks(read_cron_expression(), now), count))


def build_freshness_policy(now: datetime) -> dg.FreshnessPolicy:
    """Return when an asset counts as stale: when two ticks of the schedule brought nothing.

    So the alert ``no_run`` counts, too. Where pauses differ (no runs at weekends), the longest
    counts: Dagster knows one length alone, and a fresh asset must not be called stale.

    Raises:
        SettingError: INGESTION_CRON_EXPRESSION is no cron expression.
    """
    ticks = find_last_ticks(now, _TICKS_OF_A_WEEK)
    return dg.FreshnessPolicy.time_window(max(map(sub, ticks, ticks[2:])))


def is_schedule_on(instance: dg.DagsterInstance) -> bool:
    """Tell whether the ingestion schedule runs: by the UI's switch, else by the setting."""
    switch = read_schedule_switch(instance, SCHEDULE)
    return read_flag("INGESTION_SCHEDULE_ENABLED") if switch is None else switch
