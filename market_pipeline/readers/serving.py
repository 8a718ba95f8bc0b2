"""The cache for servers: it gives what the database holds, or nothing."""

import os
from collections.abc import Mapping

from sqlalchemy import Engine

from market_pipeline.cache.guard import GuardedCache
from market_pipeline.cache.opening import open_cache
from market_pipeline.cache.protocol import Cache
from market_pipeline.storage.latest.listener import StampWatch

_FIRST_ANSWER_SECONDS = 2.0


class ServingCache(GuardedCache):
    """A cache whose entries are served while a watch on the database knows them to be current.

    Args:
        cache: Of ``open_cache``.
        engine: Of the database whose values are cached; the watch takes a connection of its own.
    """

    def __init__(self, cache: Cache, engine: Engine) -> None:
        self.watch = StampWatch(engine)
        super().__init__(cache, self.watch)

    def close(self) -> None:
        """Close the cache and end the watch."""
        super().close()
        self.watch.close()


def open_serving_cache(
    engine: Engine,
    environ: Mapping[str, str] | None = None,
    wait_seconds: float = _FIRST_ANSWER_SECONDS,
) -> ServingCache:
    """Open the cache of REDIS_URL, or of this process, for a process that serves many reads.

    Close it in the end. Without a watch (the database is away) it serves nothing, until it is back.

    Args:
        engine: Of the database whose values are cached.
        environ: Where settings are; None: the environment.
        wait_seconds: How long to wait for the first answer of the database.

    Raises:
        SettingError: REDIS_URL or CACHE_TTL_SECONDS is wrong.
    """
    cache = ServingCache(open_cache(os.environ if environ is None else environ), engine)
    cache.watch.wait_until_healthy(wait_seconds)
    return cache
