"""Ticks in Dagster: one run for each shard, then one for what needs all markets.

The row of a tick is the order, Dagster's runs are the state: after a crash the next look goes on
from there, and a run's key keeps it from being launched twice.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

import dagster as dg
from dagster import DagsterEventType, DagsterRunStatus, RunsFilter
from sqlalchemy import Engine

from market_pipeline.alerting.kinds import CHECK_FAILED, RUN_FAILED
from market_pipeline.alerting.raising import Finding, clear_member, report
from market_pipeline.domain.ticks import (
    DERIVING,
    SHARD_TAG,
    TICK_TAG,
    VERSION_TAG,
    TickPart,
    split_symbols,
)
from market_pipeline.domain.triggers import TRIGGER_TAG
from market_pipeline.ingestion.ticks import ASSETS, DERIVED
from market_pipeline.orchestration.causes import explain_run_failure
from market_pipeline.orchestration.executor import close_receipt
from market_pipeline.storage.runs.receipts import read_run
from market_pipeline.storage.runs.ticks import Tick, end_tick, read_parts

JOB = "ingest"
_WILL_RETRY, _PRIORITY = "dagster/will_retry", "dagster/priority"
_FETCHED = [name for name in ASSETS if name not in DERIVED]
Runs = Mapping[int, dg.DagsterRun]


def advance(instance: dg.DagsterInstance, tick: Tick) -> list[dg.RunRequest]:
    """Return the runs that a tick needs next: its shards, then the one that derives."""
    runs = read_newest_runs(instance, tick.tick_id)
    missing = [shard for shard in tick.filled_shards if shard not in runs]
    if missing:
        symbols = split_symbols(tick.request["symbols"], tick.shards)
        return [_request_run(tick, shard, symbols[shard]) for shard in missing]
    if DERIVING in runs or not all(is_over(instance, runs[shard]) for shard in tick.filled_shards):
        return []
    return [_request_run(tick, DERIVING, tick.request["symbols"])]


def finish(instance: dg.DagsterInstance, engine: Engine, tick: Tick) -> str | None:
    """End a tick whose runs have all ended, and tell how it did; return its outcome then."""
    runs = read_newest_runs(instance, tick.tick_id)
    parts = (*tick.filled_shards, DERIVING)
    if not all(shard in runs and is_over(instance, runs[shard]) for shard in parts):
        return None
    with engine.begin() as connection:
        for run in runs.values():
            close_receipt(connection, run, _find_error(instance, run))
        if not end_tick(connection, tick.tick_id):
            return None
        receipt = read_run(connection, tick.tick_id) or {}
        failed = [
            part for part in read_parts(connection, tick.tick_id) if part["outcome"] == "failed"
        ]
        if failed:
            report(connection, [_describe_failure(tick, failed)], datetime.now(UTC))
        else:
            clear_member(connection, (RUN_FAILED, CHECK_FAILED), JOB, datetime.now(UTC))
    outcome: str | None = receipt.get("outcome")
    return outcome


def is_over(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Tell whether a run has ended, and no other is to take its place."""
    is_decided = not instance.run_retries_enabled or _WILL_RETRY in run.tags
    if run.status is DagsterRunStatus.FAILURE and not is_decided:
        return False
    return run.is_finished and not run.is_complete_and_waiting_to_retry


def read_newest_runs(instance: dg.DagsterInstance, tick_id: UUID) -> dict[int, dg.DagsterRun]:
    """Return the newest run of each part: a retry takes its original's place.

    One that was created and never submitted does not count: a request for it submits it.
    """
    found: dict[int, dg.DagsterRun] = {}
    for run in instance.get_runs(RunsFilter(tags={TICK_TAG: str(tick_id)})):
        if run.status is not DagsterRunStatus.NOT_STARTED:
            found.setdefault(int(run.tags.get(SHARD_TAG, DERIVING)), run)
    return found


def _request_run(tick: Tick, shard: int, symbols: Sequence[str]) -> dg.RunRequest:
    part = TickPart(tick.tick_id, shard, tick.shards)
    asked = tick.request
    config = {
        "symbols": list(symbols),
        "provider": tick.provider,
        "lookback_days": asked["lookback_days"],
        "window_end": "" if asked["is_live"] else asked["window_end"],
        "is_default_routing": asked["is_default_routing"],
        "tick": str(part),
    }
    tags = {
        TICK_TAG: str(tick.tick_id),
        SHARD_TAG: str(shard),
        VERSION_TAG: tick.version,
        TRIGGER_TAG: tick.trigger,
        # A tick is ended before the next one is begun.
        _PRIORITY: str(int(shard == DERIVING)),
    }
    return dg.RunRequest(
        run_key=part.key,
        run_config={"resources": {"request": {"config": config}}},
        tags=tags,
        asset_selection=[dg.AssetKey(one) for one in (_FETCHED if shard else DERIVED)],
    )


def _find_error(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Return what ended a run; None: it ended well."""
    if run.status is DagsterRunStatus.SUCCESS:
        return None
    kinds = {DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED}
    records = instance.get_records_for_run(run.run_id, of_type=kinds, ascending=False).records
    event = records[0].event_log_entry.dagster_event if records else None
    if event is None:
        return str(run.status.value).lower()
    return explain_run_failure(instance, run.run_id, event)


def _describe_failure(tick: Tick, failed: Sequence[Mapping[str, object]]) -> Finding:
    told = "; ".join(
        f"{TickPart(tick.tick_id, int(str(part['shard'])), tick.shards).name}: {part['error']}"
        for part in failed
    )
    parts = len(tick.filled_shards) + 1
    message = f"tick {tick.tick_id}: {len(failed)} of {parts} runs failed: {told}"
    return Finding(
        RUN_FAILED,
        {JOB: told},
        subject=f"{JOB}:tick",
        message=message,
        context={"job": JOB, "tick": str(tick.tick_id), "trigger": tick.trigger},
        run_id=UUID(str(failed[0]["run_id"])),
    )
