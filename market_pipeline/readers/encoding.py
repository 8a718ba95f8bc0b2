"""Frames as bytes for other programs: JSON rows, CSV, Parquet, Arrow; piece by piece.

An index with a name is a column like the others. Times are UTC. Not here: the choice of a format
(``api.media``), files (``cli.export``).
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS = 5_000
_ARROW_ROWS = 20_000
# A spreadsheet takes a text that begins so for a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
Encoder = Callable[[pd.DataFrame], Iterator[bytes]]


def list_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as JSON has them: ISO 8601 times, null for what is unknown."""
    table = _flatten(frame)
    columns = [_list_cells(table[name]) for name in table]
    names = [str(name) for name in table]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def encode_json(value: object) -> bytes:
    """Return JSON without blanks; NaN is refused, times and UUIDs are text."""
    text = json.dumps(value, default=_format_value, allow_nan=False, separators=(",", ":"))
    return text.encode()


def encode_csv(frame: pd.DataFrame) -> Iterator[bytes]:
    """Yield CSV: a header line, CRLF, times as ISO 8601 with Z; no text can become a formula."""
    table = _flatten(frame)
    for at in range(0, max(len(table), 1), CHUNK_ROWS):
        piece = table.iloc[at : at + CHUNK_ROWS]
        cells = pd.DataFrame({name: _guard_cells(piece[name]) for name in piece})
        yield cells.to_csv(index=False, header=at == 0, lineterminator="\r\n").encode()


def encode_arrow(frame: pd.DataFrame) -> Iterator[bytes]:
    """Yield an Arrow IPC stream, its buffers compressed by LZ4: a third of the bytes."""
    import pyarrow as pa

    table = _build_arrow(frame)
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        for batch in table.to_batches(max_chunksize=_ARROW_ROWS):
            if sink.tell():
                yield _drain(sink)
            writer.write_batch(batch)
    yield _drain(sink)


def encode_parquet(frame: pd.DataFrame) -> Iterator[bytes]:
    """Yield a Parquet file, zstd compressed, a row group at a time."""
    import pyarrow.parquet as pq

    table = _build_arrow(frame)
    sink = io.BytesIO()
    with pq.ParquetWriter(_Appender(sink), table.schema, compression="zstd") as writer:
        writer.write_table(table, row_group_size=20 * CHUNK_ROWS)
        yield _drain(sink)
    yield _drain(sink)


ENCODERS: Mapping[str, Encoder] = {
    "csv": encode_csv,
    "parquet": encode_parquet,
    "arrow": encode_arrow,
}


class _Appender:
    """A file that is only ever appended to, so that what was written can be taken away."""

    def __init__(self, sink: io.BytesIO) -> None:
        self._sink, self._written, self.closed = sink, 0, False

    def write(self, data: bytes) -> int:
        self._written += len(data)
        return self._sink.write(data)

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        """Keep nothing back."""

    def close(self) -> None:
        self.closed = True


def _drain(sink: io.BytesIO) -> bytes:
    written = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return written


def _flatten(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.reset_index() if frame.index.name else frame


def _build_arrow(frame: pd.DataFrame) -> "pa.Table":
    import pyarrow as pa

    columns: dict[Any, Any] = {frame.index.name: frame.index} if frame.index.name else {}
    columns |= dict(frame.items())
    arrays = [pa.array(column, from_pandas=True) for column in columns.values()]
    kinds = tuple((name, column.dtype) for name, column in columns.items())
    about = {f"market_pipeline.{name}": str(value) for name, value in frame.attrs.items()}
    return pa.table(arrays, names=list(columns), metadata=_describe_dtypes(kinds) | about)


@lru_cache(maxsize=64)
def _describe_dtypes(kinds: tuple[tuple[str, Any], ...]) -> dict[Any, Any]:
    """Return the metadata that restores pandas' dtypes; it takes longer than the values."""
    import pyarrow as pa

    empty = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds})
    return dict(pa.Schema.from_pandas(empty, preserve_index=False).metadata)


def _list_cells(column: "pd.Series[Any]") -> list[Any]:
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return _spell_times(column)
    cells, missing = column.tolist(), column.isna().tolist()
    if not any(missing):
        return cells
    return [None if is_missing else one for one, is_missing in zip(cells, missing, strict=True)]


def _spell_times(column: "pd.Series[Any]") -> list[str | None]:
    naive = column.dt.tz_convert(None).to_numpy("datetime64[us]")
    texts = np.datetime_as_string(naive, unit="us").tolist()
    return [None if text == "NaT" else f"{text.removesuffix('.000000')}Z" for text in texts]


def _guard_cells(column: "pd.Series[Any]") -> "pd.Series[Any]":
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return pd.Series(_spell_times(column), column.index, dtype="object")
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column
    return column.map(guard_text, na_action="ignore")


def guard_text(cell: object) -> object:
    """Return a text cell with a quote before what a spreadsheet would take for a formula."""
    text = cell if isinstance(cell, str) else str(cell)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def format_time(moment: datetime) -> str:
    """Return a time as ISO 8601 in UTC, with Z."""
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat()}Z"


def _format_value(value: object) -> str:
    return format_time(value) if isinstance(value, datetime) else str(value)
