"""Comparing two markets: price and volume ratio, ROI spread and correlation.

Here: the formulas, for many pairs at once. Not here: which pairs are worth storing.

Both series are joined on their open_time before any return is taken: the grid of a pair holds what
both calendars expect, so between BTC (always open) and SPX a return runs from one New York session
to the next. A return needs both closes at both ends; one that spans a hole is left out.

The two closes of a joined day need not be simultaneous. ``close_skew_seconds`` is the base's close
less the quote's at the last joined date: 3 hours for BTC-USD over SPX in winter, since one closes
at midnight UTC and the other at 21:00.

Pairs whose markets know the same places of the grid share their window, so the work is done for
each distinct window at once, by matrix products over the markets in it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import union_categoricals

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.returns import (
    INSUFFICIENT_DATA,
    NOT_A_TIME,
    OUT_OF_RANGE,
    ZERO_TOLERANCE,
    ZERO_VARIANCE,
    BoolArray,
    FloatArray,
    IntArray,
    SessionMatrix,
    build_session_matrices,
    build_times,
    find_bases,
    read_microseconds,
    take_or_nan,
)

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
    "reason",
)
_MISSING: Mapping[str, Any] = {
    "as_of": NOT_A_TIME,
    **dict.fromkeys((*MEASURES, "close_skew_seconds"), np.nan),
    "n_returns": 0,
    "has_base": False,
}
Columns = dict[str, npt.NDArray[Any]]

MAX_SKEW = timedelta(hours=6)
_WEEK_DAYS = 7
_MICROSECONDS = 1_000_000
_BLOCK_PAIRS = 260_000
"""Pairs worked on at once; it bounds memory whatever the number of pairs."""


@dataclass(frozen=True, slots=True)
class _Side:
    """The markets of one calendar on the joined grid; m markets, t places.

    Attributes:
        closes: Shape (m, t), NaN where missing.
        volumes: Shape (m, t), NaN where missing.
        closed_at: Shape (m, t), microseconds.
        patterns: Shape (k, t), the distinct rows of "this close is known".
        pattern: Shape (m,), each market's row in ``patterns``.
    """

    closes: FloatArray
    volumes: FloatArray
    closed_at: IntArray
    patterns: BoolArray
    pattern: IntArray


@dataclass(frozen=True, slots=True)
class _Spans:
    """The window of every two patterns: shape (ka, kb) each, columns of the joined grid."""

    start: IntArray
    last: IntArray
    has_base: BoolArray


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


@dataclass(frozen=True, slots=True)
class _Cut:
    """The part of a side that one window looks at; m markets, w places.

    Attributes:
        closes: Shape (m, w). volumes: Shape (m, w). closed_at: Shape (m,), of the last place.
    """

    closes: FloatArray
    volumes: FloatArray
    closed_at: IntArray

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
    min_returns: int = 20,
    min_returns_7d: int = 5,
) -> pd.DataFrame:
    """Compute one row per pair and horizon from final bars.

    Args:
        bars: Final bars of one interval: ``market_id``, ``open_time``, ``close_time``, ``close``,
            and ``volume`` where known.
        markets: ``market_id``, ``quote``, ``calendar``; each market once.
        interval: The length of the bars.
        horizons_days: How far each horizon looks back from the last joined date.
        pairs: Shape (n, 2), base and quote market_id; by default every unordered pair once, the
            base being the one that comes first in ``markets``.
        max_skew: Closes further apart than this are not compared.
        min_returns: Fewer joined returns give no ROI spread, volume ratio or correlation.
        min_returns_7d: The same for horizons of up to seven days.

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
    frames = []
    for h, days in enumerate(horizons_days):
        minimum = max(min_returns_7d if days <= _WEEK_DAYS else min_returns, 2)
        with np.errstate(all="ignore"):
            columns = _compute_horizon(groups, h, len(base))
            _blank_and_explain(columns, currency[base] != currency[quote], max_skew, minimum)
        columns |= {"base_market_id": ids[base], "quote_market_id": ids[quote]}
        method = f"simple;skew={max_skew.total_seconds():.0f}"
        frames.append(_build_frame(columns, interval.value, f"{days}d", method))
    return _join_frames(frames)


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
        patterns=known[first],
        pattern=pattern.reshape(-1),
    )


