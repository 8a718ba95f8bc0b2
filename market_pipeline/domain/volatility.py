"""Realised volatility, and what stored bars say about a live price.

Here: the standard deviation of log returns, and a snapshot's two statistics. Not here: the full
table of risk and return (``roi``), or an implied volatility.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import UTC_DTYPE
from market_pipeline.domain.returns import (
    INSUFFICIENT_DATA,
    OUT_OF_RANGE,
    ZERO_VARIANCE,
    FloatArray,
    HorizonWindow,
    build_session_matrices,
    build_times,
    compute_mean_and_std,
    cut_windows,
    is_zero_spread,
    read_microseconds,
)

SNAPSHOT_DTYPES: Mapping[str, str] = {
    "market_id": "int64",
    "realised_volatility": "float64",
    "roi": "float64",
    "bars_as_of": UTC_DTYPE,
    "reason": "str",
}
SNAPSHOT_COLUMNS = tuple(SNAPSHOT_DTYPES)
PRICE_NOT_POSITIVE = "price_not_positive"


def compute_realised_volatility(ratios: FloatArray, annualisation_factor: float) -> FloatArray:
    """Return std(log returns, ddof=1) * sqrt(A) of each row of price ratios, a fraction a year.

    Args:
        ratios: Shape (m, n), P_t / P_(t-1); NaN ones are left out.
        annualisation_factor: Bars in a year.
    """
    _, std = compute_mean_and_std(np.log(ratios))
    volatility: FloatArray = std * np.sqrt(annualisation_factor)
    return volatility


def compute_snapshot_statistics(
    bars: pd.DataFrame,
    calendars: Mapping[int, str],
    prices: "pd.Series[float]",
    horizon_days: int = 30,
    min_returns: int = 20,
) -> pd.DataFrame:
    """Compute volatility up to the last final daily bar, and ROI from the base close to a price.

    Args:
        bars: Final daily bars: ``market_id``, ``open_time``, ``close_time``, ``close``.
        calendars: The calendar of every market, also of those that have only a price.
        prices: Live prices by market_id, each once.
        horizon_days: How far back the base close lies from the last final bar.
        min_returns: Fewer adjacent returns give no statistics.

    Returns:
        ``SNAPSHOT_COLUMNS``, one row per price in the order given. ``roi`` is the price over the
        base close, less one; ``bars_as_of`` the close of the last bar used. A reason speaks of all
        that is missing in its row: ``zero_variance`` leaves only the volatility out,
        ``price_not_positive`` only the ROI, ``insufficient_data`` and ``out_of_range`` (more than a
        double holds) both.
    """
    closed_at = read_microseconds(bars["close_time"])
    frames = []
    for matrix in build_session_matrices(bars, calendars, Interval.DAY):
        window = cut_windows(matrix, [horizon_days])[0]
        live = np.asarray(prices.reindex(matrix.market_ids), dtype=np.float64)
        statistics = _compute_statistics(window, live, matrix.annualisation_factor, min_returns)
        as_of = build_times(window.take_times(closed_at, window.last))
        frame = pd.DataFrame({"market_id": matrix.market_ids, **statistics, "bars_as_of": as_of})
        frames.append(frame[list(SNAPSHOT_COLUMNS)])
    return _order_rows(frames, prices)


def _compute_statistics(
    window: HorizonWindow, live: FloatArray, factor: float, min_returns: int
) -> dict[str, Any]:
    with np.errstate(all="ignore"):
        volatility = compute_realised_volatility(window.ratios, factor)
        roi = live / window.base_close - 1
    flat = is_zero_spread(volatility / np.sqrt(factor), np.zeros(len(live)))
    reasons = {
        INSUFFICIENT_DATA: ~window.has_base | (window.n_returns < max(min_returns, 2)),
        PRICE_NOT_POSITIVE: ~(np.isfinite(live) & (live > 0)),
        OUT_OF_RANGE: ~np.isfinite(volatility + roi),
        ZERO_VARIANCE: flat,
    }
    reason = np.select(list(reasons.values()), list(reasons), default="")
    spoilt = np.isin(reason, [INSUFFICIENT_DATA, OUT_OF_RANGE])
    return {
        "realised_volatility": np.where(spoilt | flat, np.nan, volatility),
        "roi": np.where(spoilt | reasons[PRICE_NOT_POSITIVE], np.nan, roi),
        "reason": pd.Series(reason, dtype="str").replace("", None),
    }


def _order_rows(frames: list[pd.DataFrame], prices: "pd.Series[float]") -> pd.DataFrame:
    empty = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in SNAPSHOT_DTYPES.items()})
    rows = pd.concat([frame for frame in frames if len(frame)] or [empty])
    return rows.set_index("market_id").loc[prices.index].reset_index().astype(SNAPSHOT_DTYPES)
