"""Prices and volumes of the mock provider: pure functions of seed, symbol and moment.

Daily log prices follow a random walk that is pulled back to the symbol's level, with volatility
that clusters and fat tails; inside each session a bridge leads from the last close to the next in
steps of ten minutes. Not here: bars as a provider answers them (``mock.py``).
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.arrays import FloatArray, Micros
from market_pipeline.domain.grids import to_micros
from market_pipeline.domain.intervals import ALWAYS_OPEN
from market_pipeline.domain.sessions import SessionTimes
from market_pipeline.domain.symbols import describe_symbol

Integers = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]

_ORIGIN = 5_479
"""Days from 1970-01-01 to 1985-01-01."""
LEVELS = {"BTC-USD": 55_000.0, "ETH-USD": 3_000.0, "SPX": 5_000.0, "NDX": 18_000.0, "DJI": 39_000.0}
STEP_SECONDS = 600
STEPS_PER_HOUR = 6
PULL_PER_DAY = 1 / 100
DIGITS = 7
_HOUR = 3_600_000_000
_ORIGIN_WEEKDAY = 1
"""A Tuesday."""
_TWO_LANES = np.uint64(0x0000FFFF0000FFFF)
_BLOCK = 256
_FORGOTTEN = 24 * _BLOCK
"""After so many days a walk that began at zero is, to the last bit, one that began earlier."""


def split_by_length(sessions: SessionTimes) -> Iterator[SessionTimes]:
    """Yield the sessions of each length, oldest first within it."""
    lengths = sessions.closes - sessions.opens
    for length in sorted(set(lengths.tolist())):
        yield sessions.take(lengths == length)


def _count_seconds(times: Micros) -> FloatArray:
    return times / 1e6


def _count_days(sessions: SessionTimes) -> Integers:
    return np.asarray(sessions.dates // (24 * _HOUR) - _ORIGIN)


def build_paths(seed: int, symbol: str, sessions: SessionTimes, now: datetime) -> FloatArray:
    """Return prices every ten minutes: one row per session of equal length, from open to close.

    After ``now`` a row repeats the price at ``now``: what has not happened is not in any bar.
    """
    is_always_open = is_pair(symbol)
    days = _count_days(sessions)
    walk = _build_walk(seed, symbol, int(days[0] - 1) // _BLOCK, int(days[-1]) // _BLOCK)
    opens, closes = _count_seconds(sessions.opens), _count_seconds(sessions.closes)
    steps = math.ceil((closes[0] - opens[0]) / STEP_SECONDS)
    sigma = walk.volatility[days - walk.first_day][:, None]
    gap = 0.0 if is_always_open else 0.3 * sigma * _draw_normals(seed, symbol, "gap", days[:, None])
    log_close = walk.log_close[days - walk.first_day][:, None]
    first = walk.log_close[days - 1 - walk.first_day][:, None] + gap
    progress = np.arange(steps + 1) / steps
    bridge = _build_bridges(seed, symbol, days, steps)
    paths = np.exp(first + (log_close - first) * progress + 0.8 * sigma * bridge)
    _freeze(paths, (now.timestamp() - opens) / STEP_SECONDS)
    rounded: FloatArray = np.round(paths, _count_decimals(symbol))
    return rounded


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
    """Daily log closes and volatilities from a first day on, in days since the origin."""

    first_day: int
    log_close: FloatArray
    volatility: FloatArray


@lru_cache(maxsize=4096)  # A thousand markets, whose bars and prices are asked for in turn.
def _build_walk(seed: int, symbol: str, first_block: int, last_block: int) -> _Walk:
    """Return the walk of some blocks of days, without computing what went before for ever."""
    first_day = first_block * _BLOCK
    begins = max(0, first_day - _FORGOTTEN)
    days = np.arange(begins, (last_block + 1) * _BLOCK, dtype=np.int64)
    is_always_open = is_pair(symbol)
    mood = _pull_back(_draw_normals(seed, symbol, "mood", days), 1 / 30)
    volatility = (0.022 if is_always_open else 0.009) * np.exp(0.45 * mood * math.sqrt(2 / 30))
    shocks = _draw_normals(seed, symbol, "shock", days)
    shocks *= volatility * np.exp(0.35 * _draw_normals(seed, symbol, "tail", days))
    if not is_always_open:
        shocks[(days + _ORIGIN_WEEKDAY) % 7 >= 5] *= 0.2
    log_close = math.log(find_level(seed, symbol)) + _pull_back(shocks, PULL_PER_DAY)
    kept = slice(first_day - begins, None)
    return _Walk(first_day, log_close[kept].copy(), volatility[kept].copy())


def _pull_back(shocks: FloatArray, pull: float) -> FloatArray:
    """Return the walk ``y[t] = (1 - pull) * y[t-1] + shocks[t]``, beginning at zero."""
    scaled = shocks / pull
    scaled[0] = 0.0
    return pd.Series(scaled).ewm(alpha=pull, adjust=False).mean().to_numpy()


@lru_cache(maxsize=4096)
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
    mixed = counters.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed += np.uint64(int.from_bytes(digest, "little"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    pairs = (mixed & _TWO_LANES) + ((mixed >> np.uint64(16)) & _TWO_LANES)
    total = ((pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))).astype(np.int64)
    return (total - 131_070) / (65_536 / math.sqrt(3))


def build_hourly(
    sessions: SessionTimes, paths: FloatArray, volumes: FloatArray, now: datetime
) -> Columns:
    """Return the columns of the hourly bars that have begun by ``now``."""
    steps = paths.shape[1] - 1
    starts = np.arange(0, steps, STEPS_PER_HOUR)
    ends = np.minimum(starts + STEPS_PER_HOUR, steps)
    opens = sessions.opens[:, None] + np.arange(len(starts)) * _HOUR
    at_end = paths[:, ends]
    columns: Columns = {
        "open": paths[:, starts],
        "high": np.maximum(np.maximum.reduceat(paths, starts, axis=1), at_end),
        "low": np.minimum(np.minimum.reduceat(paths, starts, axis=1), at_end),
        "close": at_end,
        "volume": volumes,
        "open_time": opens,
        "close_time": np.minimum(opens + _HOUR, sessions.closes[:, None]),
    }
    has_begun = opens < to_micros(now)
    return {name: values[has_begun] for name, values in columns.items()}


def build_daily(
    sessions: SessionTimes, paths: FloatArray, volumes: FloatArray, _now: datetime
) -> Columns:
    """Return the columns of the daily bars: what the hours of each session add up to."""
    return {
        "open": paths[:, 0],
        "high": paths.max(axis=1),
        "low": paths.min(axis=1),
        "close": paths[:, -1],
        "volume": volumes.sum(axis=1),
        "open_time": sessions.dates,
        "close_time": sessions.closes,
    }


def build_volumes(seed: int, symbol: str, sessions: SessionTimes, now: datetime) -> FloatArray:
    """Return whole units traded in each hour, up to ``now``; busier at both ends of a session."""
    opens, closes = _count_seconds(sessions.opens), _count_seconds(sessions.closes)
    hours = np.arange(math.ceil((closes[0] - opens[0]) / 3600))
    days = _count_days(sessions)
    noise = _draw_normals(seed, symbol, "volume", days[:, None] * 256 + hours)
    ends = np.abs(hours - hours.mean()) / max(hours.mean(), 1.0)
    typical = 3e9 / find_level(seed, symbol) if is_pair(symbol) else 5e8
    lengths = np.minimum(3600, closes[0] - opens[0] - hours * 3600)  # a session's last is short
    passed = np.clip((now.timestamp() - opens[:, None] - hours * 3600) / lengths, 0.0, 1.0)
    volumes: FloatArray = np.floor(typical * (0.7 + 0.6 * ends**2) * np.exp(0.4 * noise) * passed)
    return volumes


@lru_cache(maxsize=4096)
def is_pair(symbol: str) -> bool:
    """Return whether a symbol trades around the clock."""
    return describe_symbol(symbol).calendar == ALWAYS_OPEN
