"""Withholding statistics of markets that are incomplete; other markets are not affected."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from market_pipeline.domain.records import UTC_DTYPE, Window

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
    table = _list_issues(issues)
    if table.empty or rows.empty:
        return rows
    spans = rows[list(keys)].assign(
        at=np.arange(len(rows)), starts_at=find_window_starts(rows), ends_at=rows["as_of"]
    )
    weightiest = np.full(len(rows), len(REASONS))
    for key in keys:
        met = spans.merge(table, left_on=key, right_on="owner")
        touches = (met["starts_at"] < met["until"]) & (met["ends_at"] > met["since"])
        met = met[touches | met["is_of_all"]]
        np.minimum.at(weightiest, met["at"].to_numpy(), met["rank"].to_numpy())
    is_flawed = weightiest < len(REASONS)
    reasons = pd.Series(np.array([*REASONS, ""], dtype=object)[weightiest], index=rows.index)
    kept = rows["reason"].astype(object)
    blank = {name: rows[name].where(~is_flawed) for name in measures}
    return rows.assign(**blank, reason=kept.where(~is_flawed, reasons))


def _list_issues(issues: Iterable[DataIssue]) -> pd.DataFrame:
    """Return issues as rows; one without a window has no times."""
    found = list(issues)
    times = [(one.window.start, one.window.end) if one.window else (None, None) for one in found]
    return pd.DataFrame(
        {
            "owner": [one.market_id for one in found],
            "rank": [REASONS.index(one.reason) for one in found],
            "is_of_all": [one.window is None for one in found],
            "since": pd.Series([start for start, _ in times], dtype=UTC_DTYPE),
            "until": pd.Series([end for _, end in times], dtype=UTC_DTYPE),
        }
    )


def find_window_starts(rows: pd.DataFrame) -> "pd.Series[Any]":
    """Return where each row's window begins: its base close, else the day before its horizon.

    Without a base close ``first_bar_at`` is missing, or lies within the horizon.
    """
    days = rows["horizon"].astype(str).str.removesuffix("d").astype("int64")
    horizon = rows["as_of"] - pd.to_timedelta(days, unit="D")
    has_base = rows["first_bar_at"] <= horizon + _EARLY_CLOSE
    return rows["first_bar_at"].where(has_base, horizon - _DAY)
