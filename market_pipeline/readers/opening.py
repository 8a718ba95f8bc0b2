"""The database for readers: found as every command finds it, with one snapshot for a query."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from sqlalchemy import Connection, Engine

from market_pipeline.settings import load_dotenv
from market_pipeline.storage.server import database


@contextmanager
def open_database() -> Iterator[Engine]:
    """Open DATABASE_URL, else the embedded database; ``.env`` of the current folder counts.

    Raises:
        StorageError: Unreachable, read-only, or at another schema version.
    """
    load_dotenv()
    with database.open_database() as engine:
        yield engine


@contextmanager
def open_snapshot(source: Engine | Connection | None) -> Iterator[Connection]:
    """Open a connection whose queries all see the same moment; an open connection is used as it is.

    Args:
        source: An engine, the connection of an earlier snapshot, or None: the database in use.

    Raises:
        StorageError: As of :func:`open_database`.
    """
    if isinstance(source, Connection):
        yield source
        return
    with nullcontext(source) if source else open_database() as opened, opened.connect() as found:
        yield found.execution_options(isolation_level="REPEATABLE READ")
