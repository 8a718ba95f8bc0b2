"""Comparisons of two markets: price and volume ratio, ROI spread and correlation.

Here: the formulas, for many pairs at once. Not here: which pairs are worth storing.

Both series are joined on their open_time before any return is taken: the grid of a pair holds what
both calendars expect, so between BTC (always open) and SPX a return runs from one New York session
to the next. A return needs both closes at both ends; one that spans a hole is left out.

The two closes of a joined day need not be simultaneous. ``close_skew_seconds`` is the base's close
less the quote's at the last joined date: 3 hours for BTC-USD over SPX in winter, since one closes
at midnight UTC and the other at 21:00.

Pairs whose markets know the same places of the grid share their window, so the work is done for
each distinct window at once, by matrix products where there are many pairs in it. Few pairs are
summed one by one: their rows do not depend, to the last bit, on what else is compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import union_categoricals

from market_pipeline.domain.arrays import BoolArray, FloatArray, IntArray
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.returns import (
    INSUFFICIENT_DATA,
    NOT_A_TIME,
    OUT_OF_RANGE,
    ZERO_TOLERANCE,
    ZERO_VARIANCE,
    SessionMatrix,
    add_up,
    build_session_matrices,
    build_times,
    find_bases,
    find_slack,
    find_wanted_bases,
    hide_unknown_versions,
    read_microseconds,
    take_or_nan,
)
from market_pipeline.domain.sufficiency import MinReturns

QUOTE_CURRENCY_DIFFERS = "quote_currency_differs"
CLOSE_SKEW = "close_skew"
REASONS = (QUOTE_CURRENCY_DIFFERS, CLOSE_SKEW, INSUFFICIENT_DATA, ZERO_VARIANCE, OUT_OF_RANGE)
"""Why a measure is missing, the weightiest first."""

MEASURES = ("price_ratio", "volume_ratio", "roi_spread", "correlation")
COMPARISON_COLUMNS = (
    "base_market_id",
    "quote_market_id",
    "interval",
    "horizon",
    "as_of",
    "method",
    "price_ratio",
    "volume_ratio",
    "roi_spread",
    "correlation",
    "close_skew_seconds",
    "n_returns",
    "first_bar_at",
    "reason",
)
_MISSING: Mapping[str, Any] = {
    **dict.fromkeys(("as_of", "first_bar_at"), NOT_A_TIME),
    **dict.fromkeys((*MEASURES, "close_skew_seconds"), np.nan),
    **dict.fromkeys(("n_returns", "expected"), 0),
    "dataset_version": -1,
    "has_base": False,
}
Columns = dict[str, npt.NDArray[Any]]
Product = Callable[[FloatArray, FloatArray], FloatArray]

MAX_SKEW = timedelta(hours=6)
_MICROSECONDS = 1_000_000
_FEW_PAIRS = 16_384
"""Up to so many pairs of one window are summed one by one; for more that would take too long."""
_BLOCK_PAIRS = 260_000
"""Pairs worked on at once; it bounds memory whatever the number of pairs."""


@dataclass(frozen=True, slots=True)
class _Side:
    """The markets of one calendar on the joined grid; m markets, t places.

    Attributes:
        closes: Shape (m, t), NaN where missing.
        volumes: Shape (m, t), NaN where missing.
        closed_at: Shape (m, t), microseconds.
        versions: Shape (m, t), of the bars, -1 where missing or unknown.
        patterns: Shape (k, t), the distinct rows of "this close is known".
        pattern: Shape (m,), each market's row in ``patterns``.
    """

    closes: FloatArray
    volumes: FloatArray
    closed_at: IntArray
    versions: IntArray
    patterns: BoolArray
    pattern: IntArray


@dataclass(frozen=True, slots=True)
class _Spans:
    """The window of every two patterns: shape (ka, kb) each, columns of the joined grid.

    ``reach`` is the first column that could have been the base, ``expected`` counts the returns
    that the joined grid expects within the horizon.
    """

    start: IntArray
    last: IntArray
    has_base: BoolArray
    reach: IntArray
    expected: IntArray


@dataclass(frozen=True, slots=True)
class _Group:
    """All pairs of one calendar with another.

    Attributes:
        base: The bases' side. quote: The quotes' side; the same object within one calendar.
        at: The positions of the pairs among all.
        base_row: Each pair's row in ``base``. quote_row: Each pair's row in ``quote``.
        spans: The windows of each horizon.
    """

    base: _Side
    quote: _Side
    at: IntArray
    base_row: IntArray
    quote_row: IntArray
    spans: list[_Spans]


@dataclass(frozen=True, slots=True)
class _Window:
    """One span of the joined grid: closes from ``start`` to ``last``, both included."""

    start: int
    last: int
    has_base: int
    reach: int
    expected: int


@dataclass(frozen=True, slots=True)
class _Cut:
    """The part of a side that one window looks at; m markets, w places.

    Attributes:
        closes: Shape (m, w). volumes: Shape (m, w).
        closed_at: Shape (m,), of the last place. first_closed_at: The same of the first.
        versions: Shape (m,), the newest of the bars that the window may look at.
    """

    closes: FloatArray
    volumes: FloatArray
    closed_at: IntArray
    first_closed_at: IntArray
    versions: IntArray

    @property
    def returns(self) -> FloatArray:
        """Simple returns, shape (m, w - 1); NaN or infinite ones do not count."""
        return self.closes[:, 1:] / self.closes[:, :-1] - 1

    @property
    def roi(self) -> FloatArray:
        """Last close over first close, less one."""
        return self.closes[:, -1] / self.closes[:, 0] - 1

    @property
    def known_volumes(self) -> FloatArray:
        """Volumes of the returns' dates, NaN where the volume or the close is unknown."""
        known = np.isfinite(self.volumes) & ~np.isnan(self.closes)
        return np.where(known, self.volumes, np.nan)[:, 1:]


