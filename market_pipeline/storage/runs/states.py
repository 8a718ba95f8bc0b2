"""How a run stands: by its receipt's end, or by whether its process lives; and whom it missed.

Derived whenever a receipt is read, so that it is true at that moment; reading writes nothing.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from market_pipeline.storage.runs.claims import build_is_living
from market_pipeline.storage.tables import (
    ingestion_run,
    ingestion_run_market,
    market,
)

# Of a receipt ``run``: its outcome once it has ended, before that ``running`` or ``interrupted``.
STATE = f"""CASE WHEN run.ended_at IS NOT NULL THEN run.outcome
    WHEN {build_is_living("run.run_id")} THEN 'running' ELSE 'interrupted' END"""
# Receipts of before the assets were noted count as of bars when they have a market.
_FETCHES = f"""coalesce(run.request -> 'assets' ? 'market_aggregates',
    run.outcome IS DISTINCT FROM 'ok' AND EXISTS (
        SELECT FROM {ingestion_run_market.fullname} part WHERE part.run_id = run.run_id))"""
# A run that ended well came to all its markets; one that was purged since is no longer named.
_MAY_MISS = f"({_FETCHES} AND (run.ended_at IS NULL OR run.outcome = 'failed'))"
# How many markets a run ``run`` was to fetch, as far as their lines may be missing.
ASKED_MARKETS = f"""CASE WHEN {_MAY_MISS} THEN jsonb_array_length(run.request -> 'symbols')
    - jsonb_array_length(coalesce(run.request -> 'deactivated', '[]')) ELSE 0 END"""
_ABSENT = text(f"""
    SELECT symbol, CASE WHEN unserved IS NULL THEN 'missing' ELSE 'failed' END AS outcome,
        coalesce(unserved, CASE {STATE} WHEN 'running' THEN 'the run has not come to it yet'
            ELSE 'the run ended before it came to this market' END) AS reason
    FROM {ingestion_run.fullname} run
    CROSS JOIN LATERAL jsonb_array_elements_text(run.request -> 'symbols')
        WITH ORDINALITY AS asked (symbol, place)
    CROSS JOIN LATERAL (SELECT run.request -> 'unserved' ->> symbol AS unserved) told
    WHERE run.run_id = :run_id AND (unserved IS NOT NULL OR {_MAY_MISS})
        AND NOT coalesce(run.request -> 'deactivated' ? symbol, false)
        AND NOT EXISTS (
            SELECT FROM {ingestion_run_market.fullname} part JOIN {market.fullname} named
                USING (market_id)
            WHERE part.run_id = run.run_id AND (named.symbol = asked.symbol
                OR asked.symbol = ANY(named.former_symbols)))
    ORDER BY place
""")


def read_absent_markets(connection: Connection, run_id: UUID) -> list[dict[str, Any]]:
    """Return the symbols that a run was to fetch and has no market's receipt of, in order.

    Returns:
        Mappings of ``symbol``, ``outcome`` and ``reason``: ``failed`` where no provider serves the
        symbol, else ``missing``.
    """
    return [dict(row) for row in connection.execute(_ABSENT, {"run_id": run_id}).mappings()]
