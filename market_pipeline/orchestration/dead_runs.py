"""Dead runs: runs that Dagster still shows as started although their process is gone.

A living run holds a lock in a session, which ends with its process, and it writes events. A run
that shows neither at two looks in a row is ended, and its slots are freed. Dagster's default
launcher does not watch its processes: without this, such a run would stay *Started*, and hold a
slot, for ever. Runs of other jobs and code locations never held such a lock and are not touched.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import dagster as dg
from dagster import DagsterRunStatus, RunsFilter
from sqlalchemy import Connection

from market_pipeline.domain.triggers import ALIVE_TAGS
from market_pipeline.ingestion.closing import INTERRUPTED
from market_pipeline.orchestration.executor import close_receipt
from market_pipeline.storage.runs.claims import find_living

SILENT_SECONDS = 45.0
_STATUSES = [DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
_LIMIT = 200


@dataclass(frozen=True, slots=True)
class DeadRunScan:
    """What one look saw: the runs that showed no life, for the next look to confirm."""

    suspects: tuple[str, ...] = ()

    @classmethod
    def read(cls, cursor: str | None) -> "DeadRunScan":
        """Return the look that a sensor's cursor keeps; none where it cannot be read."""
        try:
            return cls(tuple(json.loads(cursor or "[]")))
        except (ValueError, TypeError):
            return cls()

    def write(self) -> str:
        """Return the cursor that keeps it."""
        return json.dumps(list(self.suspects))


def mark_as_watched(instance: dg.DagsterInstance, run_id: str) -> None:
    """Mark a run as one that shows its life by a lock, also if no job of ours began it."""
    instance.add_run_tags(run_id, ALIVE_TAGS)


def end_dead_runs(
    instance: dg.DagsterInstance, connection: Connection, before: DeadRunScan
) -> tuple[DeadRunScan, list[str]]:
    """End the runs that showed no life at the look before and show none now.

    Returns:
        This look, and the runs that were ended.
    """
    silent = _find_silent(instance, connection)
    dead = [run_id for run_id in silent if run_id in before.suspects]
    for run_id in dead:
        _end_run(instance, connection, silent[run_id])
    return DeadRunScan(tuple(run_id for run_id in silent if run_id not in dead)), dead


def _find_silent(
    instance: dg.DagsterInstance, connection: Connection
) -> Mapping[str, dg.DagsterRun]:
    """Return the runs whose lock is free and whose last event is old."""
    filters = RunsFilter(statuses=_STATUSES, tags=ALIVE_TAGS)
    runs = {run.run_id: run for run in instance.get_runs(filters, limit=_LIMIT)}
    living = find_living(connection, [UUID(run_id) for run_id in runs])
    return {
        run_id: run
        for run_id, run in runs.items()
        if UUID(run_id) not in living and _has_been_silent(instance, run_id)
    }


def _has_been_silent(instance: dg.DagsterInstance, run_id: str) -> bool:
    records = instance.get_records_for_run(run_id, limit=1, ascending=False).records
    return not records or time.time() - records[0].timestamp > SILENT_SECONDS


def _end_run(instance: dg.DagsterInstance, connection: Connection, run: dg.DagsterRun) -> None:
    latest = instance.get_run_by_id(run.run_id)
    if latest is None or latest.is_finished:
        return
    close_receipt(connection, latest, INTERRUPTED)
    instance.report_run_failed(latest, message=INTERRUPTED)
    if instance.event_log_storage.supports_global_concurrency_limits:
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