def _find_spans(
    grid: IntArray, base: BoolArray, quote: BoolArray, horizons_days: Sequence[int]
) -> list[_Spans]:
    """Return the windows of each horizon for every two patterns."""
    places = np.arange(len(grid))
    shape = (len(horizons_days), len(base), len(quote))
    start, has_base = np.zeros(shape, dtype="int64"), np.zeros(shape, dtype=bool)
    last = np.full(shape[1:], -1)
    for k in range(len(base) if len(grid) else 0):
        latest = np.maximum.accumulate(np.where(base[k] & quote, places, -1), axis=1)
        last[k] = latest[:, -1]
        for h, days in enumerate(horizons_days):
            has_base[h, k], start[h, k] = find_bases(grid, latest, last[k], days)
    return [_Spans(start[h], last, has_base[h]) for h in range(len(horizons_days))]


def _compute_horizon(groups: list[_Group], horizon: int, n_pairs: int) -> Columns:
    """Return the columns of all pairs for one horizon, in the order of the pairs."""
    columns: Columns = {name: np.full(n_pairs, missing) for name, missing in _MISSING.items()}
    for group in groups:
        for window, chosen in _iterate_windows(group, group.spans[horizon]):
            base, base_row = _cut_side(group.base, group.base_row[chosen], window)
            quote, quote_row = _cut_side(group.quote, group.quote_row[chosen], window)
            at = group.at[chosen]
            columns["has_base"][at] = window.has_base
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
        span = _Window(*(int(part.flat[at]) for part in (spans.start, spans.last, spans.has_base)))
        members = np.flatnonzero(window_of_pair == number) if span.last >= 0 else cell[:0]
        for begin in range(0, len(members), _BLOCK_PAIRS):
            yield span, members[begin : begin + _BLOCK_PAIRS]


def _cut_side(side: _Side, rows: IntArray, window: _Window) -> tuple[_Cut, IntArray]:
    """Return the markets in use within the window, and each pair's row among them."""
    used = np.zeros(len(side.closes), dtype=bool)
    used[rows] = True
    span = slice(window.start, window.last + 1)
    closed_at = side.closed_at[used, window.last]
    cut = _Cut(side.closes[used, span], side.volumes[used, span], closed_at)
    return cut, (np.cumsum(used) - 1)[rows]


def _compare_sides(base: _Cut, quote: _Cut, base_row: IntArray, quote_row: IntArray) -> Columns:
    """Return the columns of pairs, each given by its rows in the two sides."""
    pair = base_row * len(quote.closes) + quote_row
    correlation, n_returns = _correlate(base.returns, quote.returns)
    base_closed, quote_closed = base.closed_at[base_row], quote.closed_at[quote_row]
    return {
        "as_of": np.maximum(base_closed, quote_closed),
        "price_ratio": base.closes[:, -1][base_row] / quote.closes[:, -1][quote_row],
        "volume_ratio": _divide_volumes(base.known_volumes, quote.known_volumes).take(pair),
        "roi_spread": base.roi[base_row] - quote.roi[quote_row],
        "correlation": correlation.take(pair),
        "close_skew_seconds": (base_closed - quote_closed) / _MICROSECONDS,
        "n_returns": n_returns.take(pair),
    }


