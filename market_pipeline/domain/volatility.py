"""Realised volatility, and the statistics of a live price from stored bars.

Here: the standard deviation of log returns, and a snapshot's two statistics. Not here: the full
table of risk and return (``roi``), or an implied volatility.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from market_pipeline.domain.arrays import FloatArray
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import UTC_DTYPE
from market_pipeline.domain.returns import (
    INSUFFICIENT_DATA,
    OUT_OF_RANGE,
    ZERO_VARIANCE,
    HorizonWindow,
    build_session_matrices,
    build_times,
    compute_mean_and_std,
    cut_rolling_window,
    cut_windows,
    is_insufficient,
    is_zero_spread,
    name_versions,
    read_microseconds,
)
from market_pipeline.domain.sufficiency import MinReturns

SNAPSHOT_HORIZON_DAYS = 30

SNAPSHOT_DTYPES: Mapping[str, str] = {
    "market_id": "int64",
    "realised_volatility": "float64",
    "roi": "float64",
    "bars_as_of": UTC_DTYPE,
    "first_bar_at": UTC_DTYPE,
    "reason": "str",
}
SNAPSHOT_MEASURES = ("realised_volatility", "roi")
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
    observed_at: "pd.Series[pd.Timestamp] | None" = None,
) -> pd.DataFrame:
    """Compute volatility up to the last final daily bar, and ROI from the base close to a price.

    Args:
        bars: Final daily bars: ``market_id``, ``open_time``, ``close_time``, ``close``, and
            ``dataset_version`` where known.
        calendars: The calendar of every market, also of those that have only a price.
        prices: Live prices by market_id, each once.
        observed_at: When each price was true (UTC), by market_id: bars that close later are left
            out. None: all bars count.

    Returns:
        The columns of ``SNAPSHOT_DTYPES``, one row per price in the order given. ``roi`` is the
        price over the base close, less one; ``bars_as_of`` the close of the last bar used,
        ``first_bar_at`` of the first. With versions also ``dataset_version`` (Int64), the newest
        among them. A reason speaks of all that is missing in its row: ``zero_variance`` leaves only
        the volatility out, ``price_not_positive`` only the ROI, ``insufficient_data`` and
        ``out_of_range`` (more than a double holds) both.
    """
    if observed_at is not None:
        limits = observed_at.reindex(bars["market_id"])
        bars = bars[bars["close_time"].array <= limits.array]
    closed_at = read_microseconds(bars["close_time"])
    frames = []
    for matrix in build_session_matrices(bars, calendars, Interval.DAY):
        window = cut_windows(matrix, [SNAPSHOT_HORIZON_DAYS])[0]
        live = np.asarray(prices.reindex(matrix.market_ids), dtype=np.float64)
        columns = {
            "market_id": matrix.market_ids,
            # Nothing in a snapshot's key names a setting, so none counts.
            **_compute_statistics(window, live, matrix.annualisation_factor, MinReturns()),
            "bars_as_of": build_times(window.take_times(closed_at, window.last)),
            "first_bar_at": build_times(window.take_times(closed_at, window.first)),
            **name_versions(bars, window),
        }
        frames.append(pd.DataFrame(columns))
    return _order_rows(frames, prices)


def compute_rolling_volatility(
    bars: pd.DataFrame,
    market_id: int,
    calendar: str,
    interval: Interval,
    horizon_days: int,
    min_returns: int | None = None,
) -> pd.DataFrame:
    """Compute a market's realised volatility over the horizon that ends at each of its closes.

    It is what the statistics say of the same horizon, as of each close.

    Args:
        bars: Final bars of the market: ``market_id``, ``open_time``, ``close_time``, ``close``.
        market_id: The market.
        calendar: The market's.
        interval: The length of the bars.
        horizon_days: How far each value looks back.
        min_returns: As of the statistics.

    Returns:
        ``market_id``, ``open_time``, ``as_of`` (the close), ``first_bar_at``, ``horizon``,
        ``realised_volatility`` (a fraction a year, NaN with a ``reason``), in order.
    """
    (matrix,) = build_session_matrices(bars, {market_id: calendar}, interval)
    window = cut_rolling_window(matrix, 0, horizon_days)
    factor, fewest = matrix.annualisation_factor, MinReturns(min_returns)
    statistics = _compute_statistics(window, window.base_close, factor, fewest)
    opens, closes = (read_microseconds(bars[name]) for name in ("open_time", "close_time"))
    return pd.DataFrame(
        {
            "market_id": market_id,
            "open_time": build_times(window.take_times(opens, window.last)),
            "as_of": build_times(window.take_times(closes, window.last)),
            "first_bar_at": build_times(window.take_times(closes, window.first)),
            "horizon": f"{horizon_days}d",
            "realised_volatility": statistics["realised_volatility"],
            "reason": statistics["reason"].astype(object),
        }
    )


def _compute_statistics(
    window: HorizonWindow, live: FloatArray, factor: float, fewest: MinReturns
) -> dict[str, Any]:
    with np.errstate(all="ignore"):
        volatility = compute_realised_volatility(window.ratios, factor)
        roi = live / window.base_close - 1
    flat = is_zero_spread(volatility / np.sqrt(factor), np.zeros(len(live)))
    reasons = {
        INSUFFICIENT_DATA: is_insufficient(window, fewest),
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
