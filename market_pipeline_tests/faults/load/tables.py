"""The tables after the load: each receipt, key, bar and tick of the schedule is there, once."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from market_pipeline.storage.server.watchdog import allow
from market_pipeline_tests.faults.invariants import assert_invariants
from market_pipeline_tests.faults.load.answers import Notes
from market_pipeline_tests.faults.load.parts import LOAD_END, Parts

DRAIN_SECONDS = 1800.0
AT_WORK = """SELECT run_id FROM dagster.runs
    WHERE status IN ('NOT_STARTED', 'QUEUED', 'STARTING', 'STARTED', 'CANCELING')"""
# A run whose process died before it wrote anything gets its receipt when that is noticed.
RECEIPTS = """SELECT run.run_id, ended_at, outcome, error,
        coalesce(to_timestamp(start_time), create_timestamp AT TIME ZONE 'UTC') AS began_at
    FROM dagster.runs run
    LEFT JOIN market_data.ingestion_run receipt ON run.run_id = receipt.run_id::text
    WHERE pipeline_name IN ('ingest', 'backfill_history', 'statistics')"""
# A run whose process was lost is repeated by Dagster (run_retries), under the same tags.
TWICE = """SELECT value, count(*) FROM dagster.run_tags launch WHERE key = 'market_pipeline/launch'
    AND NOT EXISTS (SELECT FROM dagster.run_tags parent
        WHERE parent.run_id = launch.run_id AND parent.key = 'dagster/parent_run_id')
    GROUP BY 1 HAVING count(*) > 1"""
BARS = """SELECT symbol, interval, count(*) AS bars, min(open_time) AS first
    FROM market_data.market_aggregate JOIN market_data.market USING (market_id)
    WHERE symbol LIKE 'LOAD%' AND is_final AND interval <> '1w' GROUP BY 1, 2"""
TICKS = """SELECT timestamp AS due, status, tick_body FROM dagster.job_ticks
    WHERE tick_body LIKE '%"ingest_schedule"%' ORDER BY due"""
SCHEDULED = """SELECT value AS moment, status FROM dagster.run_tags JOIN dagster.runs USING (run_id)
    WHERE key = '.dagster/scheduled_execution_time' AND pipeline_name = 'ingest'"""


async def wait_for_the_queue(parts: Parts) -> None:
    """Turn the schedule off, and wait until every run has ended."""
    parts.run("dagster", "schedule", "stop", "ingest_schedule", "-w", "workspace.yaml")
    async with asyncio.timeout(DRAIN_SECONDS):
        while _read(parts.engine, AT_WORK):
            parts.dev.check_running()
            await asyncio.sleep(1)


def judge_tables(parts: Parts, notes: Notes) -> Iterator[str]:
    """Yield one line for each thing that is not as it must be."""
    yield from _judge_receipts(parts.engine, notes)
    yield from _judge_loads(parts)
    for row in _read(parts.engine, TWICE):
        yield f"a launch came to {row['count']} runs: {row['value']}"
    for key, runs in notes.runs_by_key.items():
        if len(runs) > 1:
            yield f"the key {key} came to {len(runs)} runs: {sorted(runs)}"
    parts.run("market-pipeline", "ingest")
    try:
        with allow("bulk"):
            assert_invariants(parts.engine, is_repaired=True, is_closed=True)
    except AssertionError as error:
        yield str(error)


def _judge_receipts(engine: Engine, notes: Notes) -> Iterator[str]:
    receipts = {row["run_id"]: row for row in _read(engine, RECEIPTS)}
    for run_id in sorted((notes.runs | notes.failed_runs) - receipts.keys()):
        yield f"run {run_id} was accepted and is not there"
    for run_id, row in receipts.items():
        if row["ended_at"] is None:
            yield f"run {run_id} of {row['began_at']:%H:%M:%S} has no receipt with an end"
        elif row["outcome"] != "ok":
            span = row["began_at"].timestamp(), row["ended_at"].timestamp()
            told = f"run {run_id}: {row['outcome']} while the database was up: {row['error']}"
            yield from () if notes.is_excused(*span) else (told,)


def _judge_loads(parts: Parts) -> Iterator[str]:
    since = parts.load_start
    days = (LOAD_END - since).days
    found = {(row["symbol"], row["interval"]): row for row in _read(parts.engine, BARS)}
    for symbol in [symbol for load in parts.loads for symbol in load]:
        for interval, expected in (("1h", 24 * days), ("1d", days)):
            row = found.get((symbol, interval))
            if row is None or (row["bars"], row["first"]) != (expected, since):
                yield f"{symbol} {interval}: {row}, not {expected:,} bars since {since:%Y-%m-%d}"


def judge_ticks(engine: Engine, notes: Notes, began: float, ended: float) -> tuple[str, list[str]]:
    """Return how many minutes of a span had the schedule's run, and those without a reason."""
    runs = {row["moment"][:16] for row in _read(engine, SCHEDULED)}
    ticks = {f"{row['due']:%Y-%m-%dT%H:%M}": row for row in _read(engine, TICKS)}
    due = {
        datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M"): second
        for second in range((int(began) // 60 + 1) * 60, int(ended), 60)
    }
    wrong = []
    for minute in due.keys() - runs:
        tick = ticks.get(minute, {"status": "missing", "tick_body": ""})
        # A tick that lost its database is left to the next one, where that is due already.
        is_lost = notes.is_excused(due[minute], due[minute] + 60) and max(runs, default="") > minute
        if not is_lost and '"message"' not in tick["tick_body"]:
            wrong.append(f"the tick of {minute} is {tick['status']} without a run or a reason")
    return f"{len(due.keys() & runs)} of {len(due)} minutes have the schedule's run", wrong


def _read(engine: Engine, query: str) -> list[dict[str, Any]]:
    for _ in range(3):
        try:
            with engine.connect() as connection:
                return [dict(row) for row in connection.execute(text(query)).mappings()]
        except OperationalError:
            time.sleep(1)
    raise AssertionError("the database does not answer after the load")
