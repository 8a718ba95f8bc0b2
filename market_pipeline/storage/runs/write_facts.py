"""What a finished write is reported by: the relation's full name, its rows, its final days.

Here: questions to the database about a table as a whole, cheap at any size. Not here: the write.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, Table, func, literal, select, text

from market_pipeline.domain.intervals import Interval
from market_pipeline.storage.tables import market_aggregate

COUNTED_ROWS = 1_000_000


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
