"""The database in use, opened for the time of a query."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from market_pipeline.storage.server.engine import check_database, find_database, open_engine
from market_pipeline.storage.server.schema import ensure_schema


@contextmanager
def open_database(with_schema: bool = True, patience: str = "command") -> Iterator[Engine]:
    """Open the database in use, and close it in the end.

    Without ``with_schema`` the market tables may be missing or old. ``patience`` is how long each
    call may take: a key of ``watchdog.SECONDS``.

    Raises:
        StorageError: Unreachable, read-only, or at another schema version.
    """
    address = find_database()
    engine = open_engine(address, patience)
    try:
        check_database(engine)
        if with_schema:
            ensure_schema(engine, address.is_embedded)
        yield engine
    finally:
        engine.dispose()
