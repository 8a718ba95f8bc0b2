"""Telling a split from corrections: every known bar before it moves by one and the same factor."""

import numpy as np
import pandas as pd

MIN_BARS = 2
SMALLEST_CHANGE = 0.05
LARGEST_SPREAD = 2e-3
"""Adjusted prices are rounded, so the factors agree to a few parts in a thousand only."""


def find_split_ratio(known: pd.DataFrame, received: pd.DataFrame) -> float | None:
    """Return new price over old price when a whole series was rescaled, else None.

    Args:
        known: Stored final bars: ``open_time`` and ``close``.
        received: Bars of the same interval as the provider gives them now.
    """
    both = known[["open_time", "close"]].merge(
        received[["open_time", "close"]], on="open_time", suffixes=("_known", "_received")
    )
    if len(both) < MIN_BARS:
        return None
    ratios = both["close_received"].to_numpy() / both["close_known"].to_numpy()
    middle = float(np.median(ratios))
    spread = float(np.abs(ratios / middle - 1).max())
    return middle if abs(middle - 1) >= SMALLEST_CHANGE and spread <= LARGEST_SPREAD else None
