"""Closes of many markets as matrices, and the returns between adjacent sessions.

Here: placing bars on their calendar's grid, finding each market's last and base close for a
horizon, and what counts as no variance. Not here: any statistic (``roi``, ``volatility``,
``comparisons``).

The grid of a calendar holds every open_time at which it expects a bar, so a missing close shows as
NaN between its neighbours. A return exists only between adjacent places of the grid; nothing is
filled forward. Bars beside the grid, and closes that are not finite and positive, count as missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.bars import floor_to_weeks
from market_pipeline.domain.intervals import Interval, get_annualisation_factor
from market_pipeline.domain.sessions import build_hourly_grid, read_sessions

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

INSUFFICIENT_DATA: Final = "insufficient_data"
ZERO_VARIANCE: Final = "zero_variance"
NO_DOWNSIDE: Final = "no_downside"
OUT_OF_RANGE: Final = "out_of_range"

ZERO_TOLERANCE = 1e-12
"""A spread of returns below this is rounding noise: equal growth steps differ by about 1e-16."""

NOT_A_TIME = int(np.iinfo(np.int64).min)
"""How NumPy stores a missing time."""

_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class SessionMatrix:
    """The closes of all markets of one calendar; m markets, t places of the grid.

    Attributes:
        calendar: ``24/7`` or an exchange calendar's name.
        market_ids: Shape (m,); markets without bars have a row too.
        grid: Shape (t,), expected open times in microseconds since 1970, ascending.
        rows: Shape (m, t), the position of each bar in the bars given, -1 where there is none.
        closes: Shape (m, t), NaN where there is no bar.
        annualisation_factor: Bars of this interval in a year of this calendar.
    """

    calendar: str
    market_ids: IntArray
    grid: IntArray
    rows: IntArray
    closes: FloatArray
    annualisation_factor: float


@dataclass(frozen=True, slots=True)
class HorizonWindow:
    """The closes one horizon looks back on, aligned right: the last column is each market's last.

    Attributes:
        days: The horizon.
        has_base: Shape (m,), whether a close far enough back is known.
        closes: Shape (m, w), NaN before the base close and where missing.
        ratios: Shape (m, w - 1), P_t / P_(t-1), NaN unless both closes are known.
        rows: Shape (m, w), the position of each bar in the bars given.
    """

    days: int
    has_base: BoolArray
    closes: FloatArray
    ratios: FloatArray
    rows: IntArray

    @property
    def last(self) -> IntArray:
        """The column of each market's last close."""
        return np.full(len(self.closes), self.closes.shape[1] - 1)

    @property
    def first(self) -> IntArray:
        """The column of each market's first close."""
        first: IntArray = np.argmax(~np.isnan(self.closes), axis=1)
        return first

    @property
    def n_returns(self) -> IntArray:
        """How many adjacent returns each market has."""
        n_returns: IntArray = np.isfinite(self.ratios).sum(axis=1)
        return n_returns

    @property
    def n_missing(self) -> IntArray:
        """How many returns of each market span a hole, and are left out."""
        n_closes = (~np.isnan(self.closes)).sum(axis=1)
        n_missing: IntArray = np.maximum(n_closes - 1, 0) - self.n_returns
        return n_missing

    @property
    def base_close(self) -> FloatArray:
        """Each market's first close."""
        return np.take_along_axis(self.closes, self.first[:, None], axis=1)[:, 0]

    @property
    def roi(self) -> FloatArray:
        """Last close over first close, less one."""
        return self.closes[:, -1] / self.base_close - 1

    def take_times(self, times: IntArray, column: IntArray) -> IntArray:
        """Return each market's time at a column, ``NOT_A_TIME`` at column -1 or without a bar.

        Args:
            times: Microseconds since 1970 of all bars given.
            column: Shape (m,).
        """
        row = np.take_along_axis(self.rows, column[:, None], axis=1)[:, 0]
        return np.append(times, NOT_A_TIME)[np.where(column >= 0, row, -1)]


