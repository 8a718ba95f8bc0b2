"""The bars that are written: hourly, made with NumPy, in the shape of the product's bar frame.

A random walk for each market. As in life, some markets have no volume and some no number of trades.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.records import BAR_DTYPES

MARKETS = 100
FIRST_OPEN = np.datetime64("2024-01-01T00:00:00", "us")
HOUR = np.timedelta64(3_600_000_000, "us")
CHANGED_SHARE = 0.01
_KINDS = np.array(["base", "quote", "shares", "none"])
_NO_VOLUME = 3
_SEED = 20_240_101

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Span:
    """Hours ``[first, last)`` since 2024-01-01 00:00 UTC, of each market."""

    first: int
    last: int


def build_bars(span: Span, markets: int = MARKETS) -> pd.DataFrame:
    """Return ``market_id`` and the columns of a bar frame, sorted by market and open_time.

    The bar of a market and hour has the same values in every span.
    """
    count = span.last - span.first
    market_ids = np.repeat(np.arange(1, markets + 1), count)
    opens = FIRST_OPEN + np.arange(span.first, span.last) * HOUR
    open_time = pd.DatetimeIndex(np.tile(opens, markets)).tz_localize("UTC")
    kinds = _KINDS[market_ids % len(_KINDS)]
    columns: Mapping[str, Any] = {
        "interval": "1h",
        "open_time": open_time,
        "close_time": open_time + pd.Timedelta(hours=1),
        **_build_prices(span, markets),
        "volume_kind": kinds,
        "source_kind": np.where(market_ids % 5 == 0, "points", "traded"),
        "is_final": True,
    }
    frame = pd.DataFrame({"market_id": market_ids, **columns})
    frame.loc[kinds == _KINDS[_NO_VOLUME], "volume"] = np.nan
    frame.loc[market_ids % 2 == 0, "trades"] = np.nan
    return frame[["market_id", *BAR_DTYPES]].astype(dict(BAR_DTYPES))


def _build_prices(span: Span, markets: int) -> dict[str, Floats]:
    """Return OHLC, volume and trades; drawn from the first hour on, so that spans agree."""
    draws = np.random.default_rng(_SEED)
    columns: dict[str, list[Floats]] = {name: [] for name in _PRICE_COLUMNS}
    for _ in range(markets):
        for name, values in _build_market(draws.spawn(1)[0], span.last).items():
            columns[name].append(values[span.first :])
    return {name: np.concatenate(parts) for name, parts in columns.items()}


_PRICE_COLUMNS = ("open", "high", "low", "close", "volume", "trades")


def _build_market(draws: np.random.Generator, hours: int) -> dict[str, Floats]:
    steps = draws.normal(0.0, 0.005, (hours, 5))
    close = 100.0 * np.exp(np.cumsum(steps[:, 0]))
    opened = np.concatenate(([100.0], close[:-1]))
    high = np.maximum(opened, close) * np.exp(np.abs(steps[:, 1]))
    low = np.minimum(opened, close) * np.exp(-np.abs(steps[:, 2]))
    volume = np.floor(1_000.0 * np.exp(100 * steps[:, 3]))
    trades = np.floor(1_000.0 * np.exp(100 * steps[:, 4]))
    values = (opened, high, low, close, volume, trades)
    return dict(zip(_PRICE_COLUMNS, values, strict=True))


def change_some(bars: pd.DataFrame, share: float = CHANGED_SHARE) -> pd.DataFrame:
    """Return the bars with another close in a share of the rows, spread evenly."""
    rows = np.arange(0, len(bars), max(int(1 / share), 1))
    low, high = bars["low"].to_numpy()[rows], bars["high"].to_numpy()[rows]
    close = bars["close"].to_numpy(copy=True)
    close[rows] = low + 0.371 * (high - low)
    return bars.assign(close=close)
