"""Statistics of a thousand markets: beside empyrical one by one, and beside bare NumPy."""

import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.bench import Bench, Measurement
from benchmarks.figures import Figure
from benchmarks.rounds import Way, compare
from market_pipeline.domain.comparisons import compute_comparisons
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.roi import compute_roi_statistics

MARKETS, DAYS = 1_000, 365
HORIZONS_DAYS = (7, 30, 90, 180, 365)
_FACTOR = 365.0
_TOLERANCE = 1e-9
_WORK = f"{MARKETS} markets x {DAYS} days x {len(HORIZONS_DAYS)} horizons, the same rows"
_NOTES = {
    "empyrical": f"{_WORK}; returns as plain arrays, empyrical's fastest input",
    "empyrical_series": f"{_WORK}; returns as Series with their times",
}

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]


class Year:
    """A year of daily bars of many markets, as a long frame and as matrices."""

    def __init__(self, markets: int = MARKETS, days: int = DAYS) -> None:
        draws = np.random.default_rng(7)
        self.closes: Floats = 100 * np.exp(np.cumsum(draws.normal(0, 0.03, (markets, days + 1)), 1))
        self.volumes: Floats = draws.lognormal(10, 1, (markets, days + 1))
        self.market_ids = np.arange(1, markets + 1)

    @cached_property
    def bars(self) -> pd.DataFrame:
        """The bars, market after market."""
        markets, closes = self.closes.shape
        opens = pd.date_range("2024-01-01", periods=closes, freq="D", tz="UTC", unit="us")
        open_time = pd.DatetimeIndex(np.tile(opens.asi8, markets).astype("M8[us]")).tz_localize(
            "UTC"
        )
        return pd.DataFrame(
            {
                "market_id": np.repeat(self.market_ids, closes),
                "open_time": open_time,
                "close_time": open_time + pd.Timedelta(days=1),
                "close": self.closes.ravel(),
                "volume": self.volumes.ravel(),
            }
        )

    @cached_property
    def markets(self) -> pd.DataFrame:
        """The markets, as comparisons take them."""
        return pd.DataFrame({"market_id": self.market_ids, "quote": "USD", "calendar": ALWAYS_OPEN})


def measure_roi(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield how many times longer an empyrical loop takes for the same rows."""
    year = Year()
    calendars = dict.fromkeys(year.market_ids.tolist(), ALWAYS_OPEN)

    def compute_ours() -> pd.DataFrame:
        return compute_roi_statistics(year.bars, calendars, Interval.DAY, HORIZONS_DAYS)

    _refuse_difference(compute_ours(), loop_empyrical(year.bars))
    loops = {
        "empyrical": lambda: loop_empyrical(year.bars),
        "empyrical_series": lambda: loop_empyrical_series(year.bars),
    }
    needed = [Way(name, loop) for name, loop in loops.items() if f"{name}_vs_ours" in wanted]
    comparison = compare([Way("ours", compute_ours), *needed], bench.rounds, bench.report)
    for way in needed:
        yield comparison.build_ratio(f"{way.name}_vs_ours", way.name, "ours", _NOTES[way.name])


def loop_empyrical(bars: pd.DataFrame) -> pd.DataFrame:
    """Compute the same measures market by market, on plain arrays, empyrical's fastest input."""
    rows: list[Row] = []
    for market_id, closes in bars.groupby("market_id")["close"]:
        prices = closes.to_numpy()
        returns = prices[1:] / prices[:-1] - 1
        for days in HORIZONS_DAYS:
            measures = _ask_empyrical(returns[-days:])
            rows.append({"market_id": market_id, "horizon": f"{days}d", **measures})
    return pd.DataFrame(rows)


def loop_empyrical_series(bars: pd.DataFrame) -> pd.DataFrame:
    """Compute the same measures from Series with their times, as pandas hands them out."""
    rows: list[Row] = []
    for market_id, closes in bars.set_index("open_time").groupby("market_id")["close"]:
        returns = closes.pct_change().iloc[1:]
        for days in HORIZONS_DAYS:
            measures = _ask_empyrical(returns.iloc[-days:])
            rows.append({"market_id": market_id, "horizon": f"{days}d", **measures})
    return pd.DataFrame(rows)


def _ask_empyrical(returns: "Floats | pd.Series[float]") -> Mapping[str, float]:
    import empyrical

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "roi": empyrical.cum_returns_final(returns),
            "annualised_return": empyrical.annual_return(returns, annualization=_FACTOR),
            "annualised_volatility": empyrical.annual_volatility(returns, annualization=_FACTOR),
            "realised_volatility": empyrical.annual_volatility(
                np.log1p(returns), annualization=_FACTOR
            ),
            "sharpe": empyrical.sharpe_ratio(returns, annualization=_FACTOR),
            "sortino": empyrical.sortino_ratio(returns, annualization=_FACTOR),
            "max_drawdown": empyrical.max_drawdown(returns),
            "calmar": empyrical.calmar_ratio(returns, annualization=_FACTOR),
        }


def _refuse_difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    """Make sure that both ways compute the same; annualised ones are ours from 30 days on only."""
    keys = ["market_id", "horizon"]
    joined = ours.merge(theirs, on=keys, suffixes=("", "_theirs"), validate="1:1")
    if len(joined) != len(theirs):
        raise RuntimeError(f"{len(joined)} of {len(theirs)} rows have a counterpart")
    for name in [name for name in theirs.columns if name not in keys]:
        known = joined[joined[name].notna()]
        if not np.allclose(known[name], known[f"{name}_theirs"], rtol=_TOLERANCE, atol=_TOLERANCE):
            raise RuntimeError(f"{name} differs from empyrical's")


def measure_pairs(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield how many times longer all pairs take from the long frame than from the matrix."""
    del wanted
    year = Year()

    def compare_ours() -> pd.DataFrame:
        return compute_comparisons(year.bars, year.markets, Interval.DAY, [DAYS])

    ours, bare = compare_ours(), compare_by_numpy(year.closes, year.volumes)
    for name, values in bare.items():
        if not np.allclose(ours[name], values, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise RuntimeError(f"{name} differs from NumPy's")
    ways = [
        Way("ours", compare_ours),
        Way("numpy", lambda: compare_by_numpy(year.closes, year.volumes)),
    ]
    comparison = compare(ways, bench.rounds, bench.report)
    note = f"{len(ours):,} pairs, {DAYS} returns; ours from the long frame, with as_of and reasons"
    yield comparison.build_ratio("pairs_1000_seconds_vs_numpy", "ours", "numpy", note)


def compare_by_numpy(closes: Floats, volumes: Floats) -> dict[str, Floats]:
    """Compare every two rows with nothing but NumPy: no calendar, no hole, no reason."""
    base, quote = np.triu_indices(len(closes), 1)
    correlation = np.asarray(np.corrcoef(closes[:, 1:] / closes[:, :-1] - 1))
    roi, traded = closes[:, -1] / closes[:, 0] - 1, volumes[:, 1:].sum(axis=1)
    return {
        "price_ratio": closes[base, -1] / closes[quote, -1],
        "volume_ratio": traded[base] / traded[quote],
        "roi_spread": roi[base] - roi[quote],
        "correlation": correlation[base, quote],
    }


ROI = Measurement(
    "ROI statistics",
    tuple(f"{way}_vs_ours" for way in _NOTES),
    measure_roi,
    needs={f"{way}_vs_ours": ("empyrical",) for way in _NOTES},
)
PAIRS = Measurement("all pairs", ("pairs_1000_seconds_vs_numpy",), measure_pairs)
