"""One market's rows in a file, before something replaces them: SQL that psql reads back.

Here: the file. Not here: a backup of the whole database (``server.backup``).
"""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table

from market_pipeline.storage.ledgers import fetch_claim
from market_pipeline.storage.markets.admin import list_children
from market_pipeline.storage.tables import market

_HEAD = """-- All rows of one market. To put them back: `market-pipeline markets purge NAME`, then
-- gunzip -c FILE | market-pipeline db shell -- --single-transaction --set=ON_ERROR_STOP=1
"""


def dump_market(engine: Engine, market_id: int, file: Path) -> int:
    """Write every row that names a market, as of one moment, and return the file's size in bytes.

    The file is compressed SQL, readable by its owner alone, and appears when it is whole.

    Args:
        engine: The database.
        market_id: The market.
        file: One of that name is replaced; its folder is made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.partial")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    try:
        with gzip.open(draft, "wb") as target, _open_snapshot(engine) as connection:
            target.write(_HEAD.encode())
            for table, condition in [(market, "market_id = :market_id"), *list_children()]:
                if table is not fetch_claim:
                    _copy(connection, table, condition, market_id, target)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return file.stat().st_size


@contextmanager
def _open_snapshot(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        yield connection


def _copy(
    connection: Connection, table: Table, condition: str, market_id: int, target: gzip.GzipFile
) -> None:
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    chosen = condition.replace(":market_id", str(int(market_id)))
    target.write(f"COPY {table.fullname} ({columns}) FROM stdin;\n".encode())
    cursor: Any = connection.connection.cursor()
    cursor.copy_expert(
        f"COPY (SELECT {columns} FROM {table.fullname} WHERE {chosen}) TO STDOUT",
        target,
    )
    target.write(b"\\.\n")
