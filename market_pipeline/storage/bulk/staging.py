"""Staging: brings rows to the server, ordered, one for each key, beside the table, without a lock.

A small batch travels inside its statement, a large one by binary COPY into a temporary table; for
the statement that merges it, both are a relation called ``incoming``.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql

from market_pipeline.storage.bulk.copy_binary import encode_frame
from market_pipeline.storage.bulk.literals import encode_array
from market_pipeline.storage.server.failures import open_cursor
from market_pipeline.storage.server.watchdog import allow

INLINE_ROWS = 500  # measured: below it a temporary table costs more than it saves
CHUNK_ROWS = 25_000
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Staged:
    """Rows that a statement can merge into their table.

    Attributes:
        table: Where they belong. columns: The columns they have. count: How many, keys unique.
        relation: The ``WITH`` item called ``incoming``; empty when that is a temporary table.
        parameters: What ``relation`` refers to.
        span: Of many rows that share the first key, the least and the greatest value of each key:
            a market, its intervals, and from when to when.
    """

    table: Table
    columns: tuple[str, ...]
    count: int
    span: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    relation: str = ""
    parameters: dict[str, str] = field(default_factory=dict)


@allow("bulk")
def stage_frame(connection: Connection, table: Table, frame: pd.DataFrame) -> Staged:
    """Send a frame to the server; of rows with the same key the last is kept.

    Args:
        connection: In a transaction; a temporary table lives until its end.
        table: A table with a primary key.
        frame: Columns of the table, its whole key among them.
    """
    columns = tuple(column.name for column in table.columns if column.name in frame.columns)
    keys = [column.name for column in table.primary_key]
    order = find_key_order(frame, keys)
    if len(order) <= INLINE_ROWS:
        return _stage_inline(table, columns, frame.take(order))
    _stage_by_copy(connection, table, columns, iterate_chunks(frame, order, list(columns)))
    return Staged(table, columns, len(order), find_span(frame[keys], order))


def find_key_order(frame: pd.DataFrame, keys: list[str]) -> npt.NDArray[np.intp]:
    """Return the positions that sort a frame by its key, the last of equal keys alone."""
    codes = [_rank(frame[key]) for key in keys]
    order = np.lexsort(codes[::-1]) if len(frame) else np.empty(0, dtype=np.intp)
    is_last = np.ones(len(order), dtype=bool)
    if len(order):
        is_last[:-1] = np.any([code[order[1:]] != code[order[:-1]] for code in codes], axis=0)
    return order[is_last]


def find_span(keys: pd.DataFrame, order: npt.NDArray[np.intp]) -> dict[str, tuple[Any, Any]]:
    """Return the bounds of rows in the order of their keys; see ``Staged.span``."""
    first, last = keys.iloc[order[[0, -1]], 0].tolist()
    if first != last or len(keys.columns) < 2:
        return {}
    return {str(name): _find_bounds(keys[name]) for name in keys.columns}


def _find_bounds(key: "pd.Series[Any]") -> tuple[Any, Any]:
    """Return the least and the greatest value; categories are compared as what they stand for."""
    values = pd.Series(key.unique().tolist()) if key.dtype == "category" else key
    least, most = values.min(), values.max()
    return (least.item(), most.item()) if isinstance(least, np.generic) else (least, most)


def _rank(key: "pd.Series[Any]") -> npt.NDArray[np.int64]:
    numbers = key.array.astype("int64") if key.dtype.kind in "iM" else key.factorize(sort=True)[0]
    return np.asarray(numbers).astype(np.int64)


def find_types(table: Table, columns: tuple[str, ...]) -> list[str]:
    """Return the PostgreSQL types of a table's columns."""
    return [table.columns[name].type.compile(_DIALECT).lower() for name in columns]


def _stage_inline(table: Table, columns: tuple[str, ...], rows: pd.DataFrame) -> Staged:
    types = dict(zip(columns, find_types(table, columns), strict=True))
    arrays = ", ".join(f"%({name})s::{kind}[]" for name, kind in types.items())
    quoted = ", ".join(f'"{name}"' for name in columns)
    relation = f"incoming AS (SELECT * FROM unnest({arrays}) AS rows ({quoted})), "
    parameters = {name: encode_array(rows[name], kind) for name, kind in types.items()}
    return Staged(table, columns, len(rows), relation=relation, parameters=parameters)


def _stage_by_copy(
    connection: Connection, table: Table, columns: tuple[str, ...], chunks: Iterator[pd.DataFrame]
) -> None:
    types = find_types(table, columns)
    defined = ", ".join(f'"{name}" {kind}' for name, kind in zip(columns, types, strict=True))
    connection.exec_driver_sql(f"CREATE TEMP TABLE incoming ({defined}) ON COMMIT DROP")
    stream = StreamReader(encode_frame(chunks, types))
    with open_cursor(connection) as cursor:
        cursor.copy_expert("COPY incoming FROM STDIN (FORMAT binary)", stream, size=1 << 18)


def iterate_chunks(
    frame: pd.DataFrame, order: npt.NDArray[np.intp], columns: list[str]
) -> Iterator[pd.DataFrame]:
    """Yield the rows at ``order`` piece by piece: a sorted copy of all would double memory."""
    for start in range(0, len(order), CHUNK_ROWS):
        yield frame.take(order[start : start + CHUNK_ROWS])[columns]


class StreamReader(io.RawIOBase):
    """A file that reads from an iterator of bytes, as COPY wants one."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        """Read from chunks, each made when the one before has been sent."""
        self._chunks = chunks
        self._left = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        """Return at most ``size`` bytes; none at the end."""
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        count = len(self._left) if size < 0 else size
        part, self._left = self._left[:count], self._left[count:]
        return bytes(part)
