"""Suspected splits: jumps between sessions that look like a split that was not announced.

An unadjusted series falls to a half on the day of a 2:1 split, and every statistic over that day is
wrong. A jump is suspected when the close is within 1 % of n times or an n-th of the close before (n
from 2 to 50), or of 3:2 or 2:3, and more than ten times the market's median absolute return.
Closes up to five sessions apart are compared, so that a hole cannot hide a split.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.arrays import FloatArray
from market_pipeline.domain.grids import find_grid
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window

TOLERANCE_RATIO = 0.01
TIMES_MEDIAN = 10.0
MIN_RETURNS = 3
"""Of so few other returns a median says what is usual: statistics begin there as well."""
MOST_SESSIONS = 5
_WHOLE = np.arange(2.0, 51.0)
RATIOS = np.sort(np.concatenate([1 / _WHOLE, [2 / 3, 3 / 2], _WHOLE]))


@dataclass(frozen=True, slots=True)
class Jump:
    """A jump between two closes.

    Attributes:
        start: Close of the session before (UTC). end: Close of the session that jumped.
        ratio: The split's: new price over old price. change: The closes' own ratio.
    """

    start: datetime
    end: datetime
    ratio: float
    change: float

    @property
    def description(self) -> str:
        """Return the jump in a sentence."""
        told = f"1:{1 / self.ratio:.3g}" if self.ratio < 1 else f"{self.ratio:.3g}:1"
        return (
            f"the close of {self.end:%Y-%m-%d} is {self.change:.4g} times the one before, "
            f"as after a split by which prices go {told}"
        )


def may_have_split(closes: FloatArray) -> bool:
    """Tell whether a close is near a split's ratio from the close before, whatever is usual."""
    _, is_near = _find_nearest(_compute_changes(closes))
    return bool(is_near.any())


def find_jumps(days: pd.DataFrame, calendar: str) -> list[Jump]:
    """Return the jumps that look like splits.

    Args:
        days: Final daily bars of one market in order of time.
        calendar: The market's.
    """
    changes = _compute_changes(days["close"].to_numpy(dtype="float64"))
    ratios, is_near = _find_nearest(changes)
    sizes = np.abs(np.log(changes))
    usual = sizes[~is_near]
    if len(usual) < MIN_RETURNS:
        return []
    is_far = sizes > TIMES_MEDIAN * float(np.median(usual))
    closes = [at.to_pydatetime() for at in days["close_time"]]
    return [
        Jump(closes[at], closes[at + 1], float(ratios[at]), float(changes[at]))
        for at in np.flatnonzero(is_near & is_far & _find_adjacent(days, calendar))
    ]


def _compute_changes(closes: FloatArray) -> FloatArray:
    return np.asarray(closes[1:] / closes[:-1])


def _find_nearest(changes: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return the split's ratio nearest to each change, and whether it is near."""
    distances = np.abs(changes[:, None] / RATIOS - 1)
    nearest = distances.argmin(axis=1)
    return RATIOS[nearest], distances.min(axis=1, initial=np.inf) <= TOLERANCE_RATIO


def _find_adjacent(days: pd.DataFrame, calendar: str) -> npt.NDArray[np.bool_]:
    opens = np.asarray(pd.DatetimeIndex(days["open_time"]).as_unit("us").asi8)
    first, last = (at.to_pydatetime() for at in days["open_time"].iloc[[0, -1]])
    grid = find_grid(calendar, Interval.DAY, Window(first, last))
    return np.diff(np.searchsorted(grid.opens, opens)) <= MOST_SESSIONS
