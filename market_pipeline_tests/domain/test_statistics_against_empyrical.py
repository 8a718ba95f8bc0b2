"""The statistics of two real series equal empyrical-reloaded's to 1e-12.

BTC-USD: daily index of TradingView, 2009 to 2026. SPX: daily bars of 1999 to 2018 from the data
sets of the arch package. Both are recorded under ``recordings/series``.
"""

from functools import cache
from pathlib import Path
from typing import Any

import empyrical
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from market_pipeline.domain.comparisons import compute_comparisons
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.returns import compute_period_rate
from market_pipeline.domain.roi import compute_roi_statistics
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.domain.volatility import compute_snapshot_statistics

SERIES = Path(__file__).parents[1] / "recordings" / "series"
FILES = {"BTC-USD": ("24/7", "date", "close"), "SPX": ("XNYS", "Date", "Close")}
FACTORS = {"BTC-USD": 365.0, "SPX": 252.0}
HORIZONS = [30, 90, 365, 1825]
# Horizons without a hole: BTC-USD misses a week in June 2011 and a day in June 2013.
CASES = [
    ("BTC-USD", "2013-12-18", [30, 90]),
    ("BTC-USD", "2017-12-29", [30, 90, 365]),
    ("BTC-USD", "2022-11-21", HORIZONS),
    ("BTC-USD", "2026-03-06", HORIZONS),
    ("SPX", "2001-10-31", [30, 90, 365]),
    ("SPX", "2008-11-20", HORIZONS),
    ("SPX", "2011-09-30", HORIZONS),
    ("SPX", "2018-12-24", HORIZONS),
]
RISK_FREE, MAR = 0.03, 0.05


@cache
def read_bars(symbol: str) -> pd.DataFrame:
    """Read a recorded series as final daily bars."""
    calendar, date, close = FILES[symbol]
    recorded = pd.read_csv(SERIES / f"{symbol}.csv")
    dates = pd.DatetimeIndex(pd.to_datetime(recorded[date], utc=True)).as_unit("us")
    sessions = read_sessions(calendar, dates[0], dates[-1] + pd.Timedelta(days=1))
    closed_at = sessions.set_index("session_date")["close_time"].reindex(dates)
    fields = {"open_time": dates, "close_time": closed_at.array, "close": recorded[close]}
    return pd.DataFrame({"market_id": list(FILES).index(symbol), **fields})


def cut(symbol: str, end: str) -> pd.DataFrame:
    """Read the bars up to a date."""
    bars = read_bars(symbol)
    return bars[bars["open_time"] <= pd.Timestamp(end, tz="UTC")]


@cache
def compute(symbol: str, end: str) -> pd.DataFrame:
    """Compute all horizons of one series up to a date, by horizon."""
    bars = cut(symbol, end)
    calendars = {int(bars["market_id"].iloc[0]): FILES[symbol][0]}
    table = compute_roi_statistics(bars, calendars, Interval.DAY, HORIZONS, RISK_FREE, MAR)
    return table.set_index("horizon")


def find_returns(symbol: str, end: str, days: int) -> npt.NDArray[np.float64]:
    """Take the simple returns of a horizon the plain way, from the base close on."""
    bars = cut(symbol, end)
    base_date = bars["open_time"].iloc[-1] - pd.Timedelta(days=days)
    n_before = int((bars["open_time"] <= base_date).sum())
    closes = bars["close"].to_numpy()[n_before - 1 :]
    return np.asarray(closes[1:] / closes[:-1] - 1)


