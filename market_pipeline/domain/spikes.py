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

import numpy as np

from market_pipeline.domain.arrays import BoolArray, FloatArray
from market_pipeline.domain.columns import BarColumns

MIN_BARS = 20
MAX_DEVIATIONS = 10.0
MAX_MOVE_RATIO = 0.15
MAD_TO_SIGMA = 1.4826


def find_spikes(bars: BarColumns) -> BoolArray:
    """Tell which bars jump.

    Args:
        bars: Of one market, its bars of an interval in time order. Returns from or to a close that
            is missing or not positive are left aside.
    """
    is_spike = np.zeros(len(bars), dtype=bool)
    for interval in set(bars.interval.tolist()) if len(bars) >= MIN_BARS else ():
        chosen = np.flatnonzero(bars.interval == interval)
        is_spike[chosen] = _find_jumps(bars.close[chosen])
    return is_spike


def _find_jumps(closes: FloatArray) -> BoolArray:
    returns = _compute_log_returns(closes)
    with np.errstate(over="ignore"):
        moved = np.abs(np.expm1(returns)) > MAX_MOVE_RATIO
    return np.asarray(moved & (_compute_deviations(returns) > MAX_DEVIATIONS))


def _compute_log_returns(closes: FloatArray) -> FloatArray:
    usable = np.where((closes > 0) & (closes < np.inf), closes, np.nan)
    return np.diff(np.log(usable), prepend=np.nan)


def _compute_deviations(returns: FloatArray) -> FloatArray:
    """Return how many robust deviations each return is off; infinite where the others are alike."""
    known = returns[~np.isnan(returns)]
    if len(known) + 1 < MIN_BARS:
        return np.full(len(returns), np.nan)
    distances = np.abs(returns - np.median(known))
    sigma = MAD_TO_SIGMA * float(np.nanmedian(distances))
    if sigma == 0:  # More than half of the returns are one and the same.
        return np.where(distances > 0, np.inf, np.where(np.isnan(distances), np.nan, 0.0))
    return np.asarray(distances / sigma)
