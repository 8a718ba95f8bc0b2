"""What one would use instead to upsert a frame; each commits one transaction.

Every writer is handed the table's columns, stamps included, and may take the keys as unique and
sorted: the product finds that out by itself.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
from sqlalchemy import Engine
from sqlalchemy.dialects.postgresql import insert

from benchmarks.bar_table import KEYS, RUN_ID, STAMPS, TABLE
from market_pipeline.storage.tables import market_aggregate

Writer = Callable[[Engine, pd.DataFrame], None]

COLUMNS = [column.name for column in market_aggregate.columns]
BATCH_ROWS = 1_000
_OTHERS = [name for name in COLUMNS if name not in KEYS]
_UPSERT = (
    f"INSERT INTO {TABLE} ({', '.join(COLUMNS)}) VALUES {{values}} "
    f"ON CONFLICT ({', '.join(KEYS)}) DO UPDATE SET "
    + ", ".join(f"{name} = EXCLUDED.{name}" for name in _OTHERS)
)


def stamp_bars(bars: pd.DataFrame) -> pd.DataFrame:
    """Return bars with all columns of the table, in its order."""
    return bars.assign(**{**STAMPS, "run_id": str(RUN_ID)})[COLUMNS]


def write_by_to_sql(engine: Engine, rows: pd.DataFrame) -> None:
    """Append with pandas; it cannot update, so the table must not hold the keys."""
    with engine.begin() as connection:
        rows.to_sql(
            market_aggregate.name,
            connection,
            schema=market_aggregate.schema,
            if_exists="append",
            index=False,
            method="multi",
            chunksize=BATCH_ROWS,
        )


def write_by_pangres(engine: Engine, rows: pd.DataFrame) -> None:
    """Upsert with pangres into the existing table."""
    import pangres

    with engine.begin() as connection:
        pangres.upsert(
            connection,
            rows.set_index(KEYS),
            market_aggregate.name,
            "update",
            schema=market_aggregate.schema,
            create_table=False,
            chunksize=BATCH_ROWS,
        )


def write_by_sqlalchemy(engine: Engine, rows: pd.DataFrame) -> None:
    """Upsert as SQLAlchemy's documentation shows: values, then ON CONFLICT DO UPDATE."""
    records = [dict(zip(COLUMNS, row, strict=True)) for row in _list_rows(rows)]
    with engine.begin() as connection:
        for start in range(0, len(records), BATCH_ROWS):
            statement = insert(market_aggregate).values(records[start : start + BATCH_ROWS])
            changes = {name: statement.excluded[name] for name in _OTHERS}
            connection.execute(statement.on_conflict_do_update(index_elements=KEYS, set_=changes))


def write_by_sqlalchemy_many(engine: Engine, rows: pd.DataFrame) -> None:
    """Upsert with the same statement, its rows passed to ``execute`` as a list."""
    records = [dict(zip(COLUMNS, row, strict=True)) for row in _list_rows(rows)]
    statement = insert(market_aggregate)
    changes = {name: statement.excluded[name] for name in _OTHERS}
    with engine.begin() as connection:
        connection.execute(
            statement.on_conflict_do_update(index_elements=KEYS, set_=changes), records
        )


def write_by_execute_values(engine: Engine, rows: pd.DataFrame) -> None:
    """Upsert with psycopg2's ``execute_values``."""
    from psycopg2.extras import execute_values

    with engine.begin() as connection:
        cursor = connection.connection.cursor()
        execute_values(cursor, _UPSERT.format(values="%s"), _list_rows(rows), page_size=BATCH_ROWS)


def write_row_by_row(engine: Engine, rows: pd.DataFrame) -> None:
    """Upsert each row with a statement of its own, as an ORM sends them."""
    statement = _UPSERT.format(values=f"({', '.join(['%s'] * len(COLUMNS))})")
    with engine.begin() as connection:
        cursor = connection.connection.cursor()
        for row in _list_rows(rows):
            cursor.execute(statement, row)


def _list_rows(rows: pd.DataFrame) -> Iterable[tuple[Any, ...]]:
    known = rows.astype(object).where(rows.notna(), None)
    return known.itertuples(index=False, name=None)


UPSERTS: Mapping[str, Writer] = {
    "pangres": write_by_pangres,
    "sqlalchemy_upsert": write_by_sqlalchemy,
    "sqlalchemy_executemany": write_by_sqlalchemy_many,
    "execute_values": write_by_execute_values,
    "per_row": write_row_by_row,
}
"""Writers that insert or update, by name."""
