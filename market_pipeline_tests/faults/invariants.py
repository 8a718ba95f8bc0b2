"""What must hold after every fault, and again after the next good run.

A query finds each thing that must not be: a row that is there twice, a torn market, a value that is
no number, a lock that nobody holds on purpose. No code of ``market_pipeline`` is used here, but for
the tables themselves.
"""

import time
from collections.abc import Mapping

from sqlalchemy import Connection, Engine, text

from market_pipeline_tests.second_opinion import check_numbers

SETTLE_SECONDS = 60.0
"""How long the server may take to notice that a client is gone, however busy the machine is."""
LASTING: Mapping[str, str] = {
    "a bar is stored twice": """
        SELECT market_id, interval, open_time FROM market_data.market_aggregate
        GROUP BY 1, 2, 3 HAVING count(*) > 1""",
    "an index is not valid": """
        SELECT indexrelid::regclass FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
        WHERE relnamespace = 'market_data'::regnamespace AND NOT (indisvalid AND indisready)""",
    "the ledger and the bars of a series disagree": """
        SELECT known.market_id, known.interval FROM market_data.market_coverage known
        LEFT JOIN LATERAL (
            SELECT count(*) AS bars, min(open_time) AS first, max(open_time) AS last,
                max(close_time) FILTER (WHERE is_final) AS closed
            FROM market_data.market_aggregate bar
            WHERE bar.market_id = known.market_id AND bar.interval = known.interval) found ON true
        WHERE (known.bars, known.first_bar_at, known.last_bar_at, known.watermark)
            IS DISTINCT FROM (found.bars, found.first, found.last, found.closed)""",
    "the receipts and the bars of a market disagree": """
        SELECT market_id, coalesce(told, 0), coalesce(stored, 0)
        FROM (SELECT market_id, sum(inserted + derived_inserted) AS told
            FROM market_data.ingestion_run_market GROUP BY 1) receipts
        FULL JOIN (SELECT market_id, count(*) AS stored
            FROM market_data.market_aggregate GROUP BY 1) bars USING (market_id)
        WHERE coalesce(told, 0) <> coalesce(stored, 0)""",
    "a bar was written by a run that has no receipt of it": """
        SELECT DISTINCT market_id, run_id FROM market_data.market_aggregate
        EXCEPT SELECT market_id, run_id FROM market_data.ingestion_run_market""",
    "a request was noted without the receipt of its market": """
        SELECT DISTINCT market_id, run_id FROM market_data.ingestion_request
        EXCEPT SELECT market_id, run_id FROM market_data.ingestion_run_market""",
    "a version of bars is not noted": """
        SELECT DISTINCT bar.market_id, interval, dataset_version
        FROM market_data.market_aggregate bar WHERE NOT EXISTS (
            SELECT FROM market_data.dataset_version noted
            WHERE (noted.version, noted.market_id, noted.interval)
                = (bar.dataset_version, bar.market_id, bar.interval)
            AND bar.open_time BETWEEN noted.first_open_time AND noted.last_open_time)""",
    "readers are not told of a market's newest bars": """
        SELECT symbol FROM market_data.market JOIN market_data.market_aggregate USING (market_id)
        LEFT JOIN market_data.market_stamp ON scope = provider || ':' || symbol
        GROUP BY symbol, version HAVING version IS NULL OR version < max(dataset_version)""",
    "a watermark went back": """
        SELECT market_id, max(watermark_after) FROM market_data.ingestion_run_market told
        GROUP BY 1 HAVING max(watermark_after) > (
            SELECT max(watermark) FROM market_data.market_coverage known
            WHERE known.market_id = told.market_id)""",
    "a revision replaces nothing": """
        SELECT market_id, interval, open_time FROM market_data.market_aggregate_revision old
        WHERE old.dataset_version >= replaced_by_version OR NOT EXISTS (
            SELECT FROM market_data.market_aggregate bar
            WHERE (bar.market_id, bar.interval, bar.open_time)
                = (old.market_id, old.interval, old.open_time)
            AND bar.dataset_version >= old.replaced_by_version)""",
    "a bar is impossible": """
        SELECT market_id, interval, open_time FROM market_data.market_aggregate
        WHERE NOT (0 < low AND low <= least(open, close) AND greatest(open, close) <= high
            AND high < 'Infinity' AND coalesce(volume, 0) BETWEEN 0 AND 1e300)""",
    "bars are neither stored, known nor in quarantine": """
        SELECT told.run_id, told.market_id, received, asked.served
        FROM market_data.ingestion_run_market told
        LEFT JOIN LATERAL (SELECT coalesce(sum(asked.received), 0) AS served
            FROM market_data.ingestion_request asked
            WHERE (asked.run_id, asked.market_id) = (told.run_id, told.market_id)) asked ON true
        WHERE received <> asked.served
            OR received < inserted + updated + unchanged + quarantined
            OR received > inserted + updated + unchanged + quarantined
            -- What was restated waits until both ends of its span are known, as the receipt says.
            AND coalesce(reason, '') NOT LIKE '%restated its history%not finished%'
            -- Only what was asked for twice may have come twice.
            AND NOT EXISTS (
                SELECT FROM market_data.ingestion_request one
                JOIN market_data.ingestion_request other USING (run_id, market_id, interval)
                WHERE (one.run_id, one.market_id) = (told.run_id, told.market_id)
                AND one.request_id < other.request_id
                AND (one.starts_at, one.ends_at) OVERLAPS (other.starts_at, other.ends_at))""",
}
PASSING: Mapping[str, str] = {
    "a run still shows life": """
        SELECT pid, classid, objid FROM pg_locks WHERE locktype = 'advisory'
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())""",
    "a transaction was left open": """
        SELECT pid, state, left(query, 80) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
            AND backend_type = 'client backend'""",
    "a temporary table was left": """
        SELECT oid::regclass FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'""",
}
_CLAIM = "SELECT market_id, run_id FROM market_data.fetch_claim"
OPEN = "SELECT run_id FROM market_data.ingestion_run WHERE ended_at IS NULL"
_NUMBERS = text("""
    SELECT format('SELECT %L, count(*) FROM %I.%I WHERE %I IN (''NaN'', ''Infinity'', ''-Infinity'')
            HAVING count(*) > 0', table_name || '.' || column_name, table_schema, table_name,
            column_name)
    FROM information_schema.columns
    WHERE table_schema = 'market_data' AND data_type = 'double precision'""")


