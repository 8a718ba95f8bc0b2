"""Withholding statistics of a market that is known to be incomplete; the others go on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from market_pipeline.domain.records import Window

UNEXPLAINED_HOLE = "unexplained_hole"
NEVER_ASKED = "never_asked"
RESTATING = "restating"
SUSPECTED_SPLIT = "suspected_split"
MIXED_PARSING = "mixed_parsing"


@dataclass(frozen=True, slots=True)
class Flaw:
    """Why a market's statistics over some span cannot be trusted.

    Attributes:
        market_id: The market.
        reason: One of the constants above.
        window: The span (UTC); None: all of it.
    """

    market_id: int
    reason: str
    window: Window | None = None


def withhold(
    rows: pd.DataFrame, keys: Sequence[str], measures: Sequence[str], flaws: Iterable[Flaw]
) -> pd.DataFrame:
    """Return rows whose measures are NaN, with the reason, where a flaw lies in their horizon.

    Args:
        rows: Statistics with ``as_of`` (UTC), ``horizon`` such as ``30d``, and ``reason``.
        keys: The columns that hold market ids.
        measures: The columns to blank.
        flaws: What is known to be wrong.
    """
    flaws = list(flaws)
    if not flaws or rows.empty:
        return rows
    days = rows["horizon"].astype(str).str.removesuffix("d").astype("int64")
    starts = rows["as_of"] - pd.to_timedelta(days, unit="D")
    reasons = np.full(len(rows), "", dtype=object)
    for flaw in flaws:
        hit = rows[list(keys)].eq(flaw.market_id).any(axis=1)
        if flaw.window is not None:
            hit &= (starts < flaw.window.end) & (rows["as_of"] > flaw.window.start)
        reasons[hit.to_numpy()] = flaw.reason
    is_flawed = reasons != ""
    kept = rows["reason"].astype(object)
    blank = {name: rows[name].where(~is_flawed) for name in measures}
    return rows.assign(**blank, reason=kept.where(~is_flawed, pd.Series(reasons, index=rows.index)))
