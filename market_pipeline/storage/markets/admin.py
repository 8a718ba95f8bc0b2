"""Operations on a whole market: switch it off and on, dump it, remove it for good.

Not here: registering what a run ingests (``registration``), a dump of all (``server.backup``).
"""

import gzip
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Engine, Table, func, select, text, update

from market_pipeline.domain.errors import ClaimTimeoutError
from market_pipeline.storage.bulk.upsert import lock_merges
from market_pipeline.storage.latest.market_versions import bump_list_version
from market_pipeline.storage.ledgers import fetch_claim, metadata
from market_pipeline.storage.runs.claims import hold_liveness_lock, renew_claim, take_claim
from market_pipeline.storage.server.backup import replace_file
from market_pipeline.storage.server.watchdog import allow
from market_pipeline.storage.tables import market

PURGE_ROWS = 5_000
_CLAIM_TTL = timedelta(minutes=10)
_HEAD = """-- All rows of one market. To put them back: `market-pipeline markets purge NAME`, then
-- gunzip -c FILE | market-pipeline db shell -- --single-transaction --set=ON_ERROR_STOP=1
"""


def deactivate_market(engine: Engine, market_id: int) -> bool:
    """Ingest a market no longer, and tell whether it was ingested before; its data stay."""
    is_meant = (market.c.market_id == market_id) & market.c.is_active
    with engine.begin() as connection:
        lock_merges(connection)
        change = update(market).where(is_meant).values(is_active=False)
        if changed := connection.execute(change).rowcount > 0:
            bump_list_version(connection)
        return changed


def prefer_market(engine: Engine, market_id: int, *, is_preferred: bool = True) -> str | None:
    """Make a market what its symbol means, whatever runs are configured with; return who was it.

    With ``is_preferred`` False the next run decides by its configuration again. Returns the
    provider of the primary market until now; None if the symbol had none.
    """
    symbol = select(market.c.symbol).where(market.c.market_id == market_id).scalar_subquery()
    primaries = update(market).where(market.c.symbol == symbol, market.c.is_primary)
    with engine.begin() as connection:
        lock_merges(connection)
        if not is_preferred:
            change = primaries.values(preferred_at=None)
            return connection.execute(change.returning(market.c.provider)).scalar()
        change = primaries.values(is_primary=False, preferred_at=None)
        former = connection.execute(change.returning(market.c.provider)).scalar()
        this = update(market).where(market.c.market_id == market_id)
        connection.execute(this.values(is_primary=True, preferred_at=func.now()))
        bump_list_version(connection)
        return former


def count_rows(connection: Connection, market_id: int) -> dict[str, int]:
    """Return how many rows each table holds of a market, for tables that hold any."""
    counts = {
        table.name: connection.execute(
            text(f"SELECT count(*) FROM {table.fullname} WHERE {condition}"),
            {"market_id": market_id},
        ).scalar_one()
        for table, condition in list_children()
    }
    return {name: count for name, count in counts.items() if count}


def dump_market(engine: Engine, market_id: int, file: Path) -> int:
    """Write every row that names a market, as of one moment, and return the file's size in bytes.

    The file is compressed SQL, readable by its owner alone, and appears when it is whole. Its
    folder is made; one of its name is replaced.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        replace_file(file) as draft,
        gzip.open(draft, "wb") as target,
        engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
    ):
        target.write(_HEAD.encode())
        for table, condition in [(market, "market_id = :market_id"), *list_children()]:
            if table is not fetch_claim:
                _copy(connection, table, condition, market_id, target)
    return file.stat().st_size


def _copy(
    connection: Connection, table: Table, condition: str, market_id: int, target: gzip.GzipFile
) -> None:
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    chosen = condition.replace(":market_id", str(int(market_id)))
    query = f"SELECT {columns} FROM {table.fullname} WHERE {chosen}"
    target.write(f"COPY {table.fullname} ({columns}) FROM stdin;\n".encode())
    cursor: Any = connection.connection.cursor()
    cursor.copy_expert(f"COPY ({query}) TO STDOUT", target)
    target.write(b"\\.\n")


def purge_market(engine: Engine, market_id: int) -> Iterator[tuple[str, int]]:
    """Remove a market and everything that names it, and yield each table with its rows.

    It is switched off first, so that no run begins with it, and claimed, so that none is at work
    on it: a ``ClaimTimeoutError`` says that one is. Each transaction removes 5,000 rows at most.
    Interrupted, it leaves the market switched off, and is done by another call.
    """
    deactivate_market(engine, market_id)
    purge_id = uuid4()
    with hold_liveness_lock(engine, purge_id):
        token = take_claim(engine, market_id, purge_id, _CLAIM_TTL)
        if token is None:
            raise ClaimTimeoutError(
                f"market {market_id} is being fetched by a run: it is switched off now; try again "
                "when that run has ended"
            )
        for table, condition in list_children():
            if table is not fetch_claim:
                yield table.name, _delete_rows(engine, table, condition, market_id, token)
        yield market.name, _delete_market(engine, market_id)


def list_children() -> list[tuple[Table, str]]:
    """Return the tables that name a market, with the condition that finds its rows."""
    children = []
    for table in metadata.sorted_tables:
        keys = [
            column.name
            for column in table.columns
            if any(key.column.table is market for key in column.foreign_keys)
        ]
        # A revision carries its market without a foreign key.
        keys = keys or (["market_id"] if "market_id" in table.columns else [])
        if keys and table is not market:
            children.append((table, " OR ".join(f"{key} = :market_id" for key in keys)))
    return children


@allow("bulk")
def _delete_rows(engine: Engine, table: Table, condition: str, market_id: int, token: int) -> int:
    statement = text(
        f"DELETE FROM {table.fullname} WHERE ctid = ANY(ARRAY("
        f"SELECT ctid FROM {table.fullname} WHERE {condition} LIMIT {PURGE_ROWS}))"
    )
    removed = 0
    while True:
        with engine.begin() as connection:
            count = connection.execute(statement, {"market_id": market_id}).rowcount
        removed += count
        if count < PURGE_ROWS:
            return removed
        renew_claim(engine, market_id, token, _CLAIM_TTL)


@allow("bulk")
def _delete_market(engine: Engine, market_id: int) -> int:
    with engine.begin() as connection:
        lock_merges(connection)
        for table in (fetch_claim, market):
            last = connection.execute(table.delete().where(table.c.market_id == market_id))
        bump_list_version(connection)
        return last.rowcount
