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
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.arrays import BoolArray, Micros
from market_pipeline.domain.columns import NO_BARS, PRICES, BarColumns, Words
from market_pipeline.domain.grids import to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.sessions import SessionTimes

NOT_A_SESSION = "not_a_session"

KEY = ["interval", "open_time"]
_PRICES = [*PRICES]
_COUNTS = ["volume", "trades"]
_VALUES = ("close_time", *_PRICES, *_COUNTS, "volume_kind", "source_kind")
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
Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class RejectedBars:
    """Bars that broke a rule, in the order received.

    Attributes:
        bars: As they came. rules: The first that each one broke. details: The evidence, in words.
        places: Where they stood among the bars that were validated.
    """

    bars: BarColumns = NO_BARS
    rules: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    places: Places = field(default_factory=lambda: np.empty(0, dtype=np.intp))

    def __len__(self) -> int:
        return len(self.rules)


@dataclass(frozen=True, slots=True)
class ValidatedBars:
    """The verdict on bars; ``good``, ``rejected`` and ``duplicates`` add up to what came.

    Attributes:
        good: Bars with unique keys, ordered by interval and open_time.
        places: Where they stood among the bars that were validated.
        rejected: The impossible ones.
        duplicates: How many bars only repeated the values of another and were left out.
    """

    good: BarColumns
    places: Places
    rejected: RejectedBars
    duplicates: int


def validate_bars(
    bars: BarColumns, now: datetime, sessions: SessionTimes | None = None
) -> ValidatedBars:
    """Separate possible bars from impossible ones.

    Of several rows with one key the final one is kept, and among equals the last received; of bars
    made of price points that differ none is. Never raises on any number or time; validating
    ``good`` again changes nothing.

    Args:
        bars: In the order received.
        now: The run's clock (UTC).
        sessions: The market's, around the bars. Before the first and after the last of them nothing
            is known, so daily bars pass there. Without sessions bars may start on any date and on
            the full hour, which holds for always-open markets.
    """
    with np.errstate(all="ignore"):
        tests = _test_bars(bars, to_micros(now), sessions)
    is_broken = np.logical_or.reduce([*tests.values()])
    if not is_broken.any() and _is_in_order(bars):
        return ValidatedBars(bars, np.arange(len(bars)), RejectedBars(), 0)
    sound = np.flatnonzero(~is_broken)
    kept, repeated, conflicting = _resolve_duplicates(bars.take(sound))
    rules = _name_rules(tests, is_broken)
    for place in sound[conflicting].tolist():
        rules[place] = "conflicting_duplicate"
    places = sound[kept]
    return ValidatedBars(bars.take(places), places, _reject(bars, rules), len(repeated))


def _is_in_order(bars: BarColumns) -> bool:
    """Tell whether bars are of one interval, each later than the one before: nearly all pages."""
    is_one = bool((bars.interval == bars.interval[:1]).all())
    return is_one and bool((bars.open_time[1:] > bars.open_time[:-1]).all())


def _test_bars(bars: BarColumns, now: int, sessions: SessionTimes | None) -> dict[str, BoolArray]:
    """Return which bars break each rule; the first rule counts."""
    return {
        **_test_numbers(bars),
        "in_the_future": bars.open_time > now,
        "absurd_time": bars.open_time < 0,
        "bad_span": bars.close_time <= bars.open_time,
        NOT_A_SESSION: find_strays(bars.interval, bars.open_time, sessions),
        "off_grid": ~_test_grid(bars, sessions),
    }


def _test_numbers(bars: BarColumns) -> dict[str, BoolArray]:
    least = np.minimum(np.minimum(bars.open, bars.close), np.minimum(bars.high, bars.low))
    counts = np.fmin(bars.volume, bars.trades)
    is_odd = np.isinf(bars.volume) | np.isinf(bars.trades)
    for price in PRICES:
        is_odd |= ~np.isfinite(getattr(bars, price))
    return {
        "not_finite": is_odd,
        "price_not_positive": least <= 0,
        "low_above_body": bars.low > np.minimum(bars.open, bars.close),
        "high_below_body": bars.high < np.maximum(bars.open, bars.close),
        "volume_negative": counts < 0,
    }


def find_strays(intervals: Words, opens: Micros, sessions: SessionTimes | None) -> BoolArray:
    """Tell which bars lie between the first and the last session, and in none.

    Args:
        intervals: Of the bars.
        opens: Their open_time.
        sessions: See :func:`validate_bars`.
    """
    strays = np.zeros(len(opens), dtype=bool)
    if sessions is None or not len(sessions.dates):
        return strays
    for interval, test in (
        (Interval.DAY, _lie_on_closed_dates),
        (Interval.HOUR, _lie_between_sessions),
    ):
        chosen = intervals == interval.value
        if chosen.any():
            strays[chosen] = test(opens[chosen], sessions)
    return strays


