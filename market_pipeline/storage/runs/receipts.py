"""Receipts of runs and ticks: what was asked, the results by market and table, and the state.

A tick has one receipt, made of those of its runs (``parts``). Listings show it instead of them.

How a run stands is found whenever a receipt is read, so that it is true at that moment: by the end
of its receipt, before that by whether its process lives. Reading writes nothing.
Not here: how a receipt is written (``ingestion.receipts``) and closed (``closing``).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import pandas as pd
from sqlalchemy import Connection, TextClause, func, literal_column, select, text

from market_pipeline.storage.ledgers import ingestion_request
from market_pipeline.storage.rows import Row, fetch, read_frame
from market_pipeline.storage.runs.claims import build_is_living
from market_pipeline.storage.runs.ticks import NEWEST_RUNS
from market_pipeline.storage.tables import ingestion_run, ingestion_run_market

# Of a receipt ``run``: its outcome once it has ended, before that ``running`` or ``interrupted``.
STATE = f"""CASE WHEN run.ended_at IS NOT NULL THEN run.outcome
    WHEN {build_is_living("run.run_id")} THEN 'running' ELSE 'interrupted' END"""
# Why a tick came short, part by part.
_PART_ERROR = """CASE WHEN run.run_id IS NULL THEN 'did not begin' ELSE run.error END"""
_PART_NAME = "CASE expected.shard WHEN 0 THEN 'derive' ELSE 'shard ' || expected.shard END"
# What became of the parts of a tick: of each its newest run counts, but all of them wrote.
_SUM_OF_PARTS = f"""
    SELECT max(run.completed_at) AS completed_at, bool_and(run.outcome = 'ok') IS TRUE AS is_ok,
        bool_or(run.outcome IN ('ok', 'partial') AND expected.shard > 0) IS TRUE AS is_usable,
        bool_or(run.run_id IS NULL OR run.outcome = 'failed') AS may_miss,
        string_agg({_PART_NAME} || ': ' || {_PART_ERROR}, '; ' ORDER BY expected.shard) AS error,
        array(SELECT run_id FROM market_data.ingestion_run WHERE tick_id = tick.tick_id
            ORDER BY started_at) AS parts,
        (SELECT jsonb_object_agg(symbol, asked) FROM market_data.ingestion_run told,
            jsonb_each(told.request -> 'unserved') AS unserved (symbol, asked)
            WHERE tick_id = tick.tick_id) AS unserved,
        (SELECT jsonb_agg(DISTINCT symbol) FROM market_data.ingestion_run told,
            jsonb_array_elements(told.request -> 'deactivated') AS symbol
            WHERE tick_id = tick.tick_id) AS deactivated
    FROM unnest(tick.filled_shards || 0) AS expected (shard)
    LEFT JOIN LATERAL ({NEWEST_RUNS}) run USING (shard)"""
_RECEIPTS = f"""(
    SELECT run_id, trigger, provider, started_at, completed_at, ended_at, {STATE} AS outcome, error,
        request, ARRAY[run_id] AS parts, tick_id IS NULL AS is_listed,
        ended_at IS NULL OR outcome = 'failed' AS may_miss
    FROM market_data.ingestion_run run
    UNION ALL
    SELECT tick_id, trigger, provider, started_at, told.completed_at, ended_at,
        CASE WHEN ended_at IS NULL THEN 'running' WHEN told.is_ok THEN 'ok'
            WHEN told.is_usable THEN 'partial' ELSE 'failed' END,
        CASE WHEN ended_at IS NOT NULL THEN told.error END,
        request || jsonb_build_object('unserved', coalesce(told.unserved, '{{}}'),
            'deactivated', coalesce(told.deactivated, '[]')),
        told.parts, true, ended_at IS NULL OR told.may_miss
    FROM market_data.ingestion_tick tick CROSS JOIN LATERAL ({_SUM_OF_PARTS}) told
)"""
_COLUMNS = "run_id, trigger, provider, started_at, completed_at, ended_at, outcome, error, request"
_BY_ID = text(f"SELECT {_COLUMNS} FROM {_RECEIPTS} run WHERE run_id = :run_id")
_NEWEST = text(f"""
    SELECT {_COLUMNS} FROM {_RECEIPTS} run WHERE is_listed ORDER BY started_at DESC LIMIT :count
