"""A query's rows as a data frame, by binary COPY.

Every column is sent with one width and without NULL, so that the answer is one structured NumPy
array. Text is sent as it is where it is mostly one word, and padded by characters elsewhere, which
is cheap and right for ASCII; an answer that turns out to be of several widths is asked for again,
padded by bytes. A year of hourly bars takes 6 ms; row by row through the driver it took 110 ms.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pandas as pd
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import psycopg2

from market_pipeline.domain.errors import StorageError
from market_pipeline.storage.bulk.copy_binary import EPOCH_MICROSECONDS
from market_pipeline.storage.server.failures import open_cursor

_HEADER_BYTES = 19
_TRAILER = b"\xff\xff"
_TEXT_BYTES = 32
_PIECE_BYTES = 1 << 19
_FEW_ROWS = 1_000
_DIALECT = psycopg2.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Column:
    """How an expression is sent: the SQL around it, its bytes, and what they become.

    The layout ``S`` is text that is as wide as in the first row. ``exactly`` is how it is sent when
    the cheap way turned out to have several widths.
    """

    send: str
    layout: str
    decode: Callable[[npt.NDArray[Any]], Any]
    exactly: "Column | None" = None


def read_copied(
    connection: Connection,
    build_query: Callable[[str], str],
    columns: Mapping[str, Column],
    parameters: Mapping[str, object],
) -> pd.DataFrame:
    """Return a query's rows as a frame; see :func:`read_columns`."""
    found = read_columns(connection, build_query, columns, parameters)
    return pd.DataFrame(found, copy=False)


def read_columns(
    connection: Connection,
    build_query: Callable[[str], str],
    columns: Mapping[str, Column],
    parameters: Mapping[str, object],
) -> dict[str, Any]:
    """Return a query's rows column by column, of the columns' dtypes also when there are none.

    Args:
        connection: The query runs in its transaction.
        build_query: Makes the query from its list of selected expressions; ``:name`` stands for a
            parameter.
        columns: By name; the name is also the expression.
        parameters: What the query refers to.

    Raises:
        StorageError: A value is NULL in a column that cannot say so.
    """
    exact = {name: column.exactly or column for name, column in columns.items()}
    for sent in (columns, exact):
        values = _copy(connection, build_query, sent, parameters)
        if values is not None:
            break
    else:
        raise StorageError("the database sent a NULL where there can be none")
    return {name: column.decode(values[at]) for at, (name, column) in enumerate(columns.items())}


def _copy(
    connection: Connection,
    build_query: Callable[[str], str],
    sent: Mapping[str, Column],
    parameters: Mapping[str, object],
) -> list[npt.NDArray[Any]] | None:
    """Return the values of each column; None if a row had a value of another width."""
    selected = ", ".join(column.send.format(f'"{name}"') for name, column in sent.items())
    rows = _RowReader(list(sent.values()))
    with open_cursor(connection) as cursor, io.BufferedWriter(rows, _PIECE_BYTES) as stream:
        query = cursor.mogrify(_compile(build_query(selected)), dict(parameters)).decode()
        cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT binary)", stream)
    return rows.take_values()


@lru_cache(maxsize=256)
def _compile(query: str) -> str:
    """Return a query as the driver takes it, which has its own way to name parameters."""
    return str(text(query).compile(dialect=_DIALECT))


