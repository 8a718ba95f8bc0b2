"""Closes of many markets as matrices, and the returns between adjacent sessions.

Here: placing bars on their calendar's grid, finding each market's last and base close for a
horizon, and what counts as no variance. Not here: any statistic (``roi``, ``volatility``,
``comparisons``).

The grid of a calendar holds every open_time at which it expects a bar, so a missing close shows as
NaN between its neighbours. A return exists only between adjacent places of the grid. Nothing is
filled forward. Bars beside the grid, and closes that are not finite and positive, count as missing.

The result for a market does not depend, to the last bit, on which other markets are in the matrix.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, reduce
from typing import Any, Final

import numpy as np
import pandas as pd

from market_pipeline.domain.arrays import BoolArray, FloatArray, IntArray
from market_pipeline.domain.bars import floor_to_weeks
from market_pipeline.domain.intervals import Interval, get_annualisation_factor
from market_pipeline.domain.sessions import build_hourly_grid, read_sessions
from market_pipeline.domain.sufficiency import MinReturns

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
        expected: Shape (m,), how many returns the calendar expects within the horizon.
        closes: Shape (m, w), NaN before the base close and where missing.
        ratios: Shape (m, w - 1), P_t / P_(t-1), NaN unless both closes are known.
        rows: Shape (m, w), the position of each bar in the bars given.
    """

    days: int
    has_base: BoolArray
    expected: IntArray
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
        """The number of adjacent returns of each market."""
        n_returns: IntArray = np.isfinite(self.ratios).sum(axis=1)
        return n_returns

    @property
    def n_missing(self) -> IntArray:
        """The number of returns of each market that span a hole, and are left out."""
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

    def find_versions(self, versions: IntArray) -> IntArray:
        """Return the newest version among the bars of each market's window, -1 without any.

        Args:
            versions: Of all bars given.
        """
        found = np.append(versions, -1)[self.rows]
        newest: IntArray = np.where(np.isnan(self.closes), -1, found).max(axis=1, initial=-1)
        return newest

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
    latest = _find_latest(matrix)
    every = np.arange(len(matrix.market_ids))
    return [_cut(matrix, every, latest, latest[:, -1], days) for days in horizons_days]


def cut_rolling_window(matrix: SessionMatrix, row: int, days: int) -> HorizonWindow:
    """Cut the window that ends at each close of one market: one row a close, in order."""
    latest = _find_latest(matrix)[row]
    last = np.flatnonzero(matrix.rows[row] >= 0)
    rows = np.full(len(last), row)
    return _cut(matrix, rows, np.broadcast_to(latest, (len(last), len(latest))), last, days)


def find_bases(
    grid: IntArray, latest: IntArray, last: IntArray, days: int
) -> tuple[BoolArray, IntArray, IntArray]:
    """Return, for each row, whether it has a base close, where its window starts, what is expected.

    Args:
        grid: Expected open times in microseconds, ascending.
        latest: Shape (k, t), the column of the latest known close up to each column, or -1.
        last: Shape (k,), the last column of each window, or -1.
        days: The horizon.

    Returns:
        Whether there is a base; the column where the window starts; the number of returns that the
        grid expects within the horizon.
    """
    wanted = find_wanted_bases(grid, last, days)
    base = np.where(wanted >= 0, latest[np.arange(len(last)), wanted], -1)
    has_base = (base >= 0) & (wanted - base <= find_slack(days))
    start = np.maximum(wanted, 0)
    return has_base, np.where(has_base, base, start), np.maximum(last - start, 0)


def find_wanted_bases(grid: IntArray, last: IntArray, days: int) -> IntArray:
    """Return the column of the last place at or before ``days`` before each last, or -1."""
    targets = np.searchsorted(grid, grid - days * _DAY_US, side="right") - 1
    return np.append(targets, -1)[last]


