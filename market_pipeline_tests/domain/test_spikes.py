"""Which bars are flagged as spikes, and that they stay."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.domain.columns import read_frame_columns
from market_pipeline.domain.records import build_bar_frame, build_empty_bar_frame
from market_pipeline.domain.spikes import find_spikes

PRICES = st.floats(allow_nan=True, allow_infinity=True)


def series(closes: Sequence[float], interval: str = "1d") -> pd.DataFrame:
    """Build the bars of consecutive days."""
    days = pd.date_range("2024-01-01", periods=len(closes), freq="D", tz="UTC", unit="us")
    columns: dict[str, Any] = {key: list(closes) for key in ("open", "high", "low", "close")}
    columns |= {"open_time": days, "close_time": days + pd.Timedelta(days=1)}
    return build_bar_frame({**columns, "interval": interval, "is_final": True})


def wander(count: int = 60, step: float = 0.01) -> list[float]:
    """Return closes that go up and down by about ``step``, never twice by the same."""
    moves = [(-1) ** day * step * (1 + day % 7 / 10) for day in range(count)]
    return [100 * float(np.exp(move)) for move in np.cumsum(moves)]


def positions(bars: pd.DataFrame) -> list[int]:
    """Return which days of a series are flagged."""
    starts = series([1.0])["open_time"][0]
    flagged = bars["open_time"][find_spikes(read_frame_columns(bars))]
    return [(day - starts).days for day in flagged]


def test_a_unit_error_is_found_on_its_way_there_and_back() -> None:
    """One bar a thousand times too high is two jumps."""
    closes = wander()
    closes[30] *= 1000
    assert positions(series(closes)) == [30, 31]


def test_a_price_in_cents_is_found_where_it_begins() -> None:
    """A lasting change of the unit jumps once."""
    closes = wander()
    assert positions(series([*closes[:30], *(100 * close for close in closes[30:])])) == [30]


@pytest.mark.parametrize("step", [0.02, 0.05])
def test_ordinary_days_are_no_spikes(step: float) -> None:
    """Neither two nor five percent a day, when it is so every day."""
    assert positions(series(wander(step=step))) == []


def test_far_from_the_median_but_small_is_no_spike() -> None:
    """Twelve percent is far off in a quiet series, and yet no cause for alarm."""
    closes = wander(step=0.0001)
    assert positions(series([*closes[:30], *(0.88 * close for close in closes[30:])])) == []


def test_large_moves_of_a_wild_series_are_no_spikes() -> None:
    """Twenty percent up and down each day is what this market does."""
    assert positions(series(wander(step=0.2))) == []


def test_a_crash_is_flagged_and_stays() -> None:
    """Forty percent in a day: flagged; the bars themselves are not touched."""
    closes = wander()
    bars = series([*closes[:30], *(0.6 * close for close in closes[30:])])
    before = bars.copy(deep=True)
    assert positions(bars) == [30]
    pd.testing.assert_frame_equal(bars, before)


def test_constant_prices_have_no_spike_and_a_jump_out_of_them_is_one() -> None:
    """No deviation to measure by: only what moves at all can be flagged."""
    assert positions(series([7.0] * 40)) == []
    assert positions(series([7.0] * 20 + [5.0] * 20)) == [20]


def test_fewer_than_twenty_bars_are_not_examined() -> None:
    """The twentieth bar makes the difference."""
    crash = [100.0, 101.0] * 9 + [100.0]
    assert positions(series([*crash[:-1], 10.0])) == []
    assert positions(series([*crash, 10.0])) == [19]


def test_each_interval_is_measured_by_itself() -> None:
    """A quiet hour's neighbours are hours, whichever way the rows are mixed."""
    days, hours = series(wander()), series([1.0] * 60, "1h")
    mixed = pd.concat([days, hours]).sort_values("open_time", kind="stable", ignore_index=True)
    assert positions(mixed) == []


def test_missing_and_impossible_closes_are_left_aside() -> None:
    """No return leads to or from them, and the others are examined as ever."""
    closes = wander()
    closes[10], closes[20], closes[25] = np.nan, 0.0, -3.0
    closes[40] *= 1000
    with np.errstate(all="raise"):
        assert positions(series(closes)) == [40, 41]


def test_no_bars_have_no_spikes() -> None:
    """There is nothing to flag."""
    assert positions(build_empty_bar_frame()) == []


@given(st.lists(PRICES, max_size=60))
def test_any_prices_give_a_part_of_the_bars(closes: list[float]) -> None:
    """Never an error, and never a bar that was not given."""
    assert set(positions(series(closes))) <= set(range(len(closes)))
