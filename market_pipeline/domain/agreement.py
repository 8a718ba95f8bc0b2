"""Agreement of two series of one symbol: how far their closes lie apart, and what may be the cause.

Two sources of a symbol are two witnesses. They are compared and never averaged: which one is right
is for a person to decide. Not here: which markets share a symbol (``readers.agreement``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias

import numpy as np

from market_pipeline.domain.arrays import BoolArray, FloatArray, Micros
from market_pipeline.domain.intervals import ALWAYS_OPEN
from market_pipeline.domain.splits import RATIOS, TOLERANCE_RATIO

Verdict: TypeAlias = Literal["agree", "differ", "nothing_in_common"]
_BASIS_POINTS = 10_000
_MAX_WORST = 5
# A ratio of the two is called constant where this share of the bars has it.
_MOST = 0.9
# What lies this near a constant ratio has it: traded prices of two venues differ by that.
_NEAR_RATIO = 0.02


@dataclass(frozen=True, slots=True)
class Threshold:
    """What two sources may differ by: the median and the largest difference of their closes."""

    median_bp: float
    largest_bp: float


# Without an official close each venue has its own last trade. In the recorded year of Bitcoin on an
# index and on an exchange they lie 23 bp apart in the median, and 315 on the worst day.
NEVER_CLOSES = Threshold(100.0, 500.0)
# An exchange publishes one close for a session, and all sources copy it: the recorded closes of SPX
# are equal. Some sources take the last trade before the closing auction.
SESSIONS = Threshold(5.0, 100.0)


@dataclass(frozen=True, slots=True)
class Series:
    """Closes of final bars by open_time, in order of time."""

    opens: Micros
    closes: FloatArray


@dataclass(frozen=True, slots=True)
class DifferingBar:
    """One bar that both series have: both closes, and how far they lie apart."""

    open_time: datetime
    close: float
    other_close: float
    difference_bp: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two series agree; differences are in basis points of the lower close.

    Attributes:
        bars: How many bars both have.
        missing: How many the second has and the first lacks, where the spans of both overlap.
        other_missing: How many the second lacks.
        median_bp: None without bars in common, as ``largest_bp``.
        worst: The bars that differ most, the largest difference first.
        hint: What may be the cause, in a sentence; None where they agree.
    """

    bars: int
    missing: int
    other_missing: int
    median_bp: float | None
    largest_bp: float | None
    verdict: Verdict
    hint: str | None = None
    worst: tuple[DifferingBar, ...] = ()


def find_threshold(*calendars: str) -> Threshold:
    """Return the threshold of markets with these calendars: the wider one if any never closes."""
    return NEVER_CLOSES if ALWAYS_OPEN in calendars else SESSIONS


def compare_series(one: Series, other: Series, threshold: Threshold) -> Agreement:
    """Compare two series; each has an open_time once."""
    opens, at_one, at_other = np.intersect1d(
        one.opens, other.opens, assume_unique=True, return_indices=True
    )
    missing, other_missing = (
        _count_overlap(series, one, other) - len(opens) for series in (other, one)
    )
    if not len(opens):
        return Agreement(0, missing, other_missing, None, None, "nothing_in_common")
    closes, other_closes = one.closes[at_one], other.closes[at_other]
    apart = _compute_apart(closes, other_closes)
    median, largest = float(np.median(apart)), float(apart.max())
    differs = median > threshold.median_bp or largest > threshold.largest_bp
    hint = _find_cause(opens, closes, other_closes, threshold) if differs else None
    worst = [at for at in np.argsort(-apart, kind="stable")[:_MAX_WORST] if apart[at] > 0]
    shown = zip(opens[worst], closes[worst], other_closes[worst], apart[worst], strict=True)
    return Agreement(
        len(opens), missing, other_missing, median, largest,
        "differ" if differs else "agree", hint,
        tuple(DifferingBar(_read_time(at), *map(float, values)) for at, *values in shown),
    )  # fmt: skip


