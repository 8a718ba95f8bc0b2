"""Telling a split from corrections: every known bar before it moves by one and the same factor."""

import numpy as np
import pandas as pd

MIN_BARS = 2
SMALLEST_CHANGE = 0.05
LARGEST_SPREAD = 2e-3
"""Adjusted prices are rounded, so the factors agree to a few parts in a thousand only."""


def find_split_ratio(known: pd.DataFrame, received: pd.DataFrame) -> float | None:
    """Return new price over old price when a series was rescaled up to some bar, else None.

    Args:
        known: Stored final bars: ``open_time`` and ``close``.
        received: Bars of the same interval as the provider gives them now.
    """
    both = known[["open_time", "close"]].merge(
        received[["open_time", "close"]], on="open_time", suffixes=("_known", "_received")
    )
    both = both.sort_values("open_time")
    ratios = both["close_received"].to_numpy() / both["close_known"].to_numpy()
    moved = np.flatnonzero(np.abs(ratios - 1) >= SMALLEST_CHANGE)
    # Bars from the split on were stored in the new scale, when the provider rescaled late.
    before, after = np.split(ratios, moved[-1:] + 1) if len(moved) else (ratios[:0], ratios)
    if len(before) < MIN_BARS:
        return None
    middle = float(np.median(before))
    spreads = np.abs(np.concatenate([before / middle, after]) - 1)
    return middle if spreads.max() <= LARGEST_SPREAD else None
