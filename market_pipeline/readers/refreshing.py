"""The cache after a run's commits: old entries are dropped, the markets' latest values are set.

Only Redis needs this. Memory belongs to the processes that serve, which listen to the database.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy import Engine

from market_pipeline.cache.keys import MARKET_PATTERNS, make_latest_key
from market_pipeline.cache.opening import open_cache
from market_pipeline.cache.protocol import Cache
from market_pipeline.readers.latest import make_fill
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.storage.latest.market_versions import read_market_versions
from market_pipeline.storage.latest.values import read_latest_rows


@dataclass(frozen=True, slots=True)
class Refresh:
    """The result of a refresh.

    Attributes:
        store: ``redis``, or ``memory`` where there is none and nothing had to be done.
        dropped: Entries that were invalidated. written: Entries that were put.
        newest_version: Of what was put; None: nothing was.
        trouble: Why Redis could not be used, in one word; None: it could.
    """

    store: str
    dropped: int = 0
    written: int = 0
    newest_version: int | None = None
    trouble: str | None = None


def refresh_latest(engine: Engine, markets: Sequence[tuple[str, str]]) -> Refresh:
    """Invalidate by pattern, and set the latest values of markets; report trouble with Redis.

    Args:
        engine: Of the database; what a run wrote is committed.
        markets: (provider, symbol) of the run's markets.

    Raises:
        SettingError: REDIS_URL or CACHE_TTL_SECONDS is wrong.
    """
    with closing(open_cache()) as cache:
        if cache.store_name == "memory":
            return Refresh("memory")
        return _refresh(engine, markets, cache)


def _refresh(engine: Engine, markets: Sequence[tuple[str, str]], cache: Cache) -> Refresh:
    dropped = sum(cache.invalidate(pattern) for pattern in MARKET_PATTERNS)
    with open_snapshot(engine) as connection:
        rows = [] if cache.trouble else read_latest_rows(connection, markets)
    written = cache.put_many([make_fill(row) for row in rows])
    trouble = cache.trouble
    if trouble:  # what was put since then is in this process's memory, of use to nobody
        return Refresh("redis", dropped, trouble=trouble)
    newest = max((row.version for row in rows), default=None)
    return Refresh("redis", dropped, written, newest)


@dataclass(frozen=True, slots=True)
class CacheState:
    """What Redis has of some markets.

    Attributes:
        entries: How many of them have an entry. oldest_seconds: The age of the oldest.
        behind: ``provider:symbol`` of those whose entry is missing or of an older version.
        trouble: Why Redis could not be asked, in one word; None: it could.
    """

    entries: int = 0
    oldest_seconds: float = 0.0
    behind: Sequence[str] = ()
    trouble: str | None = None


def inspect_latest(engine: Engine, markets: Sequence[tuple[str, str]]) -> CacheState:
    """Compare the entries of markets with the database; an empty state where there is no Redis."""
    names = {make_latest_key(*market): ":".join(market) for market in markets}
    with closing(open_cache()) as cache:
        if cache.store_name == "memory":
            return CacheState()
        found, trouble = cache.get_many(list(names)), cache.trouble
    with engine.connect() as connection:
        versions = read_market_versions(connection, list(names.values()))
    current = {key for key, entry in found.items() if entry.version == versions[names[key]]}
    behind = [name for key, name in names.items() if key not in current]
    ages = [entry.age_seconds for entry in found.values()]
    return CacheState(len(found), max(ages, default=0.0), behind, trouble)
