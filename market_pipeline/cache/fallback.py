"""The cache with a fallback: Redis while it works, the process's own memory while it does not.

Neither store can give a stale value, because entries of both are compared with the market's version
(``guard``). Memory is empty at the start of each failure. Entries that are written to memory are
not copied to Redis afterwards. The next reader adds them there again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from market_pipeline.cache.breaker import FIRST_TRY_SECONDS, Breaker
from market_pipeline.cache.memory import MemoryCache
from market_pipeline.cache.protocol import Entry, Fill, Json, write_json
from market_pipeline.cache.redis_store import RedisStore, StoreTroubleError

Answer = TypeVar("Answer")


class RedisCache:
    """A cache in Redis that answers from memory, or not at all, while Redis is in trouble.

    Args:
        store: Redis.
        memory: What takes its place.
        first_try_seconds: How long after trouble Redis is tried again.
    """

    def __init__(
        self, store: RedisStore, memory: MemoryCache, first_try_seconds: float = FIRST_TRY_SECONDS
    ) -> None:
        self._store, self._memory = store, memory
        self._breaker = Breaker(store.probe, first_try_seconds)

    is_local = False

    @property
    def store_name(self) -> str:
        """``redis``, or ``memory`` while it is in trouble."""
        return "memory" if self.trouble else "redis"

    @property
    def trouble(self) -> str | None:
        """The trouble with Redis in one word; None: no trouble."""
        return self._breaker.trouble

    def get(self, key: str) -> Entry | None:
        """Return the entry of a key."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries that there are."""
        return self._try_redis(
            lambda: self._store.get_many(keys), lambda: self._memory.get_many(keys)
        )

    def put(self, key: str, version: int, value: Json) -> bool:
        """Store a value, unless it is too large or the entry there is newer."""
        return self.put_many([Fill(key, version, write_json(value))]) == 1

    def put_many(self, fills: Iterable[Fill]) -> int:
        """Store values, each as ``put`` does."""
        listed = list(fills)
        return self._try_redis(
            lambda: self._store.put_many(listed), lambda: self._memory.put_many(listed)
        )

    def invalidate(self, pattern: str) -> int:
        """Drop the entries whose keys match, in both stores."""
        dropped = self._memory.invalidate(pattern)
        return dropped + self._try_redis(lambda: self._store.invalidate(pattern), lambda: 0)

    def forget(self) -> None:
        """Drop what is held in memory."""
        self._memory.forget()

    def close(self) -> None:
        """Give back connections and the probing thread."""
        self._breaker.close()
        self._store.close()
        self._memory.close()

    def _try_redis(self, redis: Callable[[], Answer], memory: Callable[[], Answer]) -> Answer:
        if self._breaker.trouble is None:
            try:
                return redis()
            except StoreTroubleError as error:
                self._note_trouble(error.reason)
        return memory()

    def _note_trouble(self, reason: str) -> None:
        # All connections of this process in use says nothing about the server.
        if reason != "busy" and self._breaker.open(reason):
            self._memory.forget()
