"""Spikes: bars that jump so far that somebody should look at them.

Here: which bars of a batch jump. They are flagged and stored like all others, because crashes are
real, and only a person can tell a crash from a unit error. Not here: impossible bars
(``validation``).

The return of a bar is that of its close over the close before it. A bar is a spike when both hold:

- Its log return lies more than 10 robust standard deviations from the batch's median return. The
  robust deviation is 1.4826 times the median absolute deviation, which equals the standard
  deviation for normal returns and, unlike that, is not widened by the very spikes it should find
  (Hampel's identifier). Its usual threshold of 3 to 3.5 assumes thin tails. Daily returns have
  heavy tails, and would be flagged every few weeks.
- It moved by more than 15 %. In a series that hardly moves, ten deviations are nothing.

A single wrong bar is two spikes: the way there and the way back. Below 20 bars the deviation of a
batch says little, so nothing is flagged.
"""

from typing import Any

import numpy as np
import pandas as pd

from market_pipeline.domain.arrays import FloatArray

MIN_BARS = 20
MAX_DEVIATIONS = 10.0
MAX_MOVE_RATIO = 0.15
MAD_TO_SIGMA = 1.4826


def find_spikes(bars: pd.DataFrame) -> pd.DataFrame:
    """Return the bars that jump; nothing is changed or left out.

    Args:
        bars: A bar frame of one market, its bars of an interval in time order. Returns from or to a
            close that is missing or not positive are left aside.

    Returns:
        The flagged rows in the order given, with ``log_return`` and ``deviations`` more: how many
        robust standard deviations it lies from the median, infinite when the others do not vary.
    """
    ordered = bars.reset_index(drop=True)
    groups = [_measure(group) for _, group in ordered.groupby("interval", sort=False)]
    if not groups:
        return ordered.assign(log_return=np.nan, deviations=np.nan)
    measured = pd.concat(groups).sort_index()
    with np.errstate(over="ignore"):
        moved = np.abs(np.expm1(measured["log_return"])) > MAX_MOVE_RATIO
    spikes: pd.DataFrame = measured[moved & (measured["deviations"] > MAX_DEVIATIONS)]
    return spikes.reset_index(drop=True)


def _measure(bars: pd.DataFrame) -> pd.DataFrame:
    returns = _compute_log_returns(bars["close"])
    return bars.assign(log_return=returns, deviations=_compute_deviations(returns))


def _compute_log_returns(closes: "pd.Series[Any]") -> FloatArray:
    usable = closes.where((closes > 0) & (closes < np.inf))
    logs = np.log(usable.to_numpy(dtype="float64"))
    return np.diff(logs, prepend=np.nan)


def _compute_deviations(returns: FloatArray) -> FloatArray:
    known = returns[~np.isnan(returns)]
    if len(known) + 1 < MIN_BARS:
        return np.full(len(returns), np.nan)
    distances = np.abs(returns - np.median(known))
    sigma = MAD_TO_SIGMA * float(np.nanmedian(distances))
    if sigma == 0:  # More than half of the returns are one and the same.
        return np.where(distances > 0, np.inf, np.where(np.isnan(distances), np.nan, 0.0))
    return np.asarray(distances / sigma)