""")
# A market's line of a receipt ``run``: where several runs came to it, that of the last.
_LINES = """(
    SELECT DISTINCT ON (market_id) line.* FROM market_data.ingestion_run_market line
    JOIN market_data.ingestion_run its USING (run_id)
    WHERE run_id = ANY(run.parts) ORDER BY market_id, its.started_at DESC)"""
# Receipts of before the assets were noted count as of bars when they have a market.
_FETCHES = """coalesce(run.request -> 'assets' ? 'market_aggregates',
    run.outcome IS DISTINCT FROM 'ok' AND EXISTS (
        SELECT FROM market_data.ingestion_run_market part WHERE part.run_id = run.run_id))"""
# A run that ended well came to all its markets; one that was purged since is no longer named.
_MAY_MISS = f"({_FETCHES} AND run.may_miss)"
# How many markets a run ``run`` was to fetch, as far as their lines may be missing.
_ASKED_MARKETS = f"""CASE WHEN {_MAY_MISS} THEN jsonb_array_length(run.request -> 'symbols')
    - jsonb_array_length(coalesce(run.request -> 'deactivated', '[]')) ELSE 0 END"""
# The symbols that a run was to fetch and has no market's receipt of.
_ABSENT = text(f"""
    SELECT symbol, CASE WHEN unserved IS NULL THEN 'missing' ELSE 'failed' END AS outcome,
        coalesce(unserved, CASE run.outcome WHEN 'running' THEN 'the run has not come to it yet'
            ELSE 'the run ended before it came to this market' END) AS reason
    FROM {_RECEIPTS} run
    CROSS JOIN LATERAL jsonb_array_elements_text(run.request -> 'symbols')
        WITH ORDINALITY AS asked (symbol, place)
    CROSS JOIN LATERAL (SELECT run.request -> 'unserved' ->> symbol AS unserved) told
    WHERE run.run_id = :run_id AND (unserved IS NOT NULL OR {_MAY_MISS})
        AND NOT coalesce(run.request -> 'deactivated' ? symbol, false)
        AND NOT EXISTS (
            SELECT FROM market_data.ingestion_run_market part
            JOIN market_data.market named USING (market_id)
            WHERE part.run_id = ANY(run.parts) AND (named.symbol = asked.symbol
                OR asked.symbol = ANY(named.former_symbols)))
    ORDER BY place
""")
# By the key of the receipts: those of a day are few.
_DONE_LATER = text("""
    SELECT part.run_id FROM market_data.ingestion_run run
    JOIN market_data.ingestion_run_market part USING (run_id)
    WHERE run.completed_at > clock_timestamp() - interval '1 day' AND part.market_id = :market_id
        AND part.outcome = 'ok' AND part.claim_token > :token LIMIT 1
