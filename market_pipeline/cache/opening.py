"""The choice of the cache: Redis if REDIS_URL is set, otherwise the memory of this process."""

import weakref
from collections.abc import Iterable, Mapping
from contextlib import closing

from market_pipeline.cache.memory import MemoryCache
from market_pipeline.cache.protocol import Cache
from market_pipeline.settings import read_cache_ttl_seconds, read_redis_url

_open_caches: "weakref.WeakSet[Cache]" = weakref.WeakSet()


def open_cache(environ: Mapping[str, str] | None = None) -> Cache:
    """Open the cache that REDIS_URL and CACHE_TTL_SECONDS describe; no server is asked yet.

    It does not know what the database holds: for serving, wrap it (``readers.serving``).
    """
    url, ttl = read_redis_url(environ), read_cache_ttl_seconds(environ)
    cache: Cache = MemoryCache(ttl)
    if url:
        from market_pipeline.cache.fallback import RedisCache
        from market_pipeline.cache.redis_store import RedisStore

        cache = RedisCache(RedisStore(url, ttl), MemoryCache(ttl))
    _open_caches.add(cache)
    return cache


def invalidate_cache_keys(patterns: Iterable[str]) -> int:
    """Drop cached entries: in Redis for everybody, in memory for this process.

    What runs of this project commit needs no such call: readers compare versions. It is for those
    who change the tables by other means. Other processes' own memory, used without Redis, keeps
    entries until CACHE_TTL_SECONDS are over. Patterns are keys, such as ``market:*:latest``; ``*``
    is any text. Returns how many entries were dropped; when Redis is in trouble, those in memory.
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    held = [cache for cache in _open_caches if cache.store_name == "memory"]
    dropped = sum(cache.invalidate(pattern) for cache in held for pattern in wanted)
    if read_redis_url():
        with closing(open_cache()) as cache:
            dropped += sum(cache.invalidate(pattern) for pattern in wanted)
    return dropped