def compute_reference(returns: npt.NDArray[np.float64], factor: float) -> dict[str, float]:
    """Ask empyrical-reloaded for every measure it has."""
    rf, mar = compute_period_rate(RISK_FREE, factor), compute_period_rate(MAR, factor)
    options: dict[str, Any] = {"annualization": factor}
    return {
        "roi": empyrical.cum_returns_final(returns),
        "annualised_return": empyrical.annual_return(returns, **options),
        "annualised_volatility": empyrical.annual_volatility(returns, **options),
        "realised_volatility": empyrical.annual_volatility(np.log1p(returns), **options),
        "sharpe": empyrical.sharpe_ratio(returns, risk_free=rf, **options),
        "sortino": empyrical.sortino_ratio(returns, required_return=mar, **options),
        "max_drawdown": empyrical.max_drawdown(returns),
        "calmar": empyrical.calmar_ratio(returns, **options),
    }


@pytest.mark.parametrize(("symbol", "end", "horizons"), CASES)
def test_statistics_equal_empyrical(symbol: str, end: str, horizons: list[int]) -> None:
    """Every measure of every horizon agrees, in a crash, in a calm and in a boom."""
    for days in horizons:
        row = compute(symbol, end).loc[f"{days}d"]
        returns = find_returns(symbol, end, days)
        assert (row["n_returns"], row["n_missing"]) == (len(returns), 0)
        for measure, expected in compute_reference(returns, FACTORS[symbol]).items():
            assert row[measure] == pytest.approx(expected, rel=1e-12, abs=1e-12), (days, measure)


def test_over_a_real_hole_the_ratios_equal_empyrical_without_the_spanning_return() -> None:
    """BTC-USD misses a week of June 2011, which leaves one return of 358 out of the ratios."""
    row = compute("BTC-USD", "2011-09-30").loc["365d"]
    returns = find_returns("BTC-USD", "2011-09-30", 365)
    dates = cut("BTC-USD", "2011-09-30")["open_time"].iloc[-len(returns) :]
    spans_hole = (dates == pd.Timestamp("2011-06-27", tz="UTC")).to_numpy()
    adjacent = compute_reference(returns[~spans_hole], 365.0)
    whole = compute_reference(returns, 365.0)
    assert (row["n_returns"], row["n_missing"]) == (357, 1)
    for measure in ("sharpe", "sortino", "annualised_volatility", "realised_volatility"):
        assert row[measure] == pytest.approx(adjacent[measure], rel=1e-12)
    for measure in ("roi", "max_drawdown"):
        assert row[measure] == pytest.approx(whole[measure], rel=1e-12)
    # A year is 365 days, however many bars of it are missing.
    assert row["annualised_return"] == pytest.approx(row["roi"], rel=1e-12)


def test_snapshot_volatility_is_that_of_the_statistics() -> None:
    """The live row and the table say the same about the same 30 days."""
    bars = cut("BTC-USD", "2017-12-29")
    price = float(bars["close"].iloc[-1])
    snapshot = compute_snapshot_statistics(bars, {0: "24/7"}, pd.Series([price], index=[0]))
    row = compute("BTC-USD", "2017-12-29").loc["30d"]
    assert snapshot["realised_volatility"][0] == row["realised_volatility"]
    assert snapshot["roi"][0] == row["roi"]
    assert snapshot["bars_as_of"][0] == row["as_of"]


def test_correlation_of_bitcoin_and_the_index_agrees_with_pandas() -> None:
    """A year of joined sessions, joined before returns are taken, correlates as pandas says."""
    one, two = cut("BTC-USD", "2017-12-28"), cut("SPX", "2017-12-28")
    markets = pd.DataFrame({"market_id": [0, 1], "quote": "USD", "calendar": ["24/7", "XNYS"]})
    table = compute_comparisons(pd.concat([one, two]), markets, Interval.DAY, [365])
    closes = [bars.set_index("open_time")["close"].rename(n) for n, bars in enumerate((one, two))]
    joined = pd.concat(closes, axis=1, join="inner").loc["2016-12-28":]  # type: ignore[misc]
    returns = joined.pct_change().iloc[1:]
    assert table["n_returns"][0] == len(returns) == 252
    assert table["correlation"][0] == pytest.approx(returns[0].corr(returns[1]), rel=1e-12)
    assert table["close_skew_seconds"][0] == 3 * 3600
