"""Removal of Dagster's own runs and events, which Dagster never removes.

Not here: the market tables' retention (``storage.runs.retention``); ticks, which Dagster prunes
itself by ``dagster.yaml``.
"""

from datetime import datetime, timedelta

import dagster as dg

from market_pipeline.orchestration.dagster_internals import (
    delete_check_results,
    list_newest_check_runs,
)
from market_pipeline.orchestration.tick_logs import prune_tick_logs
from market_pipeline.settings import read_dagster_retention_days

_STATUS = dg.DagsterRunStatus
_FINISHED = [_STATUS.SUCCESS, _STATUS.FAILURE, _STATUS.CANCELED]


def find_cutoff(now: datetime) -> datetime | None:
    """Return the time (UTC) before which finished runs go; None when they are kept for ever."""
    days = read_dagster_retention_days()
    return now - timedelta(days=days) if days else None


def prune_runs(instance: dg.DagsterInstance, created_before: datetime) -> int:
    """Remove finished runs with all their events, what old ticks printed, and count the runs.

    Each run is a few small transactions, its events first: stopped at any moment, the next call
    goes on. Times are UTC.
    """
    doomed = list_prunable_runs(instance, created_before)
    for run_id in doomed:
        _delete_run(instance, run_id)
    prune_tick_logs(created_before)
    return len(doomed)


def list_prunable_runs(instance: dg.DagsterInstance, created_before: datetime) -> list[str]:
    """Return the finished runs that are old and tell nothing that is current.

    Runs that hold the newest materialisation, observation or check of an asset stay, so that the
    UI shows every asset as it is.
    """
    old = dg.RunsFilter(statuses=_FINISHED, created_before=created_before)
    kept = find_newest_runs(instance)
    return [run_id for run_id in instance.get_run_ids(old) if run_id not in kept]


def find_newest_runs(instance: dg.DagsterInstance) -> set[str]:
    """Return the runs that hold the newest event of an asset or of an asset check."""
    storage = instance.event_log_storage
    entries = [record.asset_entry for record in storage.get_asset_records()]
    newest = [
        record.run_id
        for entry in entries
        for record in (entry.last_materialization_record, entry.last_observation_record)
        if record is not None
    ]
    return {*newest, *list_newest_check_runs(instance)}


def _delete_run(instance: dg.DagsterInstance, run_id: str) -> None:
    instance.event_log_storage.delete_events(run_id)
    delete_check_results(instance, run_id)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.run_storage.delete_run(run_id)
