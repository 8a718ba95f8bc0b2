"""Receipts of runs: what was asked, the results by market and table, and the state of a run.

How a run stands is found whenever a receipt is read, so that it is true at that moment: by the end
of its receipt, before that by whether its process lives. Reading writes nothing.
Not here: how a receipt is written (``ingestion.receipts``) and closed (``closing``).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import pandas as pd
from sqlalchemy import Connection, Select, TextClause, func, literal_column, select, text

from market_pipeline.storage.ledgers import ingestion_request
from market_pipeline.storage.rows import Row, fetch, read_frame
from market_pipeline.storage.runs.claims import build_is_living
from market_pipeline.storage.tables import ingestion_run, ingestion_run_market, ingestion_run_table

# Of a receipt ``run``: its outcome once it has ended, before that ``running`` or ``interrupted``.
STATE = f"""CASE WHEN run.ended_at IS NOT NULL THEN run.outcome
    WHEN {build_is_living("run.run_id")} THEN 'running' ELSE 'interrupted' END"""
# Receipts of before the assets were noted count as of bars when they have a market.
_FETCHES = """coalesce(run.request -> 'assets' ? 'market_aggregates',
    run.outcome IS DISTINCT FROM 'ok' AND EXISTS (
        SELECT FROM market_data.ingestion_run_market part WHERE part.run_id = run.run_id))"""
# A run that ended well came to all its markets; one that was purged since is no longer named.
_MAY_MISS = f"({_FETCHES} AND (run.ended_at IS NULL OR run.outcome = 'failed'))"
# How many markets a run ``run`` was to fetch, as far as their lines may be missing.
_ASKED_MARKETS = f"""CASE WHEN {_MAY_MISS} THEN jsonb_array_length(run.request -> 'symbols')
    - jsonb_array_length(coalesce(run.request -> 'deactivated', '[]')) ELSE 0 END"""
# The symbols that a run was to fetch and has no market's receipt of.
_ABSENT = text(f"""
    SELECT symbol, CASE WHEN unserved IS NULL THEN 'missing' ELSE 'failed' END AS outcome,
        coalesce(unserved, CASE {STATE} WHEN 'running' THEN 'the run has not come to it yet'
            ELSE 'the run ended before it came to this market' END) AS reason
    FROM market_data.ingestion_run run
    CROSS JOIN LATERAL jsonb_array_elements_text(run.request -> 'symbols')
        WITH ORDINALITY AS asked (symbol, place)
    CROSS JOIN LATERAL (SELECT run.request -> 'unserved' ->> symbol AS unserved) told
    WHERE run.run_id = :run_id AND (unserved IS NOT NULL OR {_MAY_MISS})
        AND NOT coalesce(run.request -> 'deactivated' ? symbol, false)
        AND NOT EXISTS (
            SELECT FROM market_data.ingestion_run_market part
            JOIN market_data.market named USING (market_id)
            WHERE part.run_id = run.run_id AND (named.symbol = asked.symbol
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
        WHERE written.run_id = run.run_id) AS rows_written
"""


def _sum_up(chosen: str) -> TextClause:
    # Runs with the sums of their receipts, the newest first.
    return text(f"""
        SELECT run.run_id, run.trigger, run.provider, run.started_at, run.completed_at,
            run.ended_at, {STATE} AS outcome, run.error, run.request, {_TOTALS}
        FROM market_data.ingestion_run run
        LEFT JOIN market_data.ingestion_run_market part USING (run_id)
        WHERE run.run_id IN ({chosen})
        GROUP BY run.run_id ORDER BY run.started_at DESC
    """)


_SUMS_OF_LAST = _sum_up(
    "SELECT run_id FROM market_data.ingestion_run ORDER BY started_at DESC LIMIT :count"
)
_SUMS_OF_RUN = _sum_up(":run_id")


def _list_markets(order: str) -> TextClause:
    # The receipt of a run by market.
    return text(f"""
        SELECT symbol, provider, part.* FROM market_data.ingestion_run_market part
        JOIN market_data.market USING (market_id) WHERE run_id = :run_id
        ORDER BY {order} LIMIT :count
    """)


_MARKETS = _list_markets("symbol, provider")
_FAILED_FIRST = _list_markets(
    "array_position(ARRAY['failed', 'partial', 'ok'], part.outcome), symbol, provider"
)
# The receipt of the last run that came to a market.
_LAST_OF_MARKET = text(f"""
    SELECT run.run_id, run.started_at, {STATE} AS run_outcome, part.outcome, part.reason,
        part.inserted, part.updated, part.holes_left, part.quarantined
    FROM market_data.ingestion_run run JOIN market_data.ingestion_run_market part USING (run_id)
    WHERE part.market_id = :market_id ORDER BY run.started_at DESC LIMIT 1
""")
_MARKET_COLUMNS = [
    *("symbol", "provider"),
    *(part.name for part in ingestion_run_market.c if part.name not in {"run_id", "market_id"}),
]
_RUN = ingestion_run.alias("run")


def read_last_run_id(connection: Connection) -> UUID | None:
    """Return the run that began last."""
    query = select(ingestion_run.c.run_id).order_by(ingestion_run.c.started_at.desc()).limit(1)
    return connection.execute(query).scalar()


def read_last_start(connection: Connection) -> datetime | None:
    """Return when the newest run with a receipt began (UTC)."""
    return connection.execute(select(func.max(ingestion_run.c.started_at))).scalar()


def read_runs(connection: Connection, limit: int) -> pd.DataFrame:
    """Return the receipts of the last runs, newest first; ``outcome`` as of :func:`read_run`."""
    newest = _select_runs().order_by(_RUN.c.started_at.desc()).limit(limit)
    return read_frame(connection, newest)


def read_run(connection: Connection, run_id: UUID) -> Row | None:
    """Return a run's own line of its receipt; None for a run that wrote none.

    ``outcome`` is ``ok``, ``partial`` or ``failed`` once the run has ended; before that it is
    ``running`` while its process lives, and ``interrupted`` when it does not.
    """
    return next(iter(fetch(connection, _select_runs().where(_RUN.c.run_id == run_id))), None)


def read_receipts(connection: Connection, run_ids: Sequence[UUID]) -> list[Row]:
    """Return run_id, trigger, started_at and outcome of runs, the first begun first."""
    query = _select_runs("run_id", "trigger", "started_at", "outcome")
    chosen = query.where(_RUN.c.run_id.in_(list(run_ids))).order_by(_RUN.c.started_at)
    return fetch(connection, chosen)


def _select_runs(*names: str) -> "Select[Any]":
    state: Any = literal_column(STATE).label("outcome")
    columns = [_RUN.c[name] for name in names] or list(_RUN.c)
    return select(*(state if column.name == "outcome" else column for column in columns))


def read_run_outcome(connection: Connection, run_id: UUID) -> str | None:
    """Return the ``outcome`` of :func:`read_run`; None for a run that wrote no receipt."""
    run = read_run(connection, run_id)
    return None if run is None else run["outcome"]


def read_run_end(connection: Connection, run_id: UUID) -> tuple[datetime, str] | None:
    """Return when (UTC) a run ended and its outcome; None while it runs, or without a receipt."""
    run = ingestion_run.c
    query = select(run.ended_at, run.outcome).where(run.run_id == run_id, run.ended_at.is_not(None))
    row = connection.execute(query).one_or_none()
    return None if row is None else (row.ended_at, row.outcome)


def find_later_receipt(connection: Connection, market_id: int, token: int) -> UUID | None:
    """Return a run of the last day that did all work on a market under a later claim, if any."""
    return connection.execute(_DONE_LATER, {"market_id": market_id, "token": token}).scalar()


def read_run_with_totals(connection: Connection, run_id: UUID) -> Row | None:
    """Return a run with what it was asked and the sums of its receipt."""
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
    receipt = ingestion_run_table.c
    query = (
        select(receipt.table_name, receipt.inserted, receipt.updated, receipt.unchanged)
        .where(receipt.run_id == run_id)
        .order_by(receipt.table_name)
    )
    return fetch(connection, query)


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
