"""A column as a PostgreSQL array literal, for batches too small to deserve a COPY."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd


def encode_array(column: "pd.Series[Any]", kind: str) -> str:
    """Return ``{...}`` as PostgreSQL reads it.

    Args:
        column: NaN, NaT and None are NULL. Times are UTC.
        kind: The PostgreSQL type of the elements; see ``copy_binary.encode_frame``.
    """
    missing = column.isna().to_numpy()
    words = _ENCODERS[kind](column)
    shown = ("NULL" if absent else word for absent, word in zip(missing, words, strict=True))
    return "{" + ",".join(shown) + "}"


def _encode_integers(column: "pd.Series[Any]") -> Iterable[str]:
    return map(str, column.fillna(0).astype("int64").tolist())


def _encode_doubles(column: "pd.Series[Any]") -> Iterable[str]:
    return map(repr, column.to_numpy(dtype="float64", na_value=0.0).tolist())


def _encode_booleans(column: "pd.Series[Any]") -> Iterable[str]:
    return ("t" if value else "f" for value in column.tolist())


def _encode_times(column: "pd.Series[Any]") -> Iterable[str]:
    times = pd.DatetimeIndex(pd.to_datetime(column, utc=True)).tz_localize(None)
    return (f"{moment}Z" for moment in np.datetime_as_string(times.to_numpy(), unit="us"))


def _encode_dates(column: "pd.Series[Any]") -> Iterable[str]:
    return (moment[:10] for moment in _encode_times(column))


def _encode_texts(column: "pd.Series[Any]") -> Iterable[str]:
    for word in column.tolist():
        escaped = str(word).replace("\0", "").replace("\\", "\\\\").replace('"', '\\"')
        yield f'"{escaped}"'


_ENCODERS: dict[str, Callable[["pd.Series[Any]"], Iterable[str]]] = {
    "bigint": _encode_integers,
    "integer": _encode_integers,
    "double precision": _encode_doubles,
    "boolean": _encode_booleans,
    "date": _encode_dates,
    "timestamp with time zone": _encode_times,
    "text": _encode_texts,
    "uuid": _encode_texts,
}
