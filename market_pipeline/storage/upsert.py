"""The write path: a frame into a table, changing only what differs.

Rows are staged by COPY without any lock. The merge then takes one global advisory lock, so that
merges follow one another: no deadlock, no unique violation, and dataset versions in commit order. A
stored row is replaced only where a value differs, so writing the same data twice changes nothing.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
from sqlalchemy import Connection, Table, text
from sqlalchemy.dialects import postgresql

from market_pipeline.storage.copy_binary import encode_frame
from market_pipeline.storage.tables import SCHEMA

MERGE_LOCK = 0x4D50_4D45
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class WriteCounts:
    """What the database did with the rows of a write."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0

    def __add__(self, other: "WriteCounts") -> "WriteCounts":
        return WriteCounts(
            self.inserted + other.inserted,
            self.updated + other.updated,
            self.unchanged + other.unchanged,
        )

    @property
    def written(self) -> int:
        """Rows that are new or changed."""
        return self.inserted + self.updated


def upsert_frame(
    connection: Connection, table: Table, frame: pd.DataFrame, stamps: Mapping[str, object]
) -> WriteCounts:
    """Write a frame inside the caller's transaction and count what changed.

    Args:
        connection: In a transaction; nothing is visible before its commit.
        table: A table with a primary key; ``info`` may name ``stamps`` and a ``guard``.
        frame: One column for each column of the table but the stamps. Of rows with the same key
            the last is kept.
        stamps: The value of each stamp column; ``dataset_version`` is taken here, under the lock.
    """
    keys = [column.name for column in table.primary_key]
    rows = frame.drop_duplicates(keys, keep="last").sort_values(keys)
    if rows.empty:
        return WriteCounts()
    values = [column.name for column in table.columns if column.name in rows.columns]
    _stage(connection, table, rows[values])
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MERGE_LOCK})
    counts = _merge(connection, table, values, keys, dict(stamps), len(rows))
    connection.execute(text("DROP TABLE incoming"))
    return counts


def _stage(connection: Connection, table: Table, rows: pd.DataFrame) -> None:
    types = [table.columns[name].type.compile(_DIALECT).lower() for name in rows.columns]
    columns = ", ".join(f'"{name}" {kind}' for name, kind in zip(rows.columns, types, strict=True))
    connection.execute(text(f"CREATE TEMP TABLE incoming ({columns}) ON COMMIT DROP"))
    cursor = connection.connection.cursor()
    stream = _StreamReader(encode_frame(rows, types))
    cursor.copy_expert("COPY incoming FROM STDIN (FORMAT binary)", stream)


def _merge(
    connection: Connection,
    table: Table,
    values: list[str],
    keys: list[str],
    stamps: dict[str, object],
    total: int,
) -> WriteCounts:
    names = [*values, *stamps]
    selected = [f'incoming."{name}"' for name in values] + [
        _stamp_sql(table, name) for name in stamps
    ]
    same_key = " AND ".join(f'stored."{key}" = incoming."{key}"' for key in keys)
    updated = _update_changed(connection, table, values, keys, stamps)
    insert = (
        f"INSERT INTO {_name(table)} ({_quote(names)}) SELECT {', '.join(selected)} FROM incoming "  # noqa: S608 - names of our own tables
        f"WHERE NOT EXISTS (SELECT FROM {_name(table)} stored WHERE {same_key})"
    )
    parameters = {name: value for name, value in stamps.items() if value is not None}
    inserted = connection.execute(text(insert), parameters).rowcount
    return WriteCounts(inserted, updated, total - inserted - updated)


def _update_changed(
    connection: Connection,
    table: Table,
    values: list[str],
    keys: list[str],
    stamps: dict[str, object],
) -> int:
    compared = [name for name in values if name not in keys]
    changes = [f'"{name}" = incoming."{name}"' for name in compared]
    changes += [f'"{name}" = {_stamp_sql(table, name)}' for name in stamps]
    same_key = " AND ".join(f'stored."{key}" = incoming."{key}"' for key in keys)
    differs = " OR ".join(
        f'stored."{name}" IS DISTINCT FROM incoming."{name}"' for name in compared
    )
    update = (
        f"UPDATE {_name(table)} stored SET {', '.join(changes)} FROM incoming "  # noqa: S608 - names of our own tables
        f"WHERE {same_key} AND ({differs}) AND {table.info.get('guard', 'true')}"
    )
    parameters = {name: value for name, value in stamps.items() if value is not None}
    return connection.execute(text(update), parameters).rowcount


def _stamp_sql(table: Table, name: str) -> str:
    if name == "dataset_version":
        return ":dataset_version"
    return f"CAST(:{name} AS {table.columns[name].type.compile(_DIALECT)})"


def take_dataset_version(connection: Connection) -> int:
    """Return the next dataset version; the merge lock is held, so versions follow commit order."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MERGE_LOCK})
    return int(
        connection.execute(text(f"SELECT nextval('{SCHEMA}.dataset_version_seq')")).scalar_one()
    )


def _name(table: Table) -> str:
    return f'"{table.schema}"."{table.name}"'


def _quote(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


class _StreamReader(io.RawIOBase):
    """A file that reads from an iterator of bytes, as COPY wants one."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        count = len(self._left) if size < 0 else size
        part, self._left = self._left[:count], self._left[count:]
        return bytes(part)
