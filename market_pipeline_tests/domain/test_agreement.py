"""Two series of one symbol: what agrees is quiet, and each kind of wrong data is told apart."""

import json
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from market_pipeline.domain.agreement import (
    NEVER_CLOSES,
    SESSIONS,
    Series,
    compare_series,
    find_threshold,
)
from market_pipeline_tests.commands import ROOT

RECORDINGS = ROOT / "market_pipeline_tests/recordings"
FIRST = datetime(2024, 1, 1, tzinfo=UTC)
DAY = 86_400_000_000
Floats = npt.NDArray[np.float64]


def walk(count: int = 200, seed: int = 1, size: float = 0.02) -> Floats:
    """Return the closes of a random walk from 100."""
    steps = np.random.default_rng(seed).normal(0, size, count)
    return np.asarray(100 * np.exp(np.cumsum(steps)))


def place(closes: npt.ArrayLike, first: int = 0) -> Series:
    """Return closes as days, some days after the first."""
    values = np.asarray(closes, dtype="float64")
    start = int(FIRST.timestamp()) * 1_000_000 + first * DAY
    return Series(start + DAY * np.arange(len(values)), values)


def blur(closes: Floats, size: float = 0.0005) -> Floats:
    """Return closes as another venue has them: some 5 bp away."""
    return closes * np.exp(np.random.default_rng(2).normal(0, size, len(closes)))


def read_hint(one: Floats, other: Floats) -> str:
    """Return the cause of a difference between two markets that never close."""
    agreement = compare_series(place(one), place(other), NEVER_CLOSES)
    assert agreement.verdict == "differ"
    assert agreement.hint is not None
    return agreement.hint


def read_closes(name: str, date: str, close: str) -> Series:
    """Return the closes of a recorded file that have a value."""
    rows = pd.read_csv(RECORDINGS / name)[[date, close]].dropna()
    opens = pd.DatetimeIndex(pd.to_datetime(rows[date])).as_unit("us")
    return Series(opens.asi8, rows[close].to_numpy(dtype="float64"))


def build_series(rows: Floats) -> Series:
    """Return rows of microseconds and close."""
    return Series(rows[:, 0].astype(np.int64), rows[:, 1])


def read_index() -> Series:
    """Return the recorded closes of Bitcoin on an index."""
    rows = pd.read_csv(RECORDINGS / "series/BTC-USD.csv")[["start_epoch_s", "close"]]
    return build_series(rows.to_numpy(dtype="float64") * [1_000_000, 1])


def test_recorded_closes_of_spx_are_equal() -> None:
    """Yahoo's and FRED's on every day of nearly three years; two days are 0.01 and 0.04 apart."""
    yahoo = read_closes("series/SPX.csv", "Date", "Close")
    name = "fred/fredgraph_sp500_2016-02-12_2026-02-11.csv"
    agreement = compare_series(yahoo, read_closes(name, "observation_date", "SP500"), SESSIONS)
    assert (agreement.verdict, agreement.hint) == ("agree", None)
    assert (agreement.bars, agreement.missing, agreement.other_missing) == (726, 0, 0)
    assert agreement.largest_bp == pytest.approx(0.146, abs=0.001)
    apart = [abs(bar.close - bar.other_close) for bar in agreement.worst]
    assert apart == pytest.approx([0.04, 0.01, 0, 0, 0], abs=0.001)


def test_recorded_closes_of_bitcoin_agree() -> None:
    """A year of an index and of an exchange, whose dollar is another: three per cent at worst."""
    klines = json.loads((RECORDINGS / "binance/klines_btcusdt_1d_2019.json").read_text())
    closes = np.array([(line[0] * 1_000, float(line[4])) for line in klines])
    agreement = compare_series(read_index(), build_series(closes), NEVER_CLOSES)
    assert (agreement.verdict, agreement.bars, agreement.missing) == ("agree", 365, 0)
    assert agreement.median_bp == pytest.approx(22.6, abs=0.1)
    assert agreement.largest_bp == pytest.approx(314.6, abs=0.1)


def test_recorded_points_under_the_wrong_day_are_a_shift() -> None:
    """Noise of 50 bp, as there was in 2014, does not hide it."""
    name = "coingecko/market_chart_range_btc_daily_2014.json"
    points = np.array(json.loads((RECORDINGS / name).read_text())["prices"])
    early = build_series(points * [1_000, 1] - [DAY, 0])
    hint = compare_series(read_index(), early, NEVER_CLOSES).hint
    assert hint is not None
    assert "one bar earlier: its times may be shifted" in hint