def build_session_matrices(
    bars: pd.DataFrame, calendars: Mapping[int, str], interval: Interval
) -> list[SessionMatrix]:
    """Place the final bars of one interval on the grids of their calendars, one matrix for each.

    Args:
        bars: Columns ``market_id``, ``open_time``, ``close``, with unique keys, in any order.
        calendars: The calendar of every market wanted.
        interval: The length of all bars.

    Raises:
        ValueError: A bar's market has no calendar.
    """
    ids = np.fromiter(calendars, dtype="int64", count=len(calendars))
    owners = np.array(list(calendars.values()), dtype=object)
    market = _find_markets(bars["market_id"], ids)
    opens = read_microseconds(bars["open_time"])
    closes: FloatArray = bars["close"].to_numpy(dtype="float64")
    usable = np.isfinite(closes) & (closes > 0) & (opens != NOT_A_TIME)
    matrices = []
    for calendar in dict.fromkeys(calendars.values()):
        member = owners == calendar
        chosen = np.flatnonzero(usable & member[market])
        grid, factor = _build_grid(calendar, interval, opens[chosen])
        rows = np.full((int(member.sum()), len(grid)), -1)
        _place_bars(rows, (np.cumsum(member) - 1)[market[chosen]], opens[chosen], grid, chosen)
        known = take_or_nan(closes, rows)
        matrices.append(SessionMatrix(calendar, ids[member], grid, rows, known, factor))
    return matrices


def cut_windows(matrix: SessionMatrix, horizons_days: Sequence[int]) -> list[HorizonWindow]:
    """Cut what each horizon sees out of a matrix.

    With D the open_time of a market's last bar, the base is its last close at or before
    D - horizon. A base that a hole has pushed back by more than a seventh of the horizon does not
    count, nor does a history that starts inside the horizon: the window is then what there is.
    """
    columns = np.arange(matrix.closes.shape[1])
    latest = np.maximum.accumulate(np.where(matrix.rows >= 0, columns, -1), axis=1)
    if not latest.size:
        latest = np.full((len(matrix.market_ids), 1), -1)
    last = latest[:, -1]
    found = [find_bases(matrix.grid, latest, last, days) for days in horizons_days]
    width = max([1, *(int((last - start).max(initial=0)) + 1 for _, start in found)])
    aligned = _align_right(matrix, last, width)
    return [
        _cut_window(*aligned, last - start + 1, has_base, days)
        for (has_base, start), days in zip(found, horizons_days, strict=True)
    ]