class _RowReader(io.RawIOBase):
    """Takes rows apart while they come: all columns of a piece that the processor's cache holds."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._layout: np.dtype[Any] | None = None
        self._values: list[npt.NDArray[Any]] = []
        self._count = 0
        self._left = b""
        self._is_even = True

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, piece: Any) -> int:
        """Take what is whole of the rows so far; the first piece holds at least one, or all."""
        received = self._left + bytes(piece)
        if self._layout is None:
            self._layout = _measure(received, self._columns)
            received = received[_HEADER_BYTES:]
            kinds = [self._layout[f"value{at}"] for at in range(len(self._columns))]
            self._values = [np.empty(_FEW_ROWS, kind.newbyteorder("=")) for kind in kinds]
        count = len(received) // self._layout.itemsize
        self._take(np.frombuffer(received, self._layout, count))
        self._left = received[count * self._layout.itemsize :]
        return len(piece)

    def _take(self, rows: npt.NDArray[Any]) -> None:
        end = self._count + len(rows)
        for at, values in enumerate(self._values):
            if end > len(values):
                values.resize(end * 2, refcheck=False)
            self._is_even &= bool((rows[f"width{at}"] == values.itemsize).all())
            values[self._count : end] = rows[f"value{at}"]
        self._count = end

    def take_values(self) -> list[npt.NDArray[Any]] | None:
        """Return the values of each column; None if a row had a value of another width."""
        for values in self._values:
            values.resize(self._count, refcheck=False)
        return self._values if self._is_even and self._left == _TRAILER else None


def _measure(stream: bytes, columns: Sequence[Column]) -> np.dtype[Any]:
    """Return the layout of the first row; its text has from one byte to as many as fit."""
    fields: list[tuple[str, Any]] = [("count", ">i2")]
    place = _HEADER_BYTES + 2
    for at, column in enumerate(columns):
        width = int.from_bytes(stream[place : place + 4], "big", signed=True)
        text = f"S{min(max(width, 1), _TEXT_BYTES)}"
        value = np.dtype(text if column.layout == "S" else column.layout)
        fields += [(f"width{at}", ">i4"), (f"value{at}", value)]
        place += 4 + value.itemsize
    return np.dtype(fields)


def _decode_times(values: npt.NDArray[Any]) -> pd.DatetimeIndex:
    values += EPOCH_MICROSECONDS
    return pd.DatetimeIndex(values.view("datetime64[us]"), tz="UTC")


@lru_cache(maxsize=4096)
def _make_words(word: str | None) -> Any:
    return pd.array([word], dtype="str")


def _decode_words(decode: Callable[[bytes], str | None]) -> Callable[[npt.NDArray[Any]], Any]:
    """Return a decoder that looks once at each run of equal words, for most columns are such."""
    decode_word = lru_cache(maxsize=4096)(decode)

    def decode_words(values: npt.NDArray[Any]) -> Any:
        if len(values) and (values == values[0]).all():  # Most columns of one market.
            return _make_words(decode_word(bytes(values[0]))).take(
                np.zeros(len(values), dtype=np.int32)
            )
        first = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
        words = pd.array([decode_word(word) for word in values[first].tolist()], dtype="str")
        # Taken by int64 it would take four times as long.
        runs = np.arange(len(first), dtype=np.int32)
        return words.take(np.repeat(runs, np.diff(first, append=len(values))))

    return decode_words


def _decode_uuid(word: bytes) -> str | None:
    return str(UUID(bytes=word.ljust(16, b"\0"))) if word else None


INTEGER = Column("{}", ">i8", lambda values: values)
KNOWN_NUMBER = Column("{}", ">f8", lambda values: values)
NUMBER = Column("coalesce({}, 'NaN')", ">f8", lambda values: values)
FLAG = Column("{}", "i1", lambda values: values.view("bool"))
TIME = Column("{}", ">i8", _decode_times)
MICROS = Column("{}", ">i8", lambda values: values.astype("int64") + EPOCH_MICROSECONDS)
"""A time as microseconds since 1970."""
IDENTITY = Column(f"coalesce({{}}, '{UUID(int=0)}')", "S16", _decode_words(_decode_uuid))
_read_words = _decode_words(lambda word: word.decode(errors="replace").rstrip(" "))
_PADDED = Column(
    f"substr(convert_to({{}}, 'UTF8') || '\\x{'00' * _TEXT_BYTES}'::bytea, 1, {_TEXT_BYTES})",
    f"S{_TEXT_BYTES}",
    _read_words,
)
WORDS = Column(f"{{}}::char({_TEXT_BYTES})", f"S{_TEXT_BYTES}", _read_words, _PADDED)
"""Text of up to 32 bytes; longer ones are cut."""
WORD = Column("{}", "S", _read_words, _PADDED)
"""The same, of rows that mostly have one word: cheap, but asked for twice where they do not."""
OBJECT = Column(
    WORDS.send,
    WORDS.layout,
    lambda values: np.asarray(_read_words(values), dtype=object),
    _PADDED,
)
"""The same as an array of Python's strings."""
