"""The evidence about a run, for its checks and for the report of a finished write.

A few statements, whatever the number of markets, and cheap at any size of the tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Table, func, literal, select, text

from market_pipeline.domain.intervals import Interval
from market_pipeline.storage.coverage.holes import EXPLAINED, read_unexplained_holes
from market_pipeline.storage.coverage.listings import list_never_asked, read_coverage_rows
from market_pipeline.storage.rows import Row, fetch
from market_pipeline.storage.runs.receipts import read_absent_markets, read_fetched_markets
from market_pipeline.storage.tables import market_aggregate

MAX_EXAMPLES = 20
COUNTED_ROWS = 1_000_000
# The last run that fetched bars.
_LAST = text("""
    SELECT run_id FROM market_data.ingestion_run run
    WHERE EXISTS (SELECT FROM market_data.ingestion_run_market part WHERE part.run_id = run.run_id)
    ORDER BY started_at DESC LIMIT 1
""")
# The bars that a run wrote, and of them those that no constraint should have let in. They lie where
# its dataset versions say, so that no table is read as a whole.
_BARS = text(f"""
    WITH spans AS (
        SELECT market_id, interval,
            unnest(range_agg(tstzrange(first_open_time, last_open_time, '[]'))) AS span
        FROM market_data.ingestion_run_market receipt
        JOIN market_data.dataset_version USING (market_id)
        WHERE receipt.run_id = :run_id AND dataset_version.run_id = :run_id
            AND version BETWEEN first_version AND last_version
        GROUP BY market_id, interval),
    written AS (
        SELECT market_id, interval, open_time, count(*) AS copies,
            bool_or((low > 0 AND low <= open AND low <= close AND high >= open AND high >= close
                AND high < 'Infinity') IS NOT TRUE) AS is_disordered
        FROM spans JOIN market_data.market_aggregate USING (market_id, interval)
        WHERE open_time BETWEEN lower(span) AND upper(span)
        GROUP BY market_id, interval, open_time HAVING bool_or(run_id = :run_id))
    SELECT count(*), count(*) FILTER (WHERE copies > 1), count(*) FILTER (WHERE is_disordered),
        (array_agg(to_jsonb(written)) FILTER (WHERE copies > 1))[1:{MAX_EXAMPLES}],
        (array_agg(to_jsonb(written)) FILTER (WHERE is_disordered))[1:{MAX_EXAMPLES}]
    FROM written
""")

# All active markets, and their holes that nothing explains, whatever a run was about.
_TOTALS = text(f"""
    SELECT count(*) AS markets, (
        SELECT count(*) FROM market_data.coverage_hole JOIN market_data.market USING (market_id)
        WHERE is_active AND NOT {EXPLAINED}) AS holes
    FROM market_data.market WHERE is_active
""")


@dataclass(frozen=True, slots=True)
class WrittenBars:
    """The bars a run wrote: how many keys, and those that no constraint should have let in.

    ``repeated`` ones are stored more than once. Of ``disordered`` ones the low is not lowest, the
    high not highest, or they are no prices. Examples have market_id, interval and open_time
    (ISO 8601).
    """

    bars: int
    repeated: int
    disordered: int
    repeated_examples: Sequence[Mapping[str, Any]]
    disordered_examples: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """What is known about a run, or about the last one that fetched bars; None: there is none.

    Attributes:
        receipt: One row per market: the receipt's columns, ``symbol`` and ``provider``.
        coverage: One row per market and interval: ``watermark``, and ``starts_at`` and ``ends_at``
            of the last hole that is explained (UTC).
        holes: The last unexplained ones, ``found`` being how many there are.
        absent: ``symbol``, ``outcome`` and ``reason`` of what it was asked for and did not fetch.
    """

    run_id: UUID | None
    receipt: Sequence[Row]
    coverage: Sequence[Row]
    holes: Sequence[Row]
    never_asked: Sequence[Mapping[str, Any]]
    written: WrittenBars
    absent: Sequence[Mapping[str, Any]] = ()


def read_run_evidence(connection: Connection, run_id: UUID) -> RunEvidence:
    """Read the evidence about a run; about the last one that fetched bars when it did not."""
    receipt = read_fetched_markets(connection, run_id)
    about: UUID | None = run_id
    if not receipt:
        about = connection.execute(_LAST).scalar()
        receipt = read_fetched_markets(connection, about)
    market_ids = [row["market_id"] for row in receipt]
    bars, repeated, disordered, *examples = connection.execute(_BARS, {"run_id": about}).one()
    return RunEvidence(
        about,
        receipt,
        read_coverage_rows(connection, market_ids),
        read_unexplained_holes(connection, market_ids, MAX_EXAMPLES),
        list_never_asked(connection, market_ids),
        WrittenBars(bars, repeated, disordered, examples[0] or [], examples[1] or []),
        () if about is None else read_absent_markets(connection, about),
    )


@dataclass(frozen=True, slots=True)
class RowCount:
    """How many rows a table has."""

    rows: int
    is_exact: bool


def read_relation_name(connection: Connection, table: Table) -> str:
    """Return ``database.schema.table``."""
    database = connection.execute(select(func.current_database())).scalar_one()
    return f"{database}.{table.schema}.{table.name}"


def count_rows(connection: Connection, table: Table) -> RowCount:
    """Count a table's rows; above ``COUNTED_ROWS`` return the planner's estimate.

    A count reads the whole primary key: some 50 ms for a million rows, a second for ten. The
    planner's estimate takes no time; it scales the density of the last ANALYZE to the file's size
    of now, so it follows a growing table.
    """
    name = f'"{table.schema}"."{table.name}"'
    plan = connection.execute(text(f"EXPLAIN (FORMAT JSON) SELECT FROM {name}")).scalar_one()
    estimate = int(plan[0]["Plan"]["Plan Rows"])
    if estimate > COUNTED_ROWS:
        return RowCount(estimate, is_exact=False)
    counted = connection.execute(select(func.count()).select_from(table)).scalar_one()
    return RowCount(int(counted), is_exact=True)


def read_totals(connection: Connection) -> Row:
    """Return how many ``markets`` are active, and how many unexplained ``holes`` they have."""
    return fetch(connection, _TOTALS)[0]


def has_new_final_days(connection: Connection, market_ids: Sequence[int], run_id: UUID) -> bool:
    """Return whether a run added or changed a final daily bar of any of the markets."""
    bars = market_aggregate.c
    query = (
        select(literal(1))
        .where(bars.market_id.in_(list(market_ids)), bars.interval == Interval.DAY.value)
        .where(bars.is_final, bars.run_id == run_id)
        .limit(1)
    )
    return connection.execute(query).first() is not None
