"""Realised volatility and the statistics of a live price."""

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from market_pipeline.domain.volatility import (
    SNAPSHOT_DTYPES,
    compute_realised_volatility,
    compute_snapshot_statistics,
)

FIRST = datetime(2024, 1, 1, tzinfo=UTC)
ZIGZAG = [100.0, 110.0] * 15 + [100.0]


def bars_of(closes: list[float], market_id: int = 1) -> pd.DataFrame:
    """Build one always-open daily bar for each close."""
    opens = pd.date_range(FIRST, periods=len(closes), freq="D", unit="us")
    spans = {"open_time": opens, "close_time": opens + pd.Timedelta(days=1)}
    return pd.DataFrame({"market_id": market_id, **spans, "close": np.array(closes, dtype=float)})


def compute(closes: list[float], price: float) -> dict[str, Any]:
    """Compute the one row of one market."""
    prices = pd.Series([price], index=[1])
    table = compute_snapshot_statistics(bars_of(closes), {1: "24/7"}, prices)
    return dict(table.to_dict("records")[0])


def test_realised_volatility_by_hand() -> None:
    """Log returns of +x and -x have a deviation of x sqrt 2; a year of four bars doubles it."""
    ratios = np.array([[2.0, 0.5], [math.e, np.nan]])
    with np.errstate(invalid="ignore"):
        volatility = compute_realised_volatility(ratios, 4.0)
    np.testing.assert_allclose(volatility, [2 * math.sqrt(2) * math.log(2), np.nan], rtol=1e-14)


def test_a_snapshot_has_the_volatility_of_final_bars_and_the_roi_to_its_price() -> None:
    """Thirty log returns of +x and -x; the price is a quarter above the base close."""
    row = compute(ZIGZAG, 125.0)
    deviation = math.log(1.1) * math.sqrt(30 / 29)
    assert row["realised_volatility"] == pytest.approx(deviation * math.sqrt(365), rel=1e-12)
    assert row["roi"] == 0.25
    assert row["bars_as_of"] == pd.Timestamp("2024-02-01", tz="UTC")
    assert pd.isna(row["reason"])


@pytest.mark.parametrize("price", [0.0, -1.0, math.nan, math.inf])
def test_a_price_that_is_none_leaves_only_the_roi_out(price: float) -> None:
    """The volatility of the stored bars does not depend on the live price."""
    row = compute(ZIGZAG, price)
    assert math.isnan(row["roi"])
    assert row["realised_volatility"] > 0
    assert row["reason"] == "price_not_positive"


def test_equal_closes_leave_only_the_volatility_out() -> None:
    """A price that never moved has no volatility, and its ROI is known."""
    row = compute([100.0] * 31, 101.0)
    assert math.isnan(row["realised_volatility"])
    assert row["roi"] == pytest.approx(0.01)
    assert row["reason"] == "zero_variance"


@pytest.mark.parametrize("closes", [ZIGZAG[:30], []])
def test_too_little_history_leaves_both_out(closes: list[float]) -> None:
    """Twenty-nine returns do not reach back 30 days, and no bars reach nowhere."""
    row = compute(closes, 100.0)
    assert math.isnan(row["roi"])
    assert math.isnan(row["realised_volatility"])
    assert row["reason"] == "insufficient_data"


def test_a_roi_beyond_a_double_has_a_reason() -> None:
    """Nothing infinite comes out."""
    row = compute([close * 1e-320 for close in ZIGZAG], 1e300)
    assert math.isnan(row["roi"])
    assert row["reason"] == "out_of_range"


def test_rows_follow_the_prices() -> None:
    """One row for each price, in its order, also for a market without bars."""
    prices = pd.Series([1.0, 2.0, 3.0], index=[7, 1, 9])
    calendars = {1: "24/7", 7: "24/7", 8: "24/7", 9: "XNYS"}
    table = compute_snapshot_statistics(bars_of(ZIGZAG), calendars, prices)
    assert table["market_id"].tolist() == [7, 1, 9]
    assert table["reason"].isna().tolist() == [False, True, False]
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == dict(SNAPSHOT_DTYPES)


def test_no_price_gives_no_row() -> None:
    """The empty table has its columns and dtypes."""
    table = compute_snapshot_statistics(bars_of([]), {}, pd.Series([], dtype=float))
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == dict(SNAPSHOT_DTYPES)
