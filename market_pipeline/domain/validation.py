"""Validation of bars before they are stored: which rows are impossible, and why.

Here: the rules, as vectorised tests over a bar frame, and what happens to duplicates.
Not here: what is done with rejected rows (``ingestion`` quarantines them), and bars that are only
unlikely. A spike is possible, so it passes: crashes are real.

A bar is rejected under the first rule that it breaks:

=======================  =========================================================================
rule                     broken when
=======================  =========================================================================
not_finite               a price is NaN or infinite, or volume or trades is infinite
price_not_positive       a price is zero or negative
low_above_body           low > min(open, close)
high_below_body          high < max(open, close)
volume_negative          volume or trades is negative
in_the_future            open_time lies after now
absurd_time              open_time is missing or before 1970
bad_span                 close_time is missing or not after open_time
not_a_session            the calendar has no session that the bar could be of: a closed date, or
                         an hour outside all sessions
off_grid                 open_time is no start of a bar of this interval, or the interval is unknown
conflicting_duplicate    another row of the same interval and open_time has other values
=======================  =========================================================================

With ``not_a_session`` the bar itself may be right: the calendar and the provider disagree on when
the market is open. An hour outside all sessions is such a bar too, whatever its minute, because a
corrected calendar may have a session there. Within a session it is ``off_grid``, because no
calendar starts a bar there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.arrays import BoolArray
from market_pipeline.domain.grids import Micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.sessions import build_hourly_grid

Words = npt.NDArray[Any]
NOT_A_SESSION = "not_a_session"

KEY = ["interval", "open_time"]
_PRICES = ["open", "high", "low", "close"]
_COUNTS = ["volume", "trades"]
_VALUES = ["close_time", *_PRICES, *_COUNTS, "volume_kind", "source_kind"]
_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
_FIRST_MONDAY_US = 4 * _DAY_US  # 1970-01-05
_EVIDENCE: Mapping[str, list[str]] = {
    "not_finite": [*_PRICES, *_COUNTS],
    "price_not_positive": _PRICES,
    "low_above_body": _PRICES,
    "high_below_body": _PRICES,
    "volume_negative": _COUNTS,
    "in_the_future": ["open_time"],
    "absurd_time": ["open_time"],
    "bad_span": ["open_time", "close_time"],
    NOT_A_SESSION: KEY,
    "off_grid": KEY,
    "conflicting_duplicate": ["is_final", *_PRICES, "volume"],
}


@dataclass(frozen=True, slots=True)
class ValidatedBars:
    """The verdict on a bar frame; ``good``, ``rejected`` and ``duplicates`` add up to its rows.

    Attributes:
        good: A bar frame with unique keys, ordered by interval and open_time.
        rejected: A bar frame with the columns ``rule`` and ``detail`` more, in the order received.
        duplicates: How many rows only repeated the values of another and were left out.
    """

    good: pd.DataFrame
    rejected: pd.DataFrame
    duplicates: int


def validate_bars(
    frame: pd.DataFrame, now: datetime, sessions: pd.DataFrame | None = None
) -> ValidatedBars:
    """Separate possible bars from impossible ones.

    Of several rows with one key the final one is kept, and among equals the last received; of bars
    made of price points that differ none is. Never raises on any number or time; validating
    ``good`` again changes nothing.

    Args:
        frame: A bar frame in the order received.
        now: The run's clock (UTC).
        sessions: The market's (``sessions.read_sessions``), around the bars. Before the first and
            after the last of them nothing is known, so daily bars pass there. Without sessions
            bars may start on any date and on the full hour, which holds for always-open markets.
    """
    with np.errstate(all="ignore"):
        rules = _name_broken_rules(frame, now, sessions)
    sound = np.flatnonzero(rules == "")
    kept, repeated, conflicting = _resolve_duplicates(frame.iloc[sound])
    rules[sound[conflicting]] = "conflicting_duplicate"
    good = frame.iloc[sound[kept]].sort_values(KEY, kind="stable", ignore_index=True)
    return ValidatedBars(good, _build_rejected(frame, rules), int(repeated.sum()))


def _name_broken_rules(frame: pd.DataFrame, now: datetime, sessions: pd.DataFrame | None) -> Words:
    tests = {
        **_test_numbers(frame),
        **_test_times(frame, now),
        NOT_A_SESSION: find_strays(frame, sessions),
        "off_grid": ~_test_grid(frame, sessions),
    }
    return np.select(list(tests.values()), list(tests), default="").astype(object)


def _test_numbers(frame: pd.DataFrame) -> dict[str, BoolArray]:
    prices = frame[_PRICES].to_numpy(dtype="float64")
    counts = frame[_COUNTS].to_numpy(dtype="float64")
    body = prices[:, [0, 3]]
    return {
        "not_finite": ~np.isfinite(prices).all(axis=1) | np.isinf(counts).any(axis=1),
        "price_not_positive": (prices <= 0).any(axis=1),
        "low_above_body": prices[:, 2] > body.min(axis=1),
        "high_below_body": prices[:, 1] < body.max(axis=1),
        "volume_negative": (counts < 0).any(axis=1),
    }


def _test_times(frame: pd.DataFrame, now: datetime) -> dict[str, BoolArray]:
    opens, closes = frame["open_time"], frame["close_time"]
    return {
        "in_the_future": (opens > pd.Timestamp(now)).to_numpy(),
        "absurd_time": ~(opens >= pd.Timestamp(0, tz="UTC")).to_numpy(),
        "bad_span": ~(closes > opens).to_numpy(),
    }


def find_strays(frame: pd.DataFrame, sessions: pd.DataFrame | None) -> BoolArray:
    """Tell which bars lie between the first and the last session, and in none.

    Args:
        frame: Columns ``interval`` and ``open_time``.
        sessions: See :func:`validate_bars`.
    """
    strays = np.zeros(len(frame), dtype=bool)
    if sessions is None or sessions.empty:
        return strays
    us, intervals = _to_micros(frame["open_time"]), frame["interval"].to_numpy(dtype=object)
    tests = {Interval.DAY: _lie_on_closed_dates, Interval.HOUR: _lie_between_sessions}
    for interval, test in tests.items():
        chosen = intervals == interval.value
        if chosen.any():
            strays[chosen] = test(us[chosen], sessions)
    return strays


def _lie_on_closed_dates(us: Micros, sessions: pd.DataFrame) -> BoolArray:
    dates = _to_micros(sessions["session_date"])
    is_known = (dates[0] <= us) & (us <= dates[-1]) & (us % _DAY_US == 0)
    return np.asarray(is_known & ~np.isin(us, dates))


def _lie_between_sessions(us: Micros, sessions: pd.DataFrame) -> BoolArray:
    opens, closes = (_to_micros(sessions[name]) for name in ("open_time", "close_time"))
    is_known = (opens[0] <= us) & (us < closes[-1])
    row = np.searchsorted(opens, us, side="right") - 1
    return np.asarray(is_known & (us >= closes[row]))


def _test_grid(frame: pd.DataFrame, sessions: pd.DataFrame | None) -> BoolArray:
    opens, us = frame["open_time"], _to_micros(frame["open_time"])
    on_hour = us % _HOUR_US == 0
    if sessions is not None:
        on_hour = opens.isin(build_hourly_grid(sessions)).to_numpy()
    on_grid = {
        Interval.HOUR.value: on_hour,
        Interval.DAY.value: us % _DAY_US == 0,
        Interval.WEEK.value: (us - _FIRST_MONDAY_US) % (7 * _DAY_US) == 0,
    }
    intervals = frame["interval"].to_numpy(dtype=object)
    conditions = [intervals == interval for interval in on_grid]
    return np.select(conditions, list(on_grid.values()), default=False)


def _to_micros(times: "pd.Series[Any]") -> Micros:
    return times.to_numpy(dtype="datetime64[us]").view("int64")


def _resolve_duplicates(frame: pd.DataFrame) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Return which rows are kept, which only repeat the kept one, and which contradict it."""
    kept = np.ones(len(frame), dtype=bool)
    if not frame.duplicated(KEY).any():
        return kept, ~kept, ~kept
    key = frame.groupby(KEY, sort=False).ngroup().to_numpy()
    # The last of each key in this order is the last received final row, or else the last received.
    order = np.lexsort((np.arange(len(frame)), frame["is_final"].to_numpy(), key))
    last_of_key = np.append(np.flatnonzero(np.diff(key[order])), len(frame) - 1)
    winner = order[last_of_key]
    kept = np.isin(np.arange(len(frame)), winner)
    same = _equal_rows(frame[_VALUES], frame[_VALUES].iloc[winner[key]])
    # Two prices for one moment: what makes a later bar the better one does not hold for points.
    is_points = (frame["source_kind"] == "points").to_numpy()
    doubted = kept & is_points & np.isin(key, key[~kept & ~same])
    return kept & ~doubted, ~kept & same, (~kept & ~same) | doubted


def _equal_rows(left: pd.DataFrame, right: pd.DataFrame) -> BoolArray:
    """Compare row by row; two missing values are equal."""
    right = right.set_axis(left.index)
    return ((left == right) | (left.isna() & right.isna())).all(axis=1).to_numpy()


def _build_rejected(frame: pd.DataFrame, rules: Words) -> pd.DataFrame:
    broken = np.flatnonzero(rules != "")
    rejected = frame.iloc[broken].reset_index(drop=True)
    names = list(rules[broken])
    details = [
        _describe_row(row, rule)
        for row, rule in zip(rejected.to_dict("records"), names, strict=True)
    ]
    return rejected.assign(
        rule=pd.Series(names, dtype="str"), detail=pd.Series(details, dtype="str")
    )


def _describe_row(row: Mapping[Any, Any], rule: str) -> str:
    return ", ".join(f"{column}={row[column]}" for column in _EVIDENCE[rule])
