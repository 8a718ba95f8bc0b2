"""Prices and volumes of the mock provider: pure functions of seed, symbol and moment.

Daily log prices follow a random walk that is pulled back to the symbol's level, with volatility
that clusters and fat tails; inside each session a bridge leads from the last close to the next in
steps of ten minutes. Not here: bars as a provider answers them (``mock.py``).
"""

import hashlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.arrays import FloatArray
from market_pipeline.domain.intervals import ALWAYS_OPEN
from market_pipeline.domain.symbols import describe_symbol

Integers = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]

_ORIGIN = pd.Timestamp("1985-01-01", tz="UTC")
LEVELS = {"BTC-USD": 55_000.0, "ETH-USD": 3_000.0, "SPX": 5_000.0, "NDX": 18_000.0, "DJI": 39_000.0}
STEP_SECONDS = 600
STEPS_PER_HOUR = 6
PULL_PER_DAY = 1 / 100
DIGITS = 7


def _count_seconds(times: "pd.Series[pd.Timestamp]") -> FloatArray:
    return np.asarray(times.astype("int64"), dtype=np.float64) / 1e6


def build_paths(seed: int, symbol: str, sessions: pd.DataFrame, now: datetime) -> FloatArray:
    """Return prices every ten minutes: one row per session of equal length, from open to close.

    After ``now`` a row repeats the price at ``now``: what has not happened is not in any bar.
    """
    is_always_open = describe_symbol(symbol).calendar == ALWAYS_OPEN
    walk = _build_walk(seed, symbol, is_always_open, now.year // 10 * 10 + 10)
    days = np.asarray((sessions["session_date"] - _ORIGIN).dt.days, dtype=np.int64)
    opens, closes = _count_seconds(sessions["open_time"]), _count_seconds(sessions["close_time"])
    steps = math.ceil((closes[0] - opens[0]) / STEP_SECONDS)
    sigma = walk.volatility[days][:, None]
    gap = 0.0 if is_always_open else 0.3 * sigma * _draw_normals(seed, symbol, "gap", days[:, None])
    first, last = walk.log_close[days - 1][:, None] + gap, walk.log_close[days][:, None]
    progress = np.arange(steps + 1) / steps
    bridge = _build_bridges(seed, symbol, days, steps)
    paths = np.exp(first + (last - first) * progress + 0.8 * sigma * bridge)
    _freeze(paths, (now.timestamp() - opens) / STEP_SECONDS)
    return np.asarray(np.round(paths, _count_decimals(symbol)), dtype=np.float64)


def _freeze(paths: FloatArray, positions: FloatArray) -> None:
    """Repeat the price at a fractional position to the end of each row that is longer."""
    for row in np.flatnonzero(positions < paths.shape[1] - 1):
        whole = int(positions[row])
        share = positions[row] - whole
        price = paths[row, whole] + share * (paths[row, whole + 1] - paths[row, whole])
        paths[row, whole + 1 :] = price


def _build_bridges(seed: int, symbol: str, days: Integers, steps: int) -> FloatArray:
    """Return walks of unit variance that begin and end at zero, one row per day."""
    counters = days[:, None] * 256 + np.arange(steps)
    walks = np.cumsum(_draw_normals(seed, symbol, "steps", counters), axis=1) / math.sqrt(steps)
    walks -= walks[:, -1:] * (np.arange(1, steps + 1) / steps)
    return np.hstack([np.zeros((len(days), 1)), walks])


@dataclass(frozen=True, slots=True)
class _Walk:
    """Daily log closes and volatilities, indexed by days since the origin."""

    log_close: FloatArray
    volatility: FloatArray


@lru_cache(maxsize=128)
def _build_walk(seed: int, symbol: str, is_always_open: bool, end_year: int) -> _Walk:
    dates = pd.date_range(_ORIGIN, pd.Timestamp(end_year + 1, 1, 1, tz="UTC"), freq="D")
    days = np.arange(len(dates), dtype=np.int64)
    mood = _pull_back(_draw_normals(seed, symbol, "mood", days), 1 / 30)
    volatility = (0.022 if is_always_open else 0.009) * np.exp(0.45 * mood * math.sqrt(2 / 30))
    shocks = _draw_normals(seed, symbol, "shock", days)
    shocks *= volatility * np.exp(0.35 * _draw_normals(seed, symbol, "tail", days))
    if not is_always_open:
        shocks[np.asarray(dates.day_of_week) >= 5] *= 0.2
    log_close = math.log(find_level(seed, symbol)) + _pull_back(shocks, PULL_PER_DAY)
    return _Walk(log_close, volatility)


def _pull_back(shocks: FloatArray, pull: float) -> FloatArray:
    """Return the walk ``y[t] = (1 - pull) * y[t-1] + shocks[t]``, beginning at zero."""
    scaled = shocks / pull
    scaled[0] = 0.0
    return np.asarray(pd.Series(scaled).ewm(alpha=pull, adjust=False).mean(), dtype=np.float64)


def find_level(seed: int, symbol: str) -> float:
    """Return the price that a symbol's walk is pulled back to."""
    if symbol in LEVELS:
        return LEVELS[symbol]
    return float(10 ** (1.5 + 0.5 * _draw_normals(seed, symbol, "level", np.zeros(1, np.int64))[0]))


def _count_decimals(symbol: str) -> int:
    level = LEVELS.get(symbol, 1.0)
    return max(2, DIGITS - 1 - math.floor(math.log10(level)))


def _draw_normals(seed: int, symbol: str, stream: str, counters: Integers) -> FloatArray:
    """Return nearly normal numbers, each a function of seed, symbol, stream and counter alone.

    SplitMix64 of the counter gives four 16-bit lanes; their sum is close to normal (within 3.46
    standard deviations). Integer arithmetic up to there makes it the same on every machine.
    """
    digest = hashlib.blake2b(f"{seed}|{symbol}|{stream}".encode(), digest_size=8).digest()
    mixed = np.ascontiguousarray(counters, dtype=np.int64).astype(np.uint64)
    mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + np.uint64(int.from_bytes(digest, "little"))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    lanes = mixed.view(np.uint16).reshape(*counters.shape, 4)
    total = lanes.sum(axis=-1, dtype=np.int64)
    return np.asarray((total - 131_070) / (65_536 / math.sqrt(3)), dtype=np.float64)


def build_hourly(
    sessions: pd.DataFrame, paths: FloatArray, volumes: FloatArray, now: datetime
) -> Columns:
    """Return the columns of the hourly bars that have begun by ``now``."""
    starts, ends = _find_hour_edges(paths.shape[1] - 1)
    hours = np.arange(len(starts)) * np.timedelta64(3600, "s")
    opens = np.asarray(sessions["open_time"].dt.tz_localize(None), "M8[us]")[:, None] + hours
    session_closes = np.asarray(sessions["close_time"].dt.tz_localize(None), "M8[us]")[:, None]
    closes = np.minimum(opens + np.timedelta64(3600, "s"), session_closes)
    edges = list(zip(starts, ends, strict=True))
    columns: Columns = {
        "open": paths[:, starts],
        "high": np.stack([paths[:, a : b + 1].max(axis=1) for a, b in edges], axis=1),
        "low": np.stack([paths[:, a : b + 1].min(axis=1) for a, b in edges], axis=1),
        "close": paths[:, ends],
        "volume": volumes,
        "open_time": opens,
        "close_time": closes,
    }
    has_begun = (opens < np.datetime64(now.astimezone(UTC).replace(tzinfo=None))).ravel()
    return {name: np.asarray(values).ravel()[has_begun] for name, values in columns.items()}


def _find_hour_edges(steps: int) -> tuple[Integers, Integers]:
    starts = np.arange(0, steps, STEPS_PER_HOUR)
    return starts, np.minimum(starts + STEPS_PER_HOUR, steps)


def build_daily(
    sessions: pd.DataFrame, paths: FloatArray, volumes: FloatArray, _now: datetime
) -> Columns:
    """Return the columns of the daily bars: what the hours of each session add up to."""
    return {
        "open": paths[:, 0],
        "high": paths.max(axis=1),
        "low": paths.min(axis=1),
        "close": paths[:, -1],
        "volume": volumes.sum(axis=1),
        "open_time": np.asarray(sessions["session_date"].dt.tz_localize(None), "M8[us]"),
        "close_time": np.asarray(sessions["close_time"].dt.tz_localize(None), "M8[us]"),
    }


def build_volumes(seed: int, symbol: str, sessions: pd.DataFrame, now: datetime) -> FloatArray:
    """Return whole units traded in each hour, up to ``now``; busier at both ends of a session."""
    opens, closes = _count_seconds(sessions["open_time"]), _count_seconds(sessions["close_time"])
    hours = np.arange(math.ceil((closes[0] - opens[0]) / 3600))
    days = np.asarray((sessions["session_date"] - _ORIGIN).dt.days, dtype=np.int64)
    noise = _draw_normals(seed, symbol, "volume", days[:, None] * 256 + hours)
    ends = np.abs(hours - hours.mean()) / max(hours.mean(), 1.0)
    typical = 3e9 / find_level(seed, symbol) if is_pair(symbol) else 5e8
    lengths = np.minimum(3600, closes[0] - opens[0] - hours * 3600)  # a session's last is short
    passed = np.clip((now.timestamp() - opens[:, None] - hours * 3600) / lengths, 0.0, 1.0)
    volumes = typical * (0.7 + 0.6 * ends**2) * np.exp(0.4 * noise) * passed
    return np.asarray(np.floor(volumes), dtype=np.float64)


def is_pair(symbol: str) -> bool:
    """Return whether a symbol trades around the clock."""
    return describe_symbol(symbol).calendar == ALWAYS_OPEN