def _lie_on_closed_dates(opens: Micros, sessions: SessionTimes) -> BoolArray:
    dates = sessions.dates
    is_known = (dates[0] <= opens) & (opens <= dates[-1]) & (opens % _DAY_US == 0)
    return np.asarray(is_known & ~np.isin(opens, dates))


def _lie_between_sessions(opens: Micros, sessions: SessionTimes) -> BoolArray:
    is_known = (sessions.opens[0] <= opens) & (opens < sessions.closes[-1])
    row = np.searchsorted(sessions.opens, opens, side="right") - 1
    return np.asarray(is_known & (opens >= sessions.closes[row]))


def _test_grid(bars: BarColumns, sessions: SessionTimes | None) -> BoolArray:
    """Tell which bars open where one of their interval may."""
    opens, on_grid = bars.open_time, np.zeros(len(bars), dtype=bool)
    for interval in Interval:
        chosen = bars.interval == interval.value
        if chosen.any():
            on_grid |= chosen & _open_on_grid(interval, opens, sessions)
    return on_grid


def _open_on_grid(interval: Interval, opens: Micros, sessions: SessionTimes | None) -> BoolArray:
    if interval is Interval.DAY:
        return np.asarray(opens % _DAY_US == 0)
    if interval is Interval.WEEK:
        return np.asarray((opens - _FIRST_MONDAY_US) % (7 * _DAY_US) == 0)
    if sessions is None:
        return np.asarray(opens % _HOUR_US == 0)
    row = np.searchsorted(sessions.opens, opens, side="right") - 1
    begins = np.append(sessions.opens, 0)[row]
    closes = np.append(sessions.closes, 0)[row]
    return np.asarray((row >= 0) & (opens < closes) & ((opens - begins) % _HOUR_US == 0))


def _resolve_duplicates(bars: BarColumns) -> tuple[Places, Places, Places]:
    """Return which rows are kept, in order, which only repeat one, and which contradict one."""
    none = np.empty(0, dtype=np.intp)
    order, key = _number_keys(bars)
    if not len(bars) or key[-1] == len(bars) - 1:
        return order, none, none
    # The last of each key in this order is the last received final row, or else the last received.
    order = order[np.lexsort((order, bars.is_final[order], key))]
    winner = order[np.append(np.flatnonzero(np.diff(key)), len(key) - 1)]
    is_kept = np.zeros(len(bars), dtype=bool)
    is_kept[winner] = True
    same = np.empty(len(bars), dtype=bool)
    same[order] = _equal_rows(bars.take(order), bars.take(winner[key]))
    keys = np.empty(len(bars), dtype=np.intp)
    keys[order] = key
    # Two prices for one moment: what makes a later bar the better one does not hold for points.
    doubted = is_kept & (bars.source_kind == "points") & np.isin(keys, keys[~is_kept & ~same])
    kept = winner[~doubted[winner]]
    return kept, np.flatnonzero(~is_kept & same), np.flatnonzero((~is_kept & ~same) | doubted)


def _number_keys(bars: BarColumns) -> tuple[Places, Places]:
    """Return the order by interval and open_time, and each ordered row's key from 0."""
    names, codes = np.unique(bars.interval.astype(str), return_inverse=True)
    del names
    order = np.lexsort((bars.open_time, codes))
    steps = (np.diff(codes[order]) != 0) | (np.diff(bars.open_time[order]) != 0)
    return order, np.append(0, np.cumsum(steps))[: len(order)]


def _equal_rows(left: BarColumns, right: BarColumns) -> BoolArray:
    """Compare row by row; two missing values are equal."""
    equal = np.ones(len(left), dtype=bool)
    for name in _VALUES:
        one, other = getattr(left, name), getattr(right, name)
        equal &= (one == other) | (pd.isna(one) & pd.isna(other))
    return equal


def _name_rules(tests: Mapping[str, BoolArray], is_broken: BoolArray) -> dict[int, str]:
    """Return the first rule that each broken bar breaks, by place."""
    rules = {}
    for place in np.flatnonzero(is_broken).tolist():
        rules[place] = next(rule for rule, is_its in tests.items() if is_its[place])
    return rules


def _reject(bars: BarColumns, rules: Mapping[int, str]) -> RejectedBars:
    if not rules:
        return RejectedBars()
    places = np.array(sorted(rules), dtype=np.intp)
    broken, names = bars.take(places), tuple(rules[place] for place in places.tolist())
    rows = broken.to_frame().to_dict("records")
    details = tuple(_describe_row(row, rule) for row, rule in zip(rows, names, strict=True))
    return RejectedBars(broken, names, details, places)


def _describe_row(row: Mapping[Any, Any], rule: str) -> str:
    return ", ".join(f"{column}={row[column]}" for column in _EVIDENCE[rule])
