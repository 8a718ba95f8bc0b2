"""What the domain does with columns, for tests that think in data frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from market_pipeline.domain import bars as building
from market_pipeline.domain.columns import (
    BarColumns,
    build_columns,
    read_frame_columns,
    to_micros_array,
)
from market_pipeline.domain.records import BAR_COLUMNS, Window
from market_pipeline.domain.sessions import SESSION_COLUMNS, convert_sessions
from market_pipeline.domain.validation import RejectedBars, validate_bars

OWNER = 7
_FILLED = {"interval": "1d", "volume_kind": "none", "source_kind": "traded", "is_final": True}


@dataclass(frozen=True)
class FrameVerdict:
    """``ValidatedBars`` in frames; the rejected ones have ``rule`` and ``detail`` more."""

    good: pd.DataFrame
    rejected: pd.DataFrame
    duplicates: int


def validate_frame(
    frame: pd.DataFrame, now: datetime, sessions: pd.DataFrame | None = None
) -> FrameVerdict:
    """Validate a bar frame by a frame of sessions."""
    times = None if sessions is None else convert_sessions(sessions[[*SESSION_COLUMNS]])
    verdict = validate_bars(read_frame_columns(frame), now, times)
    rejected = verdict.rejected.bars.to_frame().assign(
        rule=pd.Series(verdict.rejected.rules, dtype="str"),
        detail=pd.Series(verdict.rejected.details, dtype="str"),
    )
    return FrameVerdict(verdict.good.to_frame(), rejected, verdict.duplicates)


def reject_frame(rejected: pd.DataFrame) -> RejectedBars:
    """Return a frame of rejected bars as validation gives them."""
    rules, details = tuple(rejected["rule"]), tuple(rejected["detail"])
    bars = read_frame_columns(rejected)
    return RejectedBars(bars, rules, details, np.arange(len(rules)))


def build_weeks(
    daily: pd.DataFrame, sessions: pd.DataFrame, now: datetime, gone: Sequence[Window] = ()
) -> pd.DataFrame:
    """Build the weeks of one market."""
    owners, times = np.full(len(daily), OWNER), convert_sessions(sessions)
    built = building.build_weekly_bars(
        read_frame_columns(daily), owners, times, now, {OWNER: gone} if gone else {}
    )
    assert (built.owners == OWNER).all()
    return built.bars.to_frame()


def build_days(
    hourly: pd.DataFrame, sessions: pd.DataFrame, gone: Sequence[Window] = ()
) -> pd.DataFrame:
    """Build the days of one market."""
    owners, times = np.full(len(hourly), OWNER), convert_sessions(sessions)
    built = building.build_daily_bars(
        read_frame_columns(hourly), owners, times, {OWNER: gone} if gone else {}
    )
    return built.bars.to_frame()


def fill_columns(frame: pd.DataFrame) -> BarColumns:
    """Return the columns of a frame that need not have all of them."""
    given = {name: frame[name].to_numpy() for name in frame if name in BAR_COLUMNS}
    given = {name: values for name, values in given.items() if not name.endswith("_time")}
    opens = to_micros_array(frame["open_time"])
    closes = to_micros_array(frame["close_time"]) if "close_time" in frame else opens + 1
    prices = dict.fromkeys(("open", "high", "low", "close"), np.nan)
    times = {"open_time": opens, "close_time": closes}
    return build_columns(**{**_FILLED, **prices, **given, **times})