""")
_ENDS = ("ok", "partial", "failed")
_SUMMED = (
    "requested", "received", "inserted", "updated", "unchanged", "derived_inserted",
    "derived_updated", "derived_unchanged", "revised", "quarantined", "holes_left", "calls",
)  # fmt: skip
_TOTALS = f"""
    greatest(count(market_id) + (SELECT count(*)
        FROM jsonb_object_keys(coalesce(run.request -> 'unserved', '{{}}'))), {_ASKED_MARKETS})
        AS markets,
    {", ".join(f"count(*) FILTER (WHERE part.outcome = '{name}') AS {name}" for name in _ENDS)},
    {", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in _SUMMED)},
    min(first_version) AS first_version,
    max(last_version) AS last_version,
    (SELECT coalesce(sum(inserted + updated), 0)::bigint
        FROM market_data.ingestion_run_table written
        WHERE written.run_id = ANY(run.parts)) AS rows_written
"""


def _sum_up(chosen: str) -> TextClause:
    # Runs with the sums of their receipts, the newest first.
    return text(f"""
        SELECT {_COLUMNS}, parts, sums.*
        FROM (SELECT * FROM {_RECEIPTS} receipt WHERE {chosen}) run
        CROSS JOIN LATERAL (SELECT {_TOTALS} FROM {_LINES} part) sums
        ORDER BY started_at DESC
    """)


_SUMS_OF_LAST = _sum_up("is_listed ORDER BY started_at DESC LIMIT :count")
_SUMS_OF_RUN = _sum_up("run_id = :run_id")


def _list_markets(order: str) -> TextClause:
    # The receipt by market.
    return text(f"""
        SELECT market.symbol, market.provider, part.*
        FROM (SELECT parts FROM {_RECEIPTS} receipt WHERE run_id = :run_id) run
        CROSS JOIN LATERAL {_LINES} part JOIN market_data.market USING (market_id)
        ORDER BY {order} LIMIT :count
    """)


_MARKETS = _list_markets("symbol, provider")
_FAILED_FIRST = _list_markets(
    "array_position(ARRAY['failed', 'partial', 'ok'], part.outcome), symbol, provider"
)
_KEYS = frozenset({"run_id", "market_id", "claim_token"})
# The receipt of the last run that came to a market.
_LAST_OF_MARKET = text(f"""
    SELECT run.run_id, run.started_at, {STATE} AS run_outcome, part.outcome, part.reason,
        part.inserted, part.updated, part.holes_left, part.quarantined
    FROM market_data.ingestion_run run JOIN market_data.ingestion_run_market part USING (run_id)
    WHERE part.market_id = :market_id ORDER BY run.started_at DESC LIMIT 1
""")
_MARKET_COLUMNS = [
    *("symbol", "provider"),
    *(part.name for part in ingestion_run_market.c if part.name not in _KEYS),
]
# The receipt by table: all its runs have written.
_TABLES = text(f"""
    SELECT table_name, sum(inserted)::int AS inserted, sum(updated)::int AS updated,
        sum(unchanged)::int AS unchanged
    FROM (SELECT parts FROM {_RECEIPTS} receipt WHERE run_id = :run_id) run
    JOIN market_data.ingestion_run_table written ON written.run_id = ANY(run.parts)
    GROUP BY table_name ORDER BY table_name
""")
_RUN = ingestion_run.alias("run")


def read_last_run_id(connection: Connection) -> UUID | None:
    """Return the run or tick that began last."""
    return connection.execute(_NEWEST, {"count": 1}).scalar()


def read_last_start(connection: Connection) -> datetime | None:
    """Return when the newest run with a receipt began (UTC)."""
    return connection.execute(select(func.max(ingestion_run.c.started_at))).scalar()


def read_runs(connection: Connection, limit: int) -> pd.DataFrame:
    """Return the receipts of the last runs, newest first; ``outcome`` as of :func:`read_run`."""
    return read_frame(connection, _NEWEST, count=limit)


def read_run(connection: Connection, run_id: UUID) -> Row | None:
    """Return a run's or a tick's own line of its receipt; None where there is none.

    ``outcome`` is ``ok``, ``partial`` or ``failed`` once the run has ended; before that it is
    ``running`` while its process lives, and ``interrupted`` when it does not. A tick is ``running``
    until the last of its runs has ended, and ``failed`` when no shard came to anything.
    """
    return next(iter(fetch(connection, _BY_ID, run_id=run_id)), None)


def read_receipts(connection: Connection, run_ids: Sequence[UUID]) -> list[Row]:
    """Return run_id, trigger, started_at and outcome of runs, the first begun first."""
    state: Any = literal_column(STATE).label("outcome")
    query = select(_RUN.c.run_id, _RUN.c.trigger, _RUN.c.started_at, state)
    chosen = query.where(_RUN.c.run_id.in_(list(run_ids))).order_by(_RUN.c.started_at)
    return fetch(connection, chosen)


def read_run_outcome(connection: Connection, run_id: UUID) -> str | None:
    """Return the ``outcome`` of :func:`read_run`; None for a run that wrote no receipt."""
    run = read_run(connection, run_id)
    return None if run is None else run["outcome"]


def find_later_receipt(connection: Connection, market_id: int, token: int) -> UUID | None:
    """Return a run of the last day that did all work on a market under a later claim, if any."""
    return connection.execute(_DONE_LATER, {"market_id": market_id, "token": token}).scalar()


def read_run_with_totals(connection: Connection, run_id: UUID) -> Row | None:
    """Return a run or tick with what it was asked, the sums of its receipt, and its runs."""
    return next(iter(fetch(connection, _SUMS_OF_RUN, run_id=run_id)), None)


def read_run_totals(connection: Connection, count: int) -> list[Row]:
    """Return the last runs with the sums of their receipts, the newest first."""
    return fetch(connection, _SUMS_OF_LAST, count=count)


def read_absent_markets(connection: Connection, run_id: UUID) -> list[Row]:
    """Return the symbols that a run was to fetch and has no market's receipt of, in order.

    With ``outcome`` and ``reason``: ``failed`` where no provider serves the symbol, else
    ``missing``.
    """
    return fetch(connection, _ABSENT, run_id=run_id)


def read_fetched_markets(connection: Connection, run_id: UUID | None) -> list[Row]:
    """Return a run's receipt of the markets that it came to: ``symbol``, ``provider``, the rest."""
    return fetch(connection, _MARKETS, run_id=run_id, count=None)


def read_run_markets(connection: Connection, run_id: UUID) -> list[Row]:
    """Return a run's receipt by market; markets that were asked for without one come last."""
    rows = [*read_fetched_markets(connection, run_id), *read_absent_markets(connection, run_id)]
    return [{name: row.get(name) for name in _MARKET_COLUMNS} for row in rows]


def read_worst_markets(connection: Connection, run_id: UUID, count: int) -> list[Row]:
    """Return a run's receipt by market: absent ones first, then failed ones."""
    absent = [{"provider": None, **row} for row in read_absent_markets(connection, run_id)]
    return [*absent, *fetch(connection, _FAILED_FIRST, run_id=run_id, count=count)][:count]


def read_last_receipt(connection: Connection, market_id: int) -> Row | None:
    """Return what the last run that came to a market did for it; None: none has."""
    return next(iter(fetch(connection, _LAST_OF_MARKET, market_id=market_id)), None)


def count_received(connection: Connection, run_id: UUID) -> int:
    """Return how many bars a run has received so far."""
    received = func.coalesce(func.sum(ingestion_run_market.c.received), 0)
    query = select(received).where(ingestion_run_market.c.run_id == run_id)
    return int(connection.execute(query).scalar_one())


def read_run_tables(connection: Connection, run_id: UUID) -> list[Row]:
    """Return a run's receipt by table."""
    return fetch(connection, _TABLES, run_id=run_id)


def read_requests(
    connection: Connection,
    run_ids: Sequence[UUID],
    market_id: int,
    interval: str,
    first: datetime,
    last: datetime,
) -> list[Row]:
    """Return the requests of runs for bars of a market that open in ``[first, last]``, in order."""
    asked = ingestion_request.c
    columns = (
        asked.run_id, asked.purpose, asked.starts_at, asked.ends_at, asked.asked_at,
        asked.seconds, asked.received, asked.error,
    )  # fmt: skip
    query = (
        select(*columns)
        .where(asked.run_id.in_(list(run_ids)), asked.market_id == market_id)
        .where(asked.interval == interval, asked.starts_at <= last, asked.ends_at > first)
        .order_by(asked.asked_at, asked.request_id)
    )
    return fetch(connection, query)
