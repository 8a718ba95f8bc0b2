"""What the dashboard's pages of runs read: receipts, holes, quarantine, and what versions changed.

Rows come as mappings; times are UTC. Not here: pages of markets (``page_queries``).
"""

from uuid import UUID

from sqlalchemy import Connection

from market_pipeline.storage.page_queries import Row, fetch
from market_pipeline.storage.runs.evidence import EXPLAINED
from market_pipeline.storage.runs.states import ASKED_MARKETS, STATE, read_absent_markets

_TOTALS = f"""
    greatest(count(market_id) + (SELECT count(*)
        FROM jsonb_object_keys(coalesce(run.request -> 'unserved', '{{}}'))), {ASKED_MARKETS})
        AS markets,
    count(*) FILTER (WHERE part.outcome = 'ok') AS ok,
    count(*) FILTER (WHERE part.outcome = 'partial') AS partial,
    count(*) FILTER (WHERE part.outcome = 'failed') AS failed,
    coalesce(sum(requested), 0)::bigint AS requested,
    coalesce(sum(received), 0)::bigint AS received,
    coalesce(sum(inserted), 0)::bigint AS inserted,
    coalesce(sum(updated), 0)::bigint AS updated,
    coalesce(sum(unchanged), 0)::bigint AS unchanged,
    coalesce(sum(derived_inserted), 0)::bigint AS derived_inserted,
    coalesce(sum(derived_updated), 0)::bigint AS derived_updated,
    coalesce(sum(derived_unchanged), 0)::bigint AS derived_unchanged,
    coalesce(sum(revised), 0)::bigint AS revised,
    coalesce(sum(quarantined), 0)::bigint AS quarantined,
    coalesce(sum(holes_left), 0)::bigint AS holes_left,
    coalesce(sum(calls), 0)::bigint AS calls,
    min(first_version) AS first_version,
    max(last_version) AS last_version,
    (SELECT coalesce(sum(inserted + updated), 0)::bigint
        FROM market_data.ingestion_run_table written
        WHERE written.run_id = run.run_id) AS rows_written
"""
_RUNS = f"""
    SELECT run.run_id, run.trigger, run.provider, run.started_at, run.completed_at, run.ended_at,
        {STATE} AS outcome, run.error, run.request, {_TOTALS}
    FROM market_data.ingestion_run run
    LEFT JOIN market_data.ingestion_run_market part USING (run_id)
    WHERE run.run_id IN (%s)
    GROUP BY run.run_id ORDER BY run.started_at DESC
"""
_NEWEST = "SELECT run_id FROM market_data.ingestion_run ORDER BY started_at DESC LIMIT %(count)s"
_RECENT = _RUNS % _NEWEST
_RUN = _RUNS % "%(run_id)s::uuid"
_MARKETS = """
    SELECT symbol, provider, part.* FROM market_data.ingestion_run_market part
    JOIN market_data.market USING (market_id) WHERE run_id = %(run_id)s
    ORDER BY array_position(ARRAY['failed', 'partial', 'ok'], part.outcome), symbol, provider
    LIMIT %(count)s
"""
_TABLES = """
    SELECT table_name, inserted, updated, unchanged FROM market_data.ingestion_run_table
    WHERE run_id = %(run_id)s ORDER BY table_name
"""
_HOLES = """
    SELECT symbol, provider, hole.* FROM market_data.coverage_hole hole
    JOIN market_data.market USING (market_id)
    ORDER BY last_checked_at DESC, symbol, starts_at LIMIT %(count)s
"""
# What holes_left of a receipt counts, as it stands now.
_RUN_HOLES = f"""
    WITH run AS (SELECT (request ->> 'window_start')::timestamptz AS starts_at,
            (request ->> 'window_end')::timestamptz AS ends_at
        FROM market_data.ingestion_run WHERE run_id = %(run_id)s),
    hole AS (SELECT * FROM market_data.coverage_hole WHERE NOT {EXPLAINED} AND market_id IN (
        SELECT market_id FROM market_data.ingestion_run_market WHERE run_id = %(run_id)s))
    SELECT symbol, provider, hole.* FROM hole JOIN market_data.market USING (market_id)
    JOIN run ON hole.starts_at < run.ends_at AND run.starts_at < hole.ends_at
    ORDER BY symbol, provider, hole.starts_at LIMIT %(count)s
"""
_QUARANTINE = """
    SELECT symbol, provider, row_id, "interval", open_time, rule, detail, times_seen,
        first_seen_at, last_seen_at, status, kept.run_id
    FROM market_data.quarantined_row kept JOIN market_data.market USING (market_id)
    WHERE CASE WHEN %(run_id)s::uuid IS NULL THEN status = 'open' ELSE run_id = %(run_id)s END
    ORDER BY last_seen_at DESC, row_id DESC LIMIT %(count)s
"""
_VERSIONS = """
    WITH batch AS (
        SELECT * FROM market_data.dataset_version
        WHERE version BETWEEN %(first)s AND %(last)s AND run_id = %(run_id)s
        ORDER BY version, "interval" LIMIT %(count)s
    )
    SELECT version, symbol, provider, batch."interval", first_open_time, last_open_time, known_at,
        (SELECT count(*) FROM market_data.market_aggregate bar WHERE bar.market_id = batch.market_id
            AND bar."interval" = batch."interval" AND bar.dataset_version = batch.version
            AND bar.open_time BETWEEN first_open_time AND last_open_time) AS current,
        (SELECT count(*) FROM market_data.market_aggregate_revision old
            WHERE old.market_id = batch.market_id AND old."interval" = batch."interval"
            AND old.replaced_by_version = batch.version
            AND old.open_time BETWEEN first_open_time AND last_open_time) AS revised
    FROM batch JOIN market_data.market USING (market_id) ORDER BY version, batch."interval"
"""
_RESTATED = """
    SELECT symbol, provider, old."interval", old.open_time, old.replaced_by_version AS version,
        old.close AS old_close, coalesce(now.close, later.close) AS close
    FROM market_data.dataset_version batch
    JOIN market_data.market USING (market_id)
    JOIN market_data.market_aggregate_revision old ON old.market_id = batch.market_id
        AND old."interval" = batch."interval" AND old.replaced_by_version = batch.version
        AND old.open_time BETWEEN first_open_time AND last_open_time
    LEFT JOIN market_data.market_aggregate now ON now.market_id = old.market_id
        AND now."interval" = old."interval" AND now.open_time = old.open_time
        AND now.dataset_version = old.replaced_by_version
    LEFT JOIN market_data.market_aggregate_revision later ON later.market_id = old.market_id
        AND later."interval" = old."interval" AND later.open_time = old.open_time
        AND later.dataset_version = old.replaced_by_version
    WHERE batch.version BETWEEN %(first)s AND %(last)s AND batch.run_id = %(run_id)s
    ORDER BY symbol, provider, old."interval", old.open_time LIMIT %(count)s
"""


