"""How fresh a market is on a page: up to where its own calendar says it should be known. Pure.

A few hours' grace stand for what providers need to publish; a run's own checks know each
provider's lag.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np

from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.grids import find_grid, from_micros, to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window

_GRACE = {Interval.HOUR: timedelta(hours=3), Interval.DAY: timedelta(hours=12)}
_LOOK_BACK = timedelta(days=20)


@dataclass(frozen=True, slots=True)
class Freshness:
    """``state`` is current, behind or empty; ``final_to`` the close of the last final bar."""

    state: str
    final_to: datetime | None
    behind: timedelta | None = None


def judge_freshness(row: Mapping[str, Any], now: datetime) -> Freshness:
    """Compare a market's watermark with what its calendar expects."""
    hourly = row["final_to_1h"] is not None
    final_to = row["final_to_1h"] if hourly else row["final_to_1d"]
    if final_to is None:
        return Freshness("empty", None)
    due = find_due(row["calendar"], Interval.HOUR if hourly else Interval.DAY, _floor(now))
    if due is None or final_to >= due:
        return Freshness("current", final_to)
    return Freshness("behind", final_to, due - final_to)


@lru_cache(maxsize=256)
def find_due(calendar: str, interval: Interval, now: datetime) -> datetime | None:
    """Return the close of the newest bar that should be final; None where nobody can tell."""
    try:
        grid = find_grid(calendar, interval, Window(now - _LOOK_BACK, now))
    except SettingError:
        return None
    closed = int(np.searchsorted(grid.closes, to_micros(now - _GRACE[interval]), side="right"))
    return from_micros(grid.closes[closed - 1]) if closed else None


def _floor(now: datetime) -> datetime:
    return now.replace(second=0, microsecond=0)