def compute_comparisons(
    bars: pd.DataFrame,
    markets: pd.DataFrame,
    interval: Interval,
    horizons_days: Sequence[int],
    pairs: npt.NDArray[np.int64] | None = None,
    max_skew: timedelta = MAX_SKEW,
    min_returns: int | None = None,
) -> pd.DataFrame:
    """Compute one row per pair and horizon from final bars.

    Args:
        bars: Final bars of one interval: ``market_id``, ``open_time``, ``close_time``, ``close``,
            and ``volume`` and ``dataset_version`` where known.
        markets: ``market_id``, ``quote``, ``calendar``; each market once.
        interval: The length of the bars.
        horizons_days: How far each horizon looks back from the last joined date.
        pairs: Shape (n, 2), base and quote market_id; by default every unordered pair once, the
            base being the one that comes first in ``markets``.
        max_skew: Closes further apart than this are not compared.
        min_returns: Fewer joined returns give no ROI spread, volume ratio or correlation; None: as
            ``MinReturns`` says, of the returns that the joined calendars expect.

    Returns:
        ``COMPARISON_COLUMNS``, horizon after horizon, each in the order of the pairs. ``interval``,
        ``horizon`` and ``reason`` are categorical: half a million strings would cost more than the
        statistics.

        - ``as_of``: the later close of the last joined date; missing where no date is joined.
        - ``price_ratio``: base close / quote close at the last joined date.
        - ``volume_ratio``: base volume / quote volume, each summed over the joined dates of the
          horizon on which both are known, in whatever unit each is counted; NaN without a reason
          where no date has both, or a sum is zero.
        - ``roi_spread``: ROI of the base less ROI of the quote, both over the joined window.
        - ``correlation``: Pearson's, of simple returns, in [-1, 1].
        - ``close_skew_seconds``: signed, positive where the base closes later.
        - ``first_bar_at``: the earlier close of the base date; missing where none is known.
        - ``dataset_version`` (Int64, with versions only): the newest among the bars of both on the
          joined dates up to the last, from the earliest that could have been the base on.
        - ``reason``: ``quote_currency_differs`` and ``close_skew`` leave all four measures out,
          ``insufficient_data`` all but the price ratio, ``zero_variance`` the correlation alone,
          ``out_of_range`` what a double cannot hold.

    Raises:
        ValueError: A pair or bar names a market that is not in ``markets``.
    """
    base, quote = _list_pairs(markets["market_id"], pairs)
    groups = _build_groups(bars, markets, interval, horizons_days, (base, quote))
    currency = markets["quote"].factorize()[0]
    ids = markets["market_id"].to_numpy(dtype="int64")
    fewest = MinReturns(min_returns)
    frames = []
    for h, days in enumerate(horizons_days):
        with np.errstate(all="ignore"):
            columns = _compute_horizon(groups, h, len(base))
            minimum = fewest.find(days, columns.pop("expected"))
            _blank_and_explain(columns, currency[base] != currency[quote], max_skew, minimum)
        columns |= {"base_market_id": ids[base], "quote_market_id": ids[quote]}
        method = name_method(max_skew, min_returns)
        frames.append(_build_frame(columns, interval.value, f"{days}d", method))
    rows = _join_frames(frames)
    return rows if "dataset_version" in bars else rows.drop(columns="dataset_version")