def _correlate(base: FloatArray, quote: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return Pearson's correlation of every two rows over the columns both know, and their count.

    NaN where a side does not vary. Rows are centred and scaled first: it takes the sums of squares
    out of reach of cancellation and overflow.
    """
    known_a, known_b = np.isfinite(base), np.isfinite(quote)
    a, noise_a = _standardise(base, known_a)
    b, noise_b = _standardise(quote, known_b)
    n, sum_a, sum_b = (np.full((1, 1), value) for value in (float(base.shape[1]), 0.0, 0.0))
    square_a, square_b = _square(a)[:, None], _square(b)[None, :]
    if not (known_a.all() and known_b.all()):
        in_a, in_b = known_a.astype(np.float64), known_b.astype(np.float64)
        n, sum_a, sum_b = in_a @ in_b.T, a @ in_b.T, in_a @ b.T
        square_a, square_b = (a * a) @ in_b.T, in_a @ (b * b).T
    deviation_a = _compute_deviation(square_a, sum_a, n, noise_a[:, None])
    deviation_b = _compute_deviation(square_b, sum_b, n, noise_b[None, :])
    correlation = (a @ b.T - sum_a * sum_b / n) / deviation_a / deviation_b
    counts = np.broadcast_to(n, correlation.shape).astype(np.int64)
    return np.clip(correlation, -1.0, 1.0), counts


def _standardise(returns: FloatArray, known: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return rows centred and scaled to at most 1, 0 where unknown, and what is noise in them."""
    n = known.sum(axis=1)
    mean = np.where(known, returns, 0.0).sum(axis=1) / n
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


def _square(rows: FloatArray) -> FloatArray:
    squares: FloatArray = np.einsum("ij,ij->i", rows, rows)
    return squares


def _divide_volumes(base: FloatArray, quote: FloatArray) -> FloatArray:
    """Return the ratio of summed volumes of every two rows, over the columns both know."""
    known_a, known_b = ~np.isnan(base), ~np.isnan(quote)
    if not (known_a.any() and known_b.any()):
        return np.full((len(base), len(quote)), np.nan)
    sums_a, sums_b = np.nansum(base, axis=1)[:, None], np.nansum(quote, axis=1)
    if not (known_a.all() and known_b.all()):
        sums_a = np.nan_to_num(base) @ known_b.T.astype(np.float64)
        sums_b = known_a.astype(np.float64) @ np.nan_to_num(quote).T
    ratio = sums_a / sums_b
    return np.where((sums_a > 0) & (sums_b > 0), ratio, np.nan)


def _blank_and_explain(
    columns: Columns, differs: BoolArray, max_skew: timedelta, min_returns: int
) -> None:
    """Blank what a reason leaves out, and add reasons as positions in ``REASONS``, or -1."""
    insufficient = ~columns.pop("has_base") | (columns["n_returns"] < min_returns)
    skewed = np.abs(columns["close_skew_seconds"]) > max_skew.total_seconds()
    flaws: list[tuple[str, BoolArray, Sequence[str]]] = [
        (OUT_OF_RANGE, _blank_infinite(columns), ()),
        (ZERO_VARIANCE, np.isnan(columns["correlation"]), ()),
        (INSUFFICIENT_DATA, insufficient, MEASURES[1:]),
        (CLOSE_SKEW, skewed, MEASURES),
        (QUOTE_CURRENCY_DIFFERS, differs, MEASURES),
    ]
    columns["reason"] = np.full(len(differs), -1, dtype=np.int8)
    for reason, rows, measures in flaws:
        if rows.any():
            columns["reason"][rows] = REASONS.index(reason)
            for measure in measures:
                columns[measure][rows] = np.nan


def _blank_infinite(columns: Columns) -> BoolArray:
    """Blank what is beyond a double, and tell where a price ratio or ROI spread was."""
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
    frame = pd.DataFrame({**columns, **texts, "as_of": build_times(columns["as_of"])}, copy=False)
    return frame[list(COMPARISON_COLUMNS)]


def _join_frames(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Put horizons under each other; categories stay so that they cost a byte a row."""
    if len(frames) == 1:
        return frames[0]
    horizon = union_categoricals([frame["horizon"] for frame in frames])
    return pd.concat(frames, ignore_index=True).assign(horizon=horizon)
