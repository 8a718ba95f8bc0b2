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
from market_pipeline.providers.registry import list_provider_names
from market_pipeline.storage.alerts.metric_totals import add_totals
from market_pipeline.storage.runs.claims import build_is_living
from market_pipeline.storage.tables import SCHEMA

_OUTCOMES = {"ok": SUCCESS, "partial": PARTIAL, "failed": FAILURE}
INTERRUPTED = (
    "interrupted: the run's process is gone: it was killed, ran out of memory, or its machine "
    "stopped. What it had committed stays, and the next run goes on from there"
)
_MAX_ERROR = 2_000

_CLOSE = text("""
    UPDATE market_data.ingestion_run SET ended_at = clock_timestamp(),
        completed_at = coalesce(completed_at, clock_timestamp()), error = :error,
        outcome = CASE WHEN :error IS NULL THEN coalesce(outcome, 'ok') ELSE 'failed' END
    WHERE run_id = :run_id AND ended_at IS NULL
    RETURNING trigger, provider, outcome, extract(epoch FROM ended_at - started_at)::float8 seconds
""")
_DEAD = text(f"""
    SELECT run_id FROM market_data.ingestion_run run
    WHERE ended_at IS NULL AND NOT {build_is_living("run.run_id")} ORDER BY started_at
""")  # noqa: S608 - constants
_TABLES = text("""
    SELECT table_name, inserted, updated, unchanged FROM market_data.ingestion_run_table
    WHERE run_id = :run_id
""")
_MARKETS = text(f"""
    SELECT provider, sum(received) received, sum(revised) revised, sum(quarantined) quarantined,
        sum(calls) calls, sum(throttled_calls) throttled
    FROM market_data.ingestion_run_market JOIN {SCHEMA}.market USING (market_id)
    WHERE run_id = :run_id GROUP BY provider
""")  # noqa: S608 - a constant
_REQUESTS = text(f"""
    SELECT provider, array_agg(seconds) seconds, count(error) errors
    FROM market_data.ingestion_request JOIN {SCHEMA}.market USING (market_id)
    WHERE run_id = :run_id GROUP BY provider
""")  # noqa: S608 - a constant


def close_run(connection: Connection, run_id: UUID, error: str | None) -> None:
    """Close a run's receipt and count the run; done again it changes nothing.

    Args:
        connection: In a transaction.
        run_id: The run; without a receipt nothing happens.
        error: What a step failed of, or what ended the run; None: no step failed.
    """
    told = None if error is None else error[:_MAX_ERROR]
    closed = connection.execute(_CLOSE, {"run_id": run_id, "error": told}).one_or_none()
    if closed is not None:
        add_totals(connection, list(_count(connection, run_id, closed)))


def find_dead_runs(connection: Connection) -> list[UUID]:
    """Return the runs whose receipt has no end though their process is gone."""
    return list(connection.execute(_DEAD).scalars())


def _count(connection: Connection, run_id: UUID, closed: Row[Any]) -> Iterator[Sample]:
    run = {"run_id": run_id}
    # What was asked for may be no provider at all: metrics do not repeat just any word.
    is_known = set(closed.provider.split(",")) <= set(list_provider_names())
    provider = closed.provider if is_known else UNKNOWN
    yield _OUTCOMES[closed.outcome].sample(1, trigger=closed.trigger, provider=provider)
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
