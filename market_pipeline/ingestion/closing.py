"""The end of a run: its receipt is closed, once, and what it came to is added to the totals.

Whoever runs the steps calls it, whatever becomes of them; whoever finds a run dead does it for it.
"""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from market_pipeline.observability.metrics import Sample
from market_pipeline.observability.run_metrics import (
    BARS,
    CALLS,
    CHANGES,
    DURATION,
    ERRORS,
    FAILURE,
    FATES,
    PARTIAL,
    REQUESTS,
    ROWS,
    SUCCESS,
    THROTTLED,
    UNKNOWN,
)
from market_pipeline.storage.metric_totals import add_totals
from market_pipeline.storage.tables import SCHEMA

_OUTCOMES = {"ok": SUCCESS, "partial": PARTIAL, "failed": FAILURE}

_CLOSE = text(f"""
    UPDATE {SCHEMA}.ingestion_run SET ended_at = clock_timestamp(),
        completed_at = coalesce(completed_at, clock_timestamp()),
        outcome = CASE WHEN :has_failed THEN 'failed' ELSE coalesce(outcome, 'ok') END
    WHERE run_id = :run_id AND ended_at IS NULL
    RETURNING trigger, provider, outcome, extract(epoch FROM ended_at - started_at)::float8 seconds
""")  # noqa: S608 - a constant
_EXISTS = text(f"SELECT 1 FROM {SCHEMA}.ingestion_run WHERE run_id = :run_id")  # noqa: S608
_TABLES = text(f"""
    SELECT table_name, inserted, updated, unchanged FROM {SCHEMA}.ingestion_run_table
    WHERE run_id = :run_id
""")  # noqa: S608 - a constant
_MARKETS = text(f"""
    SELECT provider, sum(received) received, sum(revised) revised, sum(quarantined) quarantined,
        sum(calls) calls, sum(throttled_calls) throttled
    FROM {SCHEMA}.ingestion_run_market JOIN {SCHEMA}.market USING (market_id)
    WHERE run_id = :run_id GROUP BY provider
""")  # noqa: S608 - a constant
_REQUESTS = text(f"""
    SELECT provider, array_agg(seconds) seconds, count(error) errors
    FROM {SCHEMA}.ingestion_request JOIN {SCHEMA}.market USING (market_id)
    WHERE run_id = :run_id GROUP BY provider
""")  # noqa: S608 - a constant


def close_run(
    connection: Connection, run_id: UUID, trigger: str, has_failed: bool, is_ingestion: bool
) -> None:
    """Close a run's receipt and count the run; done again it changes nothing.

    Args:
        connection: In a transaction.
        run_id: The run.
        trigger: What started it, for a run that failed before it had a receipt.
        has_failed: A step failed, or the run was ended.
        is_ingestion: It was to fetch bars, so that it counts without a receipt too.
    """
    closed = connection.execute(_CLOSE, {"run_id": run_id, "has_failed": has_failed}).one_or_none()
    if closed is not None:
        add_totals(connection, list(_count(connection, run_id, closed)))
    elif (
        has_failed and is_ingestion and not connection.execute(_EXISTS, {"run_id": run_id}).scalar()
    ):
        add_totals(connection, [FAILURE.sample(1, trigger=trigger, provider=UNKNOWN)])


def _count(connection: Connection, run_id: UUID, closed: Row[Any]) -> Iterator[Sample]:
    run = {"run_id": run_id}
    yield _OUTCOMES[closed.outcome].sample(1, trigger=closed.trigger, provider=closed.provider)
    yield DURATION.observe_all([closed.seconds], trigger=closed.trigger)
    for row in connection.execute(_TABLES, run):
        for change in CHANGES:
            yield ROWS.sample(getattr(row, change), table=row.table_name, change=change)
    for row in connection.execute(_MARKETS, run):
        for fate in FATES:
            yield BARS.sample(float(getattr(row, fate)), provider=row.provider, fate=fate)
        yield CALLS.sample(float(row.calls), provider=row.provider)
        yield THROTTLED.sample(float(row.throttled), provider=row.provider)
    for row in connection.execute(_REQUESTS, run):
        yield REQUESTS.observe_all(row.seconds, provider=row.provider)
        yield ERRORS.sample(row.errors, provider=row.provider)