def assert_invariants(engine: Engine, *, is_repaired: bool = False, is_closed: bool = False) -> int:
    """Make sure that nothing is lost, doubled, torn, invented or left behind.

    Args:
        engine: Of the database.
        is_repaired: A good run of all markets came last: no claim is left either.
        is_closed: The runs were whole ones: each receipt has its end.

    Returns:
        How many published numbers were recomputed.

    Raises:
        AssertionError: Lists what does not hold, with the first rows.
    """
    _wait_until_gone(engine, {**PASSING, **({"a claim was left": _CLAIM} if is_repaired else {})})
    with engine.connect() as connection:
        found = find_broken(connection, is_closed=is_closed)
    assert not found, _spell(found)
    return check_numbers(engine)


def find_broken(connection: Connection, *, is_closed: bool) -> dict[str, list[object]]:
    """Return the invariants of what is stored that do not hold, with what was found."""
    # What an index says of its own table would prove nothing.
    connection.execute(text("SET LOCAL enable_indexscan = off"))
    connection.execute(text("SET LOCAL enable_indexonlyscan = off"))
    queries = {**LASTING, "a value is no number": _list_numbers(connection)}
    if is_closed:
        queries["a receipt has no end"] = OPEN
    return _find(connection, queries)


def _wait_until_gone(engine: Engine, queries: Mapping[str, str]) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        with engine.connect() as connection:
            found = _find(connection, queries)
        if not found:
            return
        assert time.monotonic() < deadline, _spell(found)
        time.sleep(0.1)


def _find(connection: Connection, queries: Mapping[str, str]) -> dict[str, list[object]]:
    rows = {name: list(connection.execute(text(query))) for name, query in queries.items()}
    return {name: list(found) for name, found in rows.items() if found}


def _list_numbers(connection: Connection) -> str:
    return " UNION ALL ".join(connection.execute(_NUMBERS).scalars())


def _spell(found: Mapping[str, list[object]]) -> str:
    return "\n".join(f"{name}: {len(rows)}, {rows[:5]}" for name, rows in found.items())
