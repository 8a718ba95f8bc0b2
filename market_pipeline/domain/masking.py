"""Withholding statistics of markets that are incomplete; other markets are not affected."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from market_pipeline.domain.records import Window

UNEXPLAINED_HOLE = "unexplained_hole"
NEVER_ASKED = "never_asked"
RESTATING = "restating"
SUSPECTED_SPLIT = "suspected_split"
MIXED_PARSING = "mixed_parsing"
REASONS = (RESTATING, SUSPECTED_SPLIT, MIXED_PARSING, UNEXPLAINED_HOLE, NEVER_ASKED)
"""Where several issues touch a statistic, the first of these is its reason."""

_DAY = timedelta(days=1)
# Sessions close earlier in summer and before holidays: the base's close may be a little later in
# its day than the last one.
_EARLY_CLOSE = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class DataIssue:
    """A reason to distrust a market's statistics over some span.

    Attributes:
        market_id: The market.
        reason: One of ``REASONS``.
        window: The span (UTC); None: all of it. An empty one, from a time to the same time, is a
            boundary that statistics may not lie across.
    """

    market_id: int
    reason: str
    window: Window | None = None


def mask_unreliable(
    rows: pd.DataFrame, keys: Sequence[str], measures: Sequence[str], issues: Iterable[DataIssue]
) -> pd.DataFrame:
    """Return rows whose measures are NaN, with the reason, where an issue touches their window.

    A row's window begins at the close of its base, which a hole may have pushed back beyond the
    horizon, and ends with its last close. An issue touches it that begins before its end and ends
    after its begin.

    Args:
        rows: Statistics with ``as_of`` and ``first_bar_at`` (UTC), ``horizon`` such as ``30d``, and
            ``reason``.
        keys: The columns that hold market ids.
        measures: The columns to blank.
        issues: What is known to be wrong.
    """
    # The weightiest comes last and stays.
    ranked = sorted(issues, key=lambda issue: -REASONS.index(issue.reason))
    if not ranked or rows.empty:
        return rows
    starts, ends = find_window_starts(rows), rows["as_of"]
    reasons = np.full(len(rows), "", dtype=object)
    for issue in ranked:
        hit = rows[list(keys)].eq(issue.market_id).any(axis=1)
        if issue.window is not None:
            hit &= (starts < issue.window.end) & (ends > issue.window.start)
        reasons[hit.to_numpy()] = issue.reason
    is_flawed = reasons != ""
    kept = rows["reason"].astype(object)
    blank = {name: rows[name].where(~is_flawed) for name in measures}
    return rows.assign(**blank, reason=kept.where(~is_flawed, pd.Series(reasons, index=rows.index)))


def find_window_starts(rows: pd.DataFrame) -> "pd.Series[Any]":
    """Return where each row's window begins: its base close, else the day before its horizon.

    Without a base close ``first_bar_at`` is missing, or lies within the horizon.
    """
    days = rows["horizon"].astype(str).str.removesuffix("d").astype("int64")
    horizon = rows["as_of"] - pd.to_timedelta(days, unit="D")
    has_base = rows["first_bar_at"] <= horizon + _EARLY_CLOSE
    return rows["first_bar_at"].where(has_base, horizon - _DAY)