def find_slack(days: int) -> int:
    """Return how many places a hole may push a base further back: a seventh of the horizon."""
    return max(1, days // 7)


@lru_cache(maxsize=8192)
def find_reach(
    calendars: frozenset[str], interval: Interval, last: datetime, days: int
) -> datetime:
    """Return the open_time of the earliest bar that a window may look at.

    Args:
        calendars: The market's, or both of a pair.
        interval: The length of the bars.
        last: The open_time of the window's last bar (UTC).
        days: The horizon.
    """
    # Twice the horizon holds the slack of any calendar; the rest is for long closures.
    for span in (timedelta(days=2 * days + 30), timedelta(days=4 * days + 365)):
        grid = build_joined_grid(calendars, interval, last - span, last)
        if len(grid):
            wanted = find_wanted_bases(grid, np.array([len(grid) - 1]), days)
            reach = int(wanted[0]) - find_slack(days)
            if reach >= 0:
                found: datetime = build_times(grid[reach : reach + 1])[0].to_pydatetime()
                return found
    return last - span


def build_joined_grid(
    calendars: Iterable[str], interval: Interval, first: datetime, last: datetime
) -> IntArray:
    """Return the places that all calendars expect from one open_time to another, both included."""
    starts = [
        _list_places(calendar, interval, first.year, last.year) for calendar in set(calendars)
    ]
    grid: IntArray = reduce(np.intersect1d, starts)
    first_us, last_us = read_microseconds(pd.Series([first, last], dtype="datetime64[us, UTC]"))
    within: IntArray = grid[(grid >= first_us) & (grid <= last_us)]
    return within


def fill_gaps(
    calendars: Iterable[str], interval: Interval, opens: IntArray
) -> tuple[IntArray, IntArray]:
    """Return all places from the first open_time to the last, and where those given are in it.

    What is drawn at the other places is missing: a line breaks there.

    Args:
        calendars: The market's, or both of a pair.
        interval: The length of the bars.
        opens: Microseconds since 1970, ascending.
    """
    if not len(opens):
        return opens, opens
    first, last = build_times(opens[[0, -1]])
    places = build_joined_grid(calendars, interval, first.to_pydatetime(), last.to_pydatetime())
    filled: IntArray = np.union1d(places, opens)
    return filled, np.searchsorted(filled, opens)


def is_insufficient(window: HorizonWindow, fewest: MinReturns) -> BoolArray:
    """Tell which markets have no base close, or too few returns for the horizon."""
    return ~window.has_base | (window.n_returns < fewest.find(window.days, window.expected))


def name_versions(bars: pd.DataFrame, window: HorizonWindow) -> dict[str, Any]:
    """Return ``dataset_version`` of each market's window as a column, where the bars have it."""
    if "dataset_version" not in bars:
        return {}
    newest = window.find_versions(bars["dataset_version"].to_numpy(dtype="int64"))
    return {"dataset_version": hide_unknown_versions(newest)}


def hide_unknown_versions(versions: IntArray) -> pd.arrays.IntegerArray:
    """Return versions as a nullable column; -1 stands for none."""
    return pd.arrays.IntegerArray(versions.astype("int64"), versions < 0)


def compute_period_rate(annual_rate: float, annualisation_factor: float) -> float:
    """Return the rate of one bar that compounds to an annual rate: (1 + annual)^(1/A) - 1."""
    return float(np.expm1(np.log1p(annual_rate) / annualisation_factor))


def compute_mean_and_std(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return mean and standard deviation (ddof=1) of each row's finite values; NaN without them."""
    known = np.isfinite(values)
    n = known.sum(axis=1)
    mean = add_up(np.where(known, values, 0.0)) / n
    deviations = np.where(known, values - mean[:, None], 0.0)
    return mean, np.sqrt(add_up(deviations * deviations) / (n - 1))


def add_up(values: FloatArray) -> FloatArray:
    """Return the sum of each row, added from left to right.

    Zeros in front of a row then leave its sum as it is to the last bit. NumPy's own sum adds in an
    order that depends on the width, and so on the longest window among the markets.
    """
    if not values.shape[1]:
        return np.zeros(len(values))
    total: FloatArray = np.add.accumulate(values, axis=1)[:, -1]
    return total


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


@lru_cache(maxsize=128)
def _list_places(calendar: str, interval: Interval, first_year: int, last_year: int) -> IntArray:
    """Return the open times that a calendar expects in some years, and a little around them."""
    # A session may open on the UTC day before its date, and a week reaches to its Sunday.
    start, end = (
        datetime(first_year - 1, 12, 20, tzinfo=UTC),
        datetime(last_year + 1, 1, 12, tzinfo=UTC),
    )
    places, _ = _list_starts(read_sessions(calendar, start, end), interval)
    places.setflags(write=False)
    return places


def _list_starts(sessions: pd.DataFrame, interval: Interval) -> tuple[IntArray, float]:
    if interval is Interval.HOUR:
        lengths = sessions["close_time"] - sessions["open_time"]
        hours = lengths.dt.total_seconds() / interval.duration.total_seconds()
        bars_per_session = float(np.ceil(hours.median()))
        return read_microseconds(build_hourly_grid(sessions).to_series()), bars_per_session
    dates = read_microseconds(sessions["session_date"])
    if interval is Interval.WEEK:
        dates = np.unique(floor_to_weeks(dates))
    return dates, 1.0


def _find_latest(matrix: SessionMatrix) -> IntArray:
    """Return the column of the latest known close up to each column, or -1; never without one."""
    columns = np.arange(matrix.closes.shape[1])
    latest = np.maximum.accumulate(np.where(matrix.rows >= 0, columns, -1), axis=1)
    return latest if latest.size else np.full((len(matrix.market_ids), 1), -1)


def _cut(
    matrix: SessionMatrix, rows: IntArray, latest: IntArray, last: IntArray, days: int
) -> HorizonWindow:
    """Cut the windows of some rows of a matrix that end at some columns, aligned right."""
    has_base, start, expected = find_bases(matrix.grid, latest, last, days)
    length = last - start + 1
    width = max(1, int(length.max(initial=1)))
    column = last[:, None] - np.arange(width - 1, -1, -1)
    column = np.where(np.arange(width, 0, -1) > length[:, None], -1, column)
    padded = np.column_stack([matrix.closes, np.full(len(matrix.closes), np.nan)])
    closes = padded[rows[:, None], column]
    found = np.column_stack([matrix.rows, np.full(len(matrix.rows), -1)])[rows[:, None], column]
    with np.errstate(over="ignore"):
        ratios = closes[:, 1:] / closes[:, :-1]
    return HorizonWindow(days, has_base, expected, closes, ratios, found)


def is_zero_spread(spread: FloatArray, level: FloatArray) -> BoolArray:
    """Tell where returns around a level differ by no more than rounding does."""
    return np.isfinite(spread) & (spread <= ZERO_TOLERANCE * np.maximum(1.0, np.abs(level)))
