"""The end of a receipt: closes it once, and returns the counts of the run.

Not here: the metrics that are made of it (``ingestion.closing``).
"""

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from market_pipeline.storage.runs.claims import build_is_living

# Closes a receipt, once, and says of what run.
_CLOSE = text("""
    UPDATE market_data.ingestion_run SET ended_at = clock_timestamp(),
        completed_at = coalesce(completed_at, clock_timestamp()), error = :error,
        outcome = CASE WHEN :error IS NULL THEN coalesce(outcome, 'ok') ELSE 'failed' END
    WHERE run_id = :run_id AND ended_at IS NULL
    RETURNING trigger, provider, outcome, extract(epoch FROM ended_at - started_at)::float8 seconds
""")
# The receipts without an end whose process is gone.
_DEAD = text(f"""
    SELECT run_id FROM market_data.ingestion_run run
    WHERE ended_at IS NULL AND NOT {build_is_living("run.run_id")} ORDER BY started_at
""")
# What a run counted, by provider.
_MARKETS = text("""
    SELECT provider, sum(received) received, sum(revised) revised, sum(quarantined) quarantined,
        sum(calls) calls, sum(throttled_calls) throttled
    FROM market_data.ingestion_run_market JOIN market_data.market USING (market_id)
    WHERE run_id = :run_id GROUP BY provider
""")
# How long the requests of a run took and how many failed, by provider.
_REQUESTS = text("""
    SELECT provider, array_agg(seconds) seconds, count(error) errors
    FROM market_data.ingestion_request JOIN market_data.market USING (market_id)
    WHERE run_id = :run_id GROUP BY provider
""")


def close_receipt(connection: Connection, run_id: UUID, error: str | None) -> Row[Any] | None:
    """Close a run's receipt, and return the run's ``trigger``, ``provider``, outcome and seconds.

    ``error`` is what ended it; None: no step failed. Returns None where there is no receipt, or it
    is closed already.
    """
    return connection.execute(_CLOSE, {"run_id": run_id, "error": error}).one_or_none()


def find_dead_runs(connection: Connection) -> list[UUID]:
    """Return the runs whose receipt has no end though their process is gone."""
    return list(connection.execute(_DEAD).scalars())


def count_bars_by_provider(connection: Connection, run_id: UUID) -> list[Row[Any]]:
    """Return what a run received, revised and refused, and its calls, by provider."""
    return list(connection.execute(_MARKETS, {"run_id": run_id}))


def read_request_times(connection: Connection, run_id: UUID) -> list[Row[Any]]:
    """Return the ``seconds`` of a run's requests and the number of ``errors``, by provider."""
    return list(connection.execute(_REQUESTS, {"run_id": run_id}))