def name_method(max_skew: timedelta = MAX_SKEW, min_returns: int | None = None) -> str:
    """Return what a row's ``method`` says."""
    return f"simple;skew={max_skew.total_seconds():.0f};{MinReturns(min_returns).name}"


def _list_pairs(
    market_ids: "pd.Series[int]", pairs: npt.NDArray[np.int64] | None
) -> tuple[IntArray, IntArray]:
    """Return the positions of each pair's base and quote among the markets."""
    if pairs is None:
        return np.triu_indices(len(market_ids), 1)
    wanted = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    found = pd.Index(market_ids).get_indexer(pd.Index(wanted.ravel()))
    if (found < 0).any():
        unknown = wanted.ravel()[found < 0][0]
        raise ValueError(f"a pair names market {unknown}, which is not among those to compare")
    return found[::2], found[1::2]


def _build_groups(
    bars: pd.DataFrame,
    markets: pd.DataFrame,
    interval: Interval,
    horizons_days: Sequence[int],
    pairs: tuple[IntArray, IntArray],
) -> list[_Group]:
    calendars = dict(zip(markets["market_id"], markets["calendar"], strict=True))
    matrices = build_session_matrices(bars, calendars, interval)
    calendar, row = _locate_markets(matrices, markets["market_id"])
    kind = calendar[pairs[0]] * len(matrices) + calendar[pairs[1]]
    groups = []
    for code in np.flatnonzero(np.bincount(kind)):
        at = np.flatnonzero(kind == code)
        left, right = divmod(int(code), len(matrices))
        grid, base, quote = _join(matrices[left], matrices[right], bars)
        spans = _find_spans(grid, base.patterns, quote.patterns, horizons_days)
        groups.append(_Group(base, quote, at, row[pairs[0][at]], row[pairs[1][at]], spans))
    return groups


def _locate_markets(
    matrices: list[SessionMatrix], market_ids: "pd.Series[int]"
) -> tuple[IntArray, IntArray]:
    """Return the matrix and the row of each market."""
    ids = np.concatenate([np.empty(0, dtype="int64"), *(m.market_ids for m in matrices)])
    sizes = [len(matrix.market_ids) for matrix in matrices]
    order = pd.Index(ids).get_indexer(pd.Index(market_ids))
    calendar = np.repeat(np.arange(len(matrices)), sizes)
    row = np.concatenate([np.empty(0, dtype="int64"), *(np.arange(size) for size in sizes)])
    return calendar[order], row[order]


def _join(
    base: SessionMatrix, quote: SessionMatrix, bars: pd.DataFrame
) -> tuple[IntArray, _Side, _Side]:
    """Return the places both calendars expect, and both sides on them."""
    if base is quote:
        side = _build_side(base, slice(None), bars)
        return base.grid, side, side
    grid, in_base, in_quote = np.intersect1d(
        base.grid, quote.grid, assume_unique=True, return_indices=True
    )
    return grid, _build_side(base, in_base, bars), _build_side(quote, in_quote, bars)