def read_run_totals(connection: Connection, count: int) -> list[Row]:
    """Return the last runs with the sums of their receipts, the newest first."""
    return fetch(connection, _RECENT, count=count)


def read_run(connection: Connection, run_id: UUID) -> Row | None:
    """Return a run with what it was asked and the sums of its receipt."""
    rows = fetch(connection, _RUN, run_id=run_id)
    return rows[0] if rows else None


def read_run_receipts(connection: Connection, run_id: UUID, count: int) -> list[Row]:
    """Return a run's receipt by market: absent ones first, then failed ones."""
    absent = [{"provider": None, **one} for one in read_absent_markets(connection, run_id)]
    return [*absent, *fetch(connection, _MARKETS, run_id=run_id, count=count)][:count]


def read_written_tables(connection: Connection, run_id: UUID) -> list[Row]:
    """Return a run's receipt by table."""
    return fetch(connection, _TABLES, run_id=run_id)


def read_holes(connection: Connection, count: int) -> list[Row]:
    """Return the holes of all markets and times, explained ones too, those checked last first."""
    return fetch(connection, _HOLES, count=count)


def read_run_holes(connection: Connection, run_id: UUID, count: int) -> list[Row]:
    """Return the unexplained holes that the markets of a run have now in the run's window."""
    return fetch(connection, _RUN_HOLES, run_id=run_id, count=count)


def read_refused_rows(connection: Connection, run_id: UUID | None, count: int) -> list[Row]:
    """Return rows in quarantine that a run received first, or all open ones, the newest first."""
    return fetch(connection, _QUARANTINE, run_id=run_id, count=count)


def read_version_batches(connection: Connection, run: Row, count: int) -> list[Row]:
    """Return the batches of a run: bars that still have its values, and final ones it replaced.

    Args:
        connection: Any.
        run: Of :func:`read_run`.
        count: The most to return.
    """
    return fetch(connection, _VERSIONS, **_span(run), count=count)


def read_restated_bars(connection: Connection, run: Row, count: int) -> list[Row]:
    """Return the final bars whose values a run replaced, with both closes."""
    return fetch(connection, _RESTATED, **_span(run), count=count)


def _span(run: Row) -> Row:
    return {"first": run["first_version"], "last": run["last_version"], "run_id": run["run_id"]}
