"""Freshness of a market on a page, from ``domain.freshness`` with a clock that is late.

Runs come about every quarter of an hour, and a page is read at any time. So a market is behind only
when a bar that was due some hours ago is missing.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from sqlalchemy import Connection

from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.freshness import TrackedSeries, find_delay
from market_pipeline.domain.intervals import Interval
from market_pipeline.ingestion.freshness import describe_series
from market_pipeline.providers.base import Provider
from market_pipeline.providers.registry import load_provider
from market_pipeline.readers.resolve import read_all_markets
from market_pipeline.storage.coverage.listings import read_coverage_rows

_GRACE = {Interval.HOUR: timedelta(hours=3), Interval.DAY: timedelta(hours=12)}
_NOT_LATE = timedelta(0)


@dataclass(frozen=True, slots=True)
class Freshness:
    """The freshness of a market: of the series most behind, or of its finest if none is late.

    The state is ``current``, ``behind`` or ``empty``. ``final_to`` is the close of the last final
    bar (UTC); None: there is none. ``behind`` is how much is missing since then.
    """

    state: str
    final_to: datetime | None
    behind: timedelta | None = None
    interval: Interval | None = None


def read_series(connection: Connection) -> dict[int, list[TrackedSeries]]:
    """Return every market's series, the finest first."""
    markets = read_all_markets(connection)
    known = {
        (row["market_id"], row["interval"]): row
        for row in read_coverage_rows(connection, list(markets))
    }
    names = {market.provider for market in markets.values()}
    providers = {name: _load_provider(name) for name in names}
    return {
        key: [
            describe_series(
                providers[market.provider], market, interval, known.get((key, interval.value), {})
            )
            for interval in market.intervals
        ]
        for key, market in markets.items()
    }


def summarise_freshness(series: Sequence[TrackedSeries], now: datetime) -> Freshness:
    """Return the freshness of a market; of several late series that of the one most behind."""
    if all(item.watermark is None for item in series):
        return Freshness("empty", None)
    late = [found for tracked in series if (found := _find_delay(tracked, now)) is not None]
    if late:
        return max(late, key=lambda found: (found.behind is None, found.behind or _NOT_LATE))
    return Freshness("current", series[0].watermark, interval=series[0].interval)


def _find_delay(series: TrackedSeries, now: datetime) -> Freshness | None:
    """Return the delay of a series; None if it is not late, or if that is unknown."""
    # By the minute: the markets of one calendar then share an answer.
    clock = now.replace(second=0, microsecond=0) - _GRACE[series.interval]
    try:
        expected_to = find_delay(series, clock, clock)
    except SettingError:
        return None
    if expected_to is None:
        return None
    behind = None if series.watermark is None else expected_to - series.watermark
    return Freshness("behind", series.watermark, behind, series.interval)


@lru_cache(maxsize=64)
def _load_provider(name: str) -> Provider | None:
    """Return a provider, to be asked for its terms alone; None where it is not to be had here."""
    try:
        return load_provider(name, os.environ)
    except SettingError:
        return None
