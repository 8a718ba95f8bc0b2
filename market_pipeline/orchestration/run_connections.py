"""The connections of Dagster's storage while a run lasts: one is kept and used again.

Dagster opens a connection for each question, some two hundred in a run. Where a process idles that
is right, and stays so: docs/decisions/0017-connections-of-a-run.md.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import dagster as dg
from sqlalchemy import Engine, create_engine

from market_pipeline.orchestration.dagster_internals import ENGINE, list_unpooled_storages

_engines: WeakSet[Engine] = WeakSet()


@contextmanager
def keep_connection(instance: dg.DagsterInstance) -> Iterator[None]:
    """Let an instance's storage use one connection again until the block ends.

    Threads that ask meanwhile get another, which is closed after use. A connection that was lost is
    opened anew. Within another such block this does nothing.
    """
    storages = list_unpooled_storages(instance)
    if not storages:
        yield
        return
    unpooled: list[Engine] = [storage[ENGINE] for storage in storages]
    kept = _open_engine(unpooled[0])
    for storage in storages:
        storage[ENGINE] = kept
    try:
        yield
    finally:
        for storage, before in zip(storages, unpooled, strict=True):
            storage[ENGINE] = before
        kept.dispose()


def _open_engine(unpooled: Engine) -> Engine:
    engine = create_engine(
        unpooled.url,
        isolation_level="AUTOCOMMIT",  # As Dagster's own.
        pool_size=1,
        max_overflow=-1,
        pool_pre_ping=True,
    )
    dialect: Any = engine.dialect
    # Before many a question Dagster asks which columns its tables have: forty times in a run.
    for name in ("get_columns", "has_table"):
        setattr(dialect, name, _remember(getattr(dialect, name)))
    _engines.add(engine)
    return engine


def _remember(ask: Callable[..., Any]) -> Callable[..., Any]:
    answers: dict[str, Any] = {}

    def answer(connection: Any, table: str, *about: Any, **options: Any) -> Any:
        if table not in answers:
            answers[table] = ask(connection, table, *about, **options)
        return answers[table]

    return answer


def _leave_parents() -> None:
    """Leave the parent's connection alone in a forked child: both would talk into it."""
    for engine in list(_engines):
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_parents)