def _build_side(matrix: SessionMatrix, columns: IntArray | slice, bars: pd.DataFrame) -> _Side:
    closes, rows = matrix.closes[:, columns], matrix.rows[:, columns]
    volume = bars["volume"].to_numpy(dtype="float64") if "volume" in bars else None
    known = ~np.isnan(closes)
    _, first, pattern = np.unique(
        # One column more, for a grid without places has no patterns to tell apart.
        np.packbits(np.pad(known, ((0, 0), (0, 1))), axis=1),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    return _Side(
        closes=closes,
        volumes=np.full(closes.shape, np.nan) if volume is None else take_or_nan(volume, rows),
        closed_at=np.append(read_microseconds(bars["close_time"]), NOT_A_TIME)[rows],
        versions=_take_versions(bars, rows),
        patterns=known[first],
        pattern=pattern.reshape(-1),
    )


def _take_versions(bars: pd.DataFrame, rows: IntArray) -> IntArray:
    if "dataset_version" not in bars:
        return np.full(rows.shape, -1)
    return np.append(bars["dataset_version"].to_numpy(dtype="int64"), -1)[rows]


def _find_spans(
    grid: IntArray, base: BoolArray, quote: BoolArray, horizons_days: Sequence[int]
) -> list[_Spans]:
    """Return the windows of each horizon for every two patterns."""
    places = np.arange(len(grid))
    shape = (len(horizons_days), len(base), len(quote))
    start, expected = np.zeros(shape, dtype="int64"), np.zeros(shape, dtype="int64")
    has_base = np.zeros(shape, dtype=bool)
    last = np.full(shape[1:], -1)
    for k in range(len(base) if len(grid) else 0):
        latest = np.maximum.accumulate(np.where(base[k] & quote, places, -1), axis=1)
        last[k] = latest[:, -1]
        for h, days in enumerate(horizons_days):
            has_base[h, k], start[h, k], expected[h, k] = find_bases(grid, latest, last[k], days)
    reach = [
        np.maximum(find_wanted_bases(grid, last, days) - find_slack(days), 0)
        for days in horizons_days
    ]
    return [
        _Spans(start[h], last, has_base[h], reach[h], expected[h])
        for h in range(len(horizons_days))
    ]


def _compute_horizon(groups: list[_Group], horizon: int, n_pairs: int) -> Columns:
    """Return the columns of all pairs for one horizon, in the order of the pairs."""
    columns: Columns = {name: np.full(n_pairs, missing) for name, missing in _MISSING.items()}
    for group in groups:
        for window, chosen in _iterate_windows(group, group.spans[horizon]):
            base, base_row = _cut_side(group.base, group.base_row[chosen], window)
            quote, quote_row = _cut_side(group.quote, group.quote_row[chosen], window)
            at = group.at[chosen]
            columns["has_base"][at] = window.has_base
            columns["expected"][at] = window.expected
            for name, values in _compare_sides(base, quote, base_row, quote_row).items():
                columns[name][at] = values
    return columns


def _iterate_windows(group: _Group, spans: _Spans) -> Iterator[tuple[_Window, IntArray]]:
    """Yield each distinct window and the positions of its pairs in the group, block by block."""
    n_places = group.base.closes.shape[1] + 1
    codes = ((spans.start * n_places) + spans.last) * 2 + spans.has_base
    _, first, window = np.unique(codes, return_index=True, return_inverse=True)
    base_pattern = group.base.pattern[group.base_row]
    cell = base_pattern * codes.shape[1] + group.quote.pattern[group.quote_row]
    window_of_pair = window.reshape(-1)[cell]
    for number, at in enumerate(first):
        parts = (spans.start, spans.last, spans.has_base, spans.reach, spans.expected)
        span = _Window(*(int(part.flat[at]) for part in parts))
        members = np.flatnonzero(window_of_pair == number) if span.last >= 0 else cell[:0]
        for begin in range(0, len(members), _BLOCK_PAIRS):
            yield span, members[begin : begin + _BLOCK_PAIRS]


def _cut_side(side: _Side, rows: IntArray, window: _Window) -> tuple[_Cut, IntArray]:
    """Return the markets in use within the window, and each pair's row among them."""
    used = np.zeros(len(side.closes), dtype=bool)
    used[rows] = True
    span = slice(window.start, window.last + 1)
    cut = _Cut(
        side.closes[used, span],
        side.volumes[used, span],
        side.closed_at[used, window.last],
        side.closed_at[used, window.start],
        side.versions[used, window.reach : window.last + 1].max(axis=1),
    )
    return cut, (np.cumsum(used) - 1)[rows]


def _compare_sides(base: _Cut, quote: _Cut, base_row: IntArray, quote_row: IntArray) -> Columns:
    """Return the columns of pairs, each given by its rows in the two sides."""
    multiply = _choose_product(base_row, quote_row)
    correlation, n_returns = _correlate(base.returns, quote.returns, base_row, quote_row, multiply)
    base_closed, quote_closed = base.closed_at[base_row], quote.closed_at[quote_row]
    first = np.minimum(base.first_closed_at[base_row], quote.first_closed_at[quote_row])
    return {
        "as_of": np.maximum(base_closed, quote_closed),
        "price_ratio": base.closes[:, -1][base_row] / quote.closes[:, -1][quote_row],
        "volume_ratio": _divide_volumes(
            base.known_volumes, quote.known_volumes, base_row, quote_row, multiply
        ),
        "roi_spread": base.roi[base_row] - quote.roi[quote_row],
        "correlation": correlation,
        "close_skew_seconds": (base_closed - quote_closed) / _MICROSECONDS,
        "n_returns": n_returns,
        "first_bar_at": first,
        "dataset_version": np.maximum(base.versions[base_row], quote.versions[quote_row]),
    }


def _choose_product(base_row: IntArray, quote_row: IntArray) -> Product:
    """Return what sums the products of two rows of every pair, over the places of the window."""
    if len(base_row) <= _FEW_PAIRS:
        return lambda a, b: add_up(a[base_row] * b[quote_row])
    return lambda a, b: np.asarray((a @ b.T)[base_row, quote_row])


def _correlate(
    base: FloatArray,
    quote: FloatArray,
    base_row: IntArray,
    quote_row: IntArray,
    multiply: Product,
) -> tuple[FloatArray, IntArray]:
    """Return Pearson's correlation of every pair over the columns both know, and their count.

    NaN where a side does not vary. Rows are centred and scaled first: it takes the sums of squares
    out of reach of cancellation and overflow.
    """
    known_a, known_b = np.isfinite(base), np.isfinite(quote)
    a, noise_a = _standardise(base, known_a)
    b, noise_b = _standardise(quote, known_b)
    n, sum_a, sum_b = (np.full(1, value) for value in (float(base.shape[1]), 0.0, 0.0))
    square_a, square_b = add_up(a * a)[base_row], add_up(b * b)[quote_row]
    if not (known_a.all() and known_b.all()):
        in_a, in_b = known_a.astype(np.float64), known_b.astype(np.float64)
        n, sum_a, sum_b = multiply(in_a, in_b), multiply(a, in_b), multiply(in_a, b)
        square_a, square_b = multiply(a * a, in_b), multiply(in_a, b * b)
    deviation_a = _compute_deviation(square_a, sum_a, n, noise_a[base_row])
    deviation_b = _compute_deviation(square_b, sum_b, n, noise_b[quote_row])
    correlation = (multiply(a, b) - sum_a * sum_b / n) / deviation_a / deviation_b
    counts = np.broadcast_to(n, correlation.shape).astype(np.int64)
    return np.clip(correlation, -1.0, 1.0), counts


def _standardise(returns: FloatArray, known: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return rows centred and scaled to at most 1, 0 where unknown, and what is noise in them."""
    n = known.sum(axis=1)
    mean = add_up(np.where(known, returns, 0.0)) / n
    centred = np.where(known, returns - mean[:, None], 0.0)
    scale = np.abs(centred).max(axis=1, initial=0.0)
    noise = ZERO_TOLERANCE * np.maximum(1.0, np.abs(mean)) / scale
    return centred / np.where(scale > 0, scale, 1.0)[:, None], noise


def _compute_deviation(
    square: FloatArray, total: FloatArray, n: FloatArray, noise: FloatArray
) -> FloatArray:
    """Return the root of the sum of squares around the mean, NaN where it is noise."""
    around_mean = np.maximum(square - total * total / n, 0.0)
    flat = around_mean <= noise * noise * (n - 1)
    return np.where(flat, np.nan, np.sqrt(around_mean))


def _divide_volumes(
    base: FloatArray,
    quote: FloatArray,
    base_row: IntArray,
    quote_row: IntArray,
    multiply: Product,
) -> FloatArray:
    """Return the ratio of summed volumes of every pair, over the columns both know."""
    known_a, known_b = ~np.isnan(base), ~np.isnan(quote)
    if not (known_a.any() and known_b.any()):
        return np.full(len(base_row), np.nan)
    sums_a = add_up(np.nan_to_num(base))[base_row]
    sums_b = add_up(np.nan_to_num(quote))[quote_row]
    if not (known_a.all() and known_b.all()):
        sums_a = multiply(np.nan_to_num(base), known_b.astype(np.float64))
        sums_b = multiply(known_a.astype(np.float64), np.nan_to_num(quote))
    ratio = sums_a / sums_b
    return np.where((sums_a > 0) & (sums_b > 0), ratio, np.nan)


def _blank_and_explain(
    columns: Columns, differs: BoolArray, max_skew: timedelta, min_returns: IntArray
) -> None:
    """Blank what a reason leaves out, and add reasons as positions in ``REASONS``, or -1."""
    has_base = columns.pop("has_base")
    columns["first_bar_at"][~has_base] = NOT_A_TIME
    insufficient = ~has_base | (columns["n_returns"] < min_returns)
    skewed = np.abs(columns["close_skew_seconds"]) > max_skew.total_seconds()
    masks: list[tuple[str, BoolArray, Sequence[str]]] = [
        (OUT_OF_RANGE, _blank_infinite(columns), ()),
        (ZERO_VARIANCE, np.isnan(columns["correlation"]), ()),
        (INSUFFICIENT_DATA, insufficient, MEASURES[1:]),
        (CLOSE_SKEW, skewed, MEASURES),
        (QUOTE_CURRENCY_DIFFERS, differs, MEASURES),
    ]
    columns["reason"] = np.full(len(differs), -1, dtype=np.int8)
    for reason, rows, measures in masks:
        if rows.any():
            columns["reason"][rows] = REASONS.index(reason)
            for measure in measures:
                columns[measure][rows] = np.nan


def _blank_infinite(columns: Columns) -> BoolArray:
    """Blank values beyond a double, and mark rows where a price ratio or ROI spread was blanked."""
    unknown = ~np.isfinite(columns["price_ratio"]) | ~np.isfinite(columns["roi_spread"])
    for name in MEASURES:
        columns[name][np.isinf(columns[name])] = np.nan
    return unknown


def _build_frame(columns: Columns, interval: str, horizon: str, method: str) -> pd.DataFrame:
    constant = np.zeros(len(columns["reason"]), dtype=np.int8)
    texts = {
        "interval": pd.Categorical.from_codes(constant, pd.Index([interval])),
        "horizon": pd.Categorical.from_codes(constant, pd.Index([horizon])),
        "method": pd.Categorical.from_codes(constant, pd.Index([method])),
        "reason": pd.Categorical.from_codes(columns["reason"], pd.Index(REASONS)),
    }
    times = {name: build_times(columns[name]) for name in ("as_of", "first_bar_at")}
    versions = {"dataset_version": hide_unknown_versions(columns["dataset_version"])}
    frame = pd.DataFrame({**columns, **texts, **times, **versions}, copy=False)
    return frame[[*COMPARISON_COLUMNS, "dataset_version"]]


def _join_frames(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Put horizons under each other; categories stay so that they cost a byte a row."""
    if len(frames) == 1:
        return frames[0]
    horizon = union_categoricals([frame["horizon"] for frame in frames])
    return pd.concat(frames, ignore_index=True).assign(horizon=horizon)
