"""Bars as NumPy columns: the shape in which they travel from a provider's answer to the database.

The columns are those of the bar frame (``records``), in the same order and of equal length. Times
are microseconds since 1970 (UTC); a time that is missing is :data:`NO_TIME`. Nothing else differs
from a frame, but a handful of bars costs a tenth of what it costs in pandas.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.arrays import BoolArray, FloatArray, Micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import BAR_COLUMNS, BAR_DTYPES, UTC_DTYPE

Words = npt.NDArray[np.object_]
Places = npt.NDArray[np.intp] | BoolArray | slice
NO_TIME = np.iinfo(np.int64).min
PRICES = ("open", "high", "low", "close")


@dataclass(frozen=True, slots=True)
class BarColumns:
    """Bars column by column; what each one means stands in ``records``."""

    interval: Words
    open_time: Micros
    close_time: Micros
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray
    volume_kind: Words
    trades: FloatArray
    source_kind: Words
    is_final: BoolArray

    def __len__(self) -> int:
        return len(self.open_time)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return iter(_LIST(self))

    def take(self, places: Places) -> "BarColumns":
        """Return the bars at some places, or where a mask is true."""
        return BarColumns(*[column[places] for column in _LIST(self)])

    def of_interval(self, interval: Interval) -> "BarColumns":
        """Return the bars of one interval."""
        is_its = self.interval == interval.value
        return self if is_its.all() else self.take(is_its)

    def with_final(self, is_final: BoolArray) -> "BarColumns":
        """Return the bars with other flags."""
        return replace(self, is_final=is_final)

    def with_prices(self, prices: FloatArray) -> "BarColumns":
        """Return the bars with other prices; shape (n, 4)."""
        opens, highs, lows, closes = prices.T
        return replace(self, open=opens, high=highs, low=lows, close=closes)

    def stack_prices(self) -> FloatArray:
        """Return open, high, low and close; shape (n, 4)."""
        return np.column_stack([self.open, self.high, self.low, self.close])

    def to_frame(self) -> pd.DataFrame:
        """Return the bar frame."""
        columns: dict[str, Any] = dict(zip(BAR_COLUMNS, self, strict=True))
        for name, kind in BAR_DTYPES.items():
            if kind == UTC_DTYPE:
                columns[name] = to_times(columns[name])
        return pd.DataFrame(columns).astype(dict(BAR_DTYPES))


_LIST = attrgetter(*BAR_COLUMNS)


def to_times(micros: Micros) -> pd.DatetimeIndex:
    """Return microseconds as times in UTC."""
    return pd.DatetimeIndex(micros.view("datetime64[us]")).tz_localize("UTC")


def to_micros_array(times: "pd.Series[Any] | pd.DatetimeIndex") -> Micros:
    """Return times in UTC as microseconds; NaT becomes :data:`NO_TIME`."""
    return np.asarray(pd.DatetimeIndex(times).as_unit("us").asi8)


def build_columns(**given: Any) -> BarColumns:
    """Return bars from columns or constants; volume, trades and kinds have defaults.

    Args:
        given: By name, as in ``BarColumns``; ``open_time`` is an array.
    """
    defaults = {"volume": np.nan, "volume_kind": "none", "trades": np.nan, "source_kind": "traded"}
    raw, count = {**defaults, **given}, len(given["open_time"])
    kinds = {"str": object, UTC_DTYPE: np.int64, "float64": np.float64, "bool": np.bool_}
    columns: list[Any] = []
    for name, kind in BAR_DTYPES.items():
        value = raw[name]
        if isinstance(value, np.ndarray):
            columns.append(value.astype(kinds[kind], copy=False))
        else:
            columns.append(np.full(count, value, dtype=kinds[kind]))
    return BarColumns(*columns)


def read_frame_columns(frame: pd.DataFrame) -> BarColumns:
    """Return a bar frame's columns."""
    columns: list[Any] = []
    for name, kind in BAR_DTYPES.items():
        column = frame[name]
        if kind == UTC_DTYPE:
            columns.append(to_micros_array(column))
        else:
            columns.append(column.to_numpy(dtype=object if kind == "str" else kind))
    return BarColumns(*columns)


def join_columns(parts: Sequence[BarColumns]) -> BarColumns:
    """Return bars one after the other."""
    full = [part for part in parts if len(part)]
    if len(full) == 1:
        return full[0]
    if not full:
        return NO_BARS
    return BarColumns(*(np.concatenate(columns) for columns in zip(*full, strict=True)))


NO_BARS = build_columns(**{field.name: np.empty(0, dtype=object) for field in fields(BarColumns)})
