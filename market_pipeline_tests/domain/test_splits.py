"""Jumps that look like splits, and those that do not."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.domain.sessions import read_sessions
from market_pipeline.domain.splits import RATIOS, find_jumps, may_have_split

SESSIONS = read_sessions("XNYS", datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC))


def build_days(closes: "np.typing.ArrayLike", skipped: tuple[int, ...] = ()) -> pd.DataFrame:
    """Return daily bars on the first sessions of 2024, without some."""
    values = np.asarray(closes, dtype="float64")
    sessions = SESSIONS.iloc[: len(values)]
    times = {"open_time": sessions["session_date"], "close_time": sessions["close_time"]}
    days = pd.DataFrame(times).assign(close=values)
    return days.drop(index=list(skipped)).reset_index(drop=True)


def walk(count: int, at: int, change: float, size: float = 0.01) -> "np.ndarray":
    """Return closes that go up and down by one size, and jump once."""
    returns = np.where(np.arange(count) % 2, 1 + size, 1 / (1 + size))
    returns[at] = change
    return 100 * np.cumprod(returns)


@given(ratio=st.sampled_from(list(RATIOS)), off=st.floats(-0.0095, 0.0095), at=st.integers(1, 59))
def test_every_ratio_is_found_within_one_per_cent(ratio: float, off: float, at: int) -> None:
    """Wherever it lies, with the closes on both sides."""
    days = build_days(walk(60, at, ratio * (1 + off)))
    assert may_have_split(days["close"].to_numpy())
    (jump,) = find_jumps(days, "XNYS")
    assert jump.ratio == pytest.approx(ratio, rel=0.011)  # 49:1 and 50:1 lie close together
    assert jump.change == pytest.approx(ratio * (1 + off))
    assert [jump.start, jump.end] == list(days["close_time"].iloc[at - 1 : at + 1])


@pytest.mark.parametrize("change", [0.52, 0.48, 0.8, 1.0, 1.25, 1.47, 1.53, 0.34])
def test_other_jumps_are_prices(change: float) -> None:
    """A crash is no split."""
    assert find_jumps(build_days(walk(60, 30, change)), "XNYS") == []


def test_what_is_usual_for_a_market_is_no_split() -> None:
    """A market that moves by 5 % a day can fall to two thirds."""
    days = build_days(walk(60, 30, 2 / 3, size=0.05))
    assert may_have_split(days["close"].to_numpy())
    assert find_jumps(days, "XNYS") == []


def test_too_few_returns_say_nothing() -> None:
    """Without three others there is no median, and there are no statistics either."""
    assert find_jumps(build_days([100, 50, 51, 52]), "XNYS") == []
    assert len(find_jumps(build_days([100, 50, 51, 52, 53]), "XNYS")) == 1


@pytest.mark.parametrize(("missing", "found"), [(4, 1), (5, 0)])
def test_a_hole_of_some_sessions_hides_no_split(missing: int, found: int) -> None:
    """Beyond that, prices may have doubled by themselves."""
    skipped = tuple(range(30, 30 + missing))
    days = build_days(walk(60, 30 + missing, 0.5, size=0.001), skipped)
    assert len(find_jumps(days, "XNYS")) == found


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_bars_no_jumps(count: int) -> None:
    """Nothing is too short."""
    assert find_jumps(build_days([100.0, 50.0][:count]), "XNYS") == []
