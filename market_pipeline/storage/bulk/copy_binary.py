"""A data frame as PostgreSQL's binary COPY stream, built column by column in NumPy.

Rows that share a pattern (the same NULLs and the same text lengths) have the same width, so each
pattern is one structured array; a chunk has a handful of patterns. The order of rows is kept within
a pattern only: the staging table they land in has no order to lose.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pandas as pd

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
EPOCH_MICROSECONDS = 946_684_800_000_000  # 2000-01-01, where PostgreSQL's clock starts
_DAY_MICROSECONDS = 86_400_000_000


@dataclass(frozen=True, slots=True)
class EncodedColumn:
    """One column ready to be laid out: big-endian values, each row's width, -1 meaning NULL."""

    values: npt.NDArray[Any]
    widths: npt.NDArray[np.int32]


def encode_frame(chunks: Iterable[pd.DataFrame], types: Sequence[str]) -> Iterator[bytes]:
    """Yield the COPY stream of a frame that comes in chunks, so that memory stays bounded.

    Args:
        chunks: Columns in the order of the target. NaN, NaT and None are NULL.
        types: PostgreSQL types by position: bigint, integer, double precision, boolean, text,
            uuid, date (of a time in UTC) or timestamp with time zone.
    """
    yield _HEADER
    for chunk in chunks:
        columns = [encode_column(chunk.iloc[:, at], kind) for at, kind in enumerate(types)]
        yield from _lay_out(columns)
    yield _TRAILER


def _lay_out(columns: list[EncodedColumn]) -> Iterator[bytes]:
    patterns = _number_patterns(columns)
    if not patterns.any():
        yield _pack(columns, slice(None), len(patterns))
        return
    for number in range(int(patterns.max()) + 1):
        rows = np.flatnonzero(patterns == number)
        yield _pack(columns, rows, len(rows))


def _number_patterns(columns: list[EncodedColumn]) -> npt.NDArray[np.intp]:
    """Return each row's pattern, numbered from 0: rows with the same width in every column."""
    patterns = np.zeros(len(columns[0].widths), dtype=np.int64)
    for column in columns:
        if (column.widths != column.widths[:1]).any():
            patterns = patterns * (int(column.widths.max()) + 2) + column.widths + 1
            patterns = pd.factorize(patterns)[0].astype(np.int64)
    return patterns


def _pack(columns: list[EncodedColumn], rows: Any, count: int) -> bytes:
    """Return rows of one pattern, laid side by side."""
    if not count:
        return b""
    widths = [int(column.widths[rows][0]) for column in columns]
    fields: list[tuple[str, str]] = [("count", ">i2")]
    for at, (column, width) in enumerate(zip(columns, widths, strict=True)):
        fields.append((f"width{at}", ">i4"))
        if width > 0:
            kind = f"S{width}" if column.values.dtype.kind == "S" else column.values.dtype.str
            fields.append((f"value{at}", kind))
    block = np.empty(count, dtype=fields)
    block["count"] = len(columns)
    for at, (column, width) in enumerate(zip(columns, widths, strict=True)):
        block[f"width{at}"] = width
        if width > 0:
            block[f"value{at}"] = column.values[rows]
    return block.tobytes()


def encode_column(series: "pd.Series[Any]", kind: str) -> EncodedColumn:
    """Return a column's values in PostgreSQL's binary form."""
    return _ENCODERS[kind](series)


def _fixed(values: npt.NDArray[Any], missing: npt.NDArray[np.bool_] | None) -> EncodedColumn:
    widths = np.full(len(values), values.dtype.itemsize, dtype=np.int32)
    if missing is not None:
        widths[missing] = -1
    return EncodedColumn(values, widths)


def _encode_integer(kind: str) -> Any:
    def encode(series: "pd.Series[Any]") -> EncodedColumn:
        missing = series.isna().to_numpy()
        filled = series.fillna(0) if missing.any() else series
        return _fixed(filled.to_numpy().astype(kind), missing)

    return encode


def _encode_double(series: "pd.Series[Any]") -> EncodedColumn:
    values = series.to_numpy(dtype="float64", na_value=np.nan)
    return _fixed(values.astype(">f8"), np.isnan(values))


def _encode_boolean(series: "pd.Series[Any]") -> EncodedColumn:
    return _fixed(series.to_numpy(dtype="bool").astype("i1"), None)


def _encode_time(series: "pd.Series[Any]") -> EncodedColumn:
    times = pd.DatetimeIndex(pd.to_datetime(series, utc=True)).as_unit("us")
    missing = np.asarray(times.isna())
    return _fixed((times.asi8 - EPOCH_MICROSECONDS).astype(">i8"), missing)


def _encode_date(series: "pd.Series[Any]") -> EncodedColumn:
    times = _encode_time(series)
    days = times.values.astype("int64") // _DAY_MICROSECONDS
    return _fixed(days.astype(">i4"), times.widths < 0)


def _encode_words(series: "pd.Series[Any]", encode: Any) -> EncodedColumn:
    codes, words = pd.factorize(series)
    coded = [encode(word) for word in words] or [b""]
    widths = np.array([len(word) for word in coded], dtype=np.int32)[codes]
    widths[codes < 0] = -1
    # Copying pads with zero bytes, so a uuid that ends in zeros keeps them: the width is its own.
    return EncodedColumn(np.array(coded, dtype=f"S{max(map(len, coded)) or 1}")[codes], widths)


def _encode_text(series: "pd.Series[Any]") -> EncodedColumn:
    return _encode_words(series, lambda word: str(word).replace("\0", "").encode())


def _encode_uuid(series: "pd.Series[Any]") -> EncodedColumn:
    return _encode_words(series, lambda word: UUID(str(word)).bytes)


_ENCODERS: dict[str, Callable[..., EncodedColumn]] = {
    "bigint": _encode_integer(">i8"),
    "integer": _encode_integer(">i4"),
    "double precision": _encode_double,
    "boolean": _encode_boolean,
    "date": _encode_date,
    "timestamp with time zone": _encode_time,
    "text": _encode_text,
    "uuid": _encode_uuid,
}