def _count_overlap(series: Series, one: Series, other: Series) -> int:
    """Return how many bars of a series lie from the later first to the earlier last of the two."""
    if not (len(one.opens) and len(other.opens)):
        return 0
    first, last = max(one.opens[0], other.opens[0]), min(one.opens[-1], other.opens[-1])
    return int(((series.opens >= first) & (series.opens <= last)).sum())


def _compute_apart(closes: FloatArray, other: FloatArray) -> FloatArray:
    """Return differences in basis points, the same whichever comes first."""
    ratios = np.maximum(closes, other) / np.minimum(closes, other)
    return np.asarray((ratios - 1) * _BASIS_POINTS)


def _read_time(micros: np.int64) -> datetime:
    return datetime.fromtimestamp(int(micros) // 1_000_000, UTC)


def _find_cause(opens: Micros, closes: FloatArray, other: FloatArray, threshold: Threshold) -> str:
    """Return the likeliest cause: the causes that few wrong data can imitate come first."""
    causes = (
        *_explain_factor(closes / other),
        *_explain_steps(opens, closes / other),
        *_explain_shift(closes, other, threshold),
    )
    far = _compute_apart(closes, other) > threshold.median_bp
    if not causes and far.mean() >= _MOST:
        return "nearly every bar differs: one of them may be another instrument or currency"
    few = f"{int(far.sum()):,} of {len(far):,} bars differ: single closes of one may be wrong"
    return next(iter(causes), few)


def _explain_factor(ratios: FloatArray) -> Iterator[str]:
    """Explain one ratio of all bars."""
    usual = float(np.median(ratios))
    if _is_near(ratios, usual, _NEAR_RATIO).mean() < _MOST:
        return
    if power := _find_power(usual):
        yield f"the first is {power:g} times the second: one of them may have another unit"
    elif _is_split(usual):
        yield f"the first is {usual:.4g} times the second: one may lack the adjustment for a split"


def _explain_steps(opens: Micros, ratios: FloatArray) -> Iterator[str]:
    """Explain a ratio that is constant but for a step from a date on."""
    steps = ratios[1:] / ratios[:-1]
    [jumps] = np.nonzero(~_is_near(steps, 1.0, 2 * _NEAR_RATIO))
    # A single wrong bar goes up and down again: two jumps with nothing between them.
    lasting = jumps[(np.diff(jumps, prepend=-2) > 1) & (np.diff(jumps, append=len(steps) + 1) > 1)]
    if not len(lasting) or len(jumps) > (1 - _MOST) * len(ratios):
        return
    step, since = float(steps[lasting[-1]]), _read_time(opens[lasting[-1] + 1])
    told = f"from {since:%Y-%m-%d} on the first is {step:.4g} times what it was to the second"
    if _is_split(step):
        yield f"{told}: one of them may lack the adjustment for a split"
    elif _find_power(step):
        yield f"{told}: one of them may have changed its unit"


def _explain_shift(closes: FloatArray, other: FloatArray, threshold: Threshold) -> Iterator[str]:
    """Explain closes that agree when one series is moved by a bar."""
    usual = np.median(_compute_apart(closes, other))
    for one, two, word in ((closes[:-1], other[1:], "later"), (closes[1:], other[:-1], "earlier")):
        moved = np.median(_compute_apart(one, two)) if len(one) else np.inf
        if moved <= min(threshold.median_bp, usual / 2):
            yield f"the second has the closes of the first one bar {word}: its times may be shifted"


def _is_near(values: FloatArray | float, target: float, tolerance: float) -> BoolArray:
    return np.asarray(np.abs(np.asarray(values) / target - 1) <= tolerance)


def _find_power(ratio: float) -> float | None:
    """Return the power of ten that a ratio is near; None: there is none but 1."""
    power = float(10.0 ** np.round(np.log10(ratio)))
    return power if power != 1 and _is_near(ratio, power, _NEAR_RATIO) else None


def _is_split(ratio: float) -> bool:
    return bool((np.abs(ratio / RATIOS - 1) <= TOLERANCE_RATIO).any())