def test_figures_are_those_worked_out_by_hand() -> None:
    """Counts begin at the later first bar and end at the earlier last one."""
    one = Series(DAY * np.array([0, 1, 2, 3, 5]), np.array([1.0, 100.0, 200.0, 50.0, 80.0]))
    other = Series(DAY * np.array([1, 2, 4, 5, 6]), np.array([101.0, 200.0, 70.0, 80.04, 9.0]))
    agreement = compare_series(one, other, NEVER_CLOSES)
    assert (agreement.bars, agreement.missing, agreement.other_missing) == (3, 1, 1)
    assert agreement.median_bp == pytest.approx(5)
    assert agreement.largest_bp == pytest.approx(100)
    assert agreement.verdict == "agree"
    shown = [(bar.open_time.day, bar.close, bar.other_close) for bar in agreement.worst]
    assert shown == [(2, 100.0, 101.0), (6, 80.0, 80.04)]


def test_two_venues_are_quiet() -> None:
    """Five basis points between last trades are usual."""
    closes = walk()
    agreement = compare_series(place(closes), place(blur(closes)), NEVER_CLOSES)
    assert (agreement.verdict, agreement.hint) == ("agree", None)
    assert len(agreement.worst) == 5


def test_sessions_must_agree_more_closely() -> None:
    """An exchange publishes one close; a pair of both kinds is judged as the wider one."""
    closes = walk()
    assert compare_series(place(closes), place(closes * 1.001), SESSIONS).verdict == "differ"
    assert compare_series(place(closes), place(closes * 1.001), NEVER_CLOSES).verdict == "agree"
    assert find_threshold("XNYS", "XNYS") == SESSIONS
    assert find_threshold("XNYS", "24/7") == NEVER_CLOSES


@pytest.mark.parametrize("power", [0.01, 10.0, 100.0, 1000.0])
def test_a_unit_error_is_named(power: float) -> None:
    """Cents for dollars, pence for pounds."""
    closes = walk()
    assert f"the first is {1 / power:g} times the second" in read_hint(closes, blur(closes * power))


def test_a_unit_that_changed_is_dated() -> None:
    """A hundredfold from a date on is no split."""
    closes = walk()
    changed = np.where(np.arange(200) < 150, closes, closes * 100)
    assert "from 2024-05-30 on" in read_hint(changed, closes)
    assert "unit" in read_hint(changed, closes)


@pytest.mark.parametrize("bars", [1, -1])
def test_a_shift_by_one_bar_is_named(bars: int) -> None:
    """Closes that agree when moved, in either direction."""
    closes = walk()
    hint = read_hint(blur(closes), np.roll(closes, bars))
    assert f"one bar {'later' if bars == 1 else 'earlier'}" in hint


@pytest.mark.parametrize("ratio", [2.0, 4.0, 10.0, 1.5, 0.05])
def test_an_unadjusted_split_is_dated(ratio: float) -> None:
    """Before its day one series has other prices by the split's ratio."""
    closes = walk()
    unadjusted = np.where(np.arange(200) < 60, closes * ratio, closes)
    hint = read_hint(blur(closes), unadjusted)
    assert "from 2024-03-01 on" in hint
    assert f"{ratio:.2g}"[:3] in hint
    assert "split" in hint


def test_a_split_after_the_bars_is_named() -> None:
    """Then all bars have the ratio."""
    closes = walk()
    assert "adjustment for a split" in read_hint(closes, blur(closes / 4))


def test_a_wrong_instrument_is_named() -> None:
    """Nothing but the symbol is common."""
    assert "another instrument" in read_hint(walk(seed=1), 1.7 * walk(seed=3))


def test_a_single_wrong_close_is_counted() -> None:
    """It is no split, though it lies a split's ratio away, and both values are told."""
    closes = walk()
    wrong = closes.copy()
    wrong[77] /= 2
    agreement = compare_series(place(closes), place(wrong), NEVER_CLOSES)
    assert agreement.hint == "1 of 200 bars differ: single closes of one may be wrong"
    assert (agreement.worst[0].close, agreement.worst[0].other_close) == (closes[77], wrong[77])
    assert len(agreement.worst) == 1


@pytest.mark.parametrize("closes", [[], [1.0, 2.0]])
def test_series_without_bars_in_common_are_not_judged(closes: list[float]) -> None:
    """Empty ones, and spans that do not meet."""
    agreement = compare_series(place(closes), place(walk(), first=9), SESSIONS)
    assert (agreement.verdict, agreement.median_bp, agreement.bars) == (
        "nothing_in_common",
        None,
        0,
    )
    assert (agreement.bars, agreement.missing, agreement.other_missing) == (0, 0, 0)


def test_one_bar_is_enough_to_differ() -> None:
    """Too little to tell a cause from."""
    assert read_hint(np.array([1.0]), np.array([1.3])).startswith("nearly every bar differs")