def find_bases(
    grid: IntArray, latest: IntArray, last: IntArray, days: int
) -> tuple[BoolArray, IntArray]:
    """Return, for each row, whether it has a base close, and the column where its window starts.

    Args:
        grid: Expected open times in microseconds, ascending.
        latest: Shape (k, t), the column of the latest known close up to each column, or -1.
        last: Shape (k,), ``latest`` at the end: the last column, or -1.
        days: The horizon.
    """
    wanted = find_wanted_bases(grid, last, days)
    base = np.where(wanted >= 0, latest[np.arange(len(last)), wanted], -1)
    has_base = (base >= 0) & (wanted - base <= max(1, days // 7))
    return has_base, np.where(has_base, base, np.maximum(wanted, 0))


def find_wanted_bases(grid: IntArray, last: IntArray, days: int) -> IntArray:
    """Return the column of the last place at or before ``days`` before each last, or -1."""
    targets = np.searchsorted(grid, grid - days * _DAY_US, side="right") - 1
    return np.append(targets, -1)[last]


def compute_period_rate(annual_rate: float, annualisation_factor: float) -> float:
    """Return the rate of one bar that compounds to an annual rate: (1 + annual)^(1/A) - 1."""
    return float(np.expm1(np.log1p(annual_rate) / annualisation_factor))


def compute_mean_and_std(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return mean and standard deviation (ddof=1) of each row's finite values; NaN without them."""
    known = np.isfinite(values)
    n = known.sum(axis=1)
    mean = np.where(known, values, 0.0).sum(axis=1) / n
    deviations = np.where(known, values - mean[:, None], 0.0)
    return mean, np.sqrt(np.einsum("ij,ij->i", deviations, deviations) / (n - 1))


def read_microseconds(times: "pd.Series[Any]") -> IntArray:
    """Return UTC times as microseconds since 1970; missing times become ``NOT_A_TIME``."""
    return times.to_numpy(dtype="datetime64[us]").view("int64")


def build_times(microseconds: IntArray) -> pd.DatetimeIndex:
    """Return microseconds since 1970 as UTC times, the inverse of :func:`read_microseconds`."""
    return pd.DatetimeIndex(microseconds.view("datetime64[us]")).tz_localize("UTC")


def take_or_nan(values: FloatArray, rows: IntArray) -> FloatArray:
    """Return the values at rows, NaN where a row is -1."""
    return np.append(values, np.nan)[rows]


def _find_markets(market_ids: "pd.Series[Any]", ids: IntArray) -> IntArray:
    market = pd.Index(ids).get_indexer(pd.Index(market_ids))
    if (market < 0).any():
        unknown = market_ids.to_numpy()[market < 0][0]
        raise ValueError(f"market {unknown} has bars but no calendar: name one for every market")
    return market


def _place_bars(
    rows: IntArray, market: IntArray, opens: IntArray, grid: IntArray, positions: IntArray
) -> None:
    """Write each bar's position where its market and open_time meet, unless it is off the grid."""
    column = pd.Index(grid).get_indexer(pd.Index(opens))
    on_grid = column >= 0
    rows[market[on_grid], column[on_grid]] = positions[on_grid]


def _build_grid(calendar: str, interval: Interval, opens: IntArray) -> tuple[IntArray, float]:
    """Return the open times expected from the first to the last given, and the factor ``A``."""
    if not len(opens):
        return np.empty(0, dtype="int64"), get_annualisation_factor(interval, calendar)
    first, last = build_times(np.array([opens.min(), opens.max()]))
    # A session may open on the UTC day before its date, and a week reaches to its Sunday.
    sessions = read_sessions(calendar, first - timedelta(days=1), last + timedelta(days=8))
    starts, bars_per_session = _list_starts(sessions, interval)
    starts = starts[(starts >= opens.min()) & (starts <= opens.max())]
    return starts, get_annualisation_factor(interval, calendar, bars_per_session)


def _list_starts(sessions: pd.DataFrame, interval: Interval) -> tuple[IntArray, float]:
    if interval is Interval.HOUR:
        lengths = sessions["close_time"] - sessions["open_time"]
        hours = lengths.dt.total_seconds() / interval.duration.total_seconds()
        bars_per_session = float(np.ceil(hours.median()))
        return read_microseconds(build_hourly_grid(sessions).to_series()), bars_per_session
    dates = sessions["session_date"]
    if interval is Interval.WEEK:
        dates = floor_to_weeks(dates).drop_duplicates()
    return read_microseconds(dates), 1.0


def _align_right(
    matrix: SessionMatrix, last: IntArray, width: int
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Return closes, ratios and rows of the last ``width`` columns up to each market's own last."""
    column = last[:, None] - np.arange(width - 1, -1, -1)
    padded = np.column_stack([matrix.rows, np.full(len(last), -1)])
    rows = np.take_along_axis(padded, np.maximum(column, -1), axis=1)
    padded_closes = np.column_stack([matrix.closes, np.full(len(last), np.nan)])
    closes = np.take_along_axis(padded_closes, np.maximum(column, -1), axis=1)
    with np.errstate(over="ignore"):
        return closes, closes[:, 1:] / closes[:, :-1], rows


def _cut_window(
    closes: FloatArray,
    ratios: FloatArray,
    rows: IntArray,
    length: IntArray,
    has_base: BoolArray,
    days: int,
) -> HorizonWindow:
    width = max(1, int(length.max(initial=1)))
    outside = np.arange(width - 1, -1, -1) >= length[:, None]
    inside_closes = np.where(outside, np.nan, closes[:, -width:])
    kept = ratios[:, ratios.shape[1] - width + 1 :]
    inside_ratios = np.where(outside[:, :-1], np.nan, kept)
    return HorizonWindow(days, has_base, inside_closes, inside_ratios, rows[:, -width:])


def is_zero_spread(spread: FloatArray, level: FloatArray) -> BoolArray:
    """Tell where returns around a level differ by no more than rounding does."""
    return np.isfinite(spread) & (spread <= ZERO_TOLERANCE * np.maximum(1.0, np.abs(level)))
