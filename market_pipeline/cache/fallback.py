"""The cache with a fallback: Redis while it works, the process's own memory while it does not.

Neither store can give a stale value, because entries of both are compared with the market's version
(``guard``). Memory is empty at the start of each failure. Entries that are written to memory are
not copied to Redis afterwards. The next reader adds them there again.

After a failure no reader asks Redis until a test of it has succeeded. Readers never wait for it: a
thread of its own tests the server, at growing intervals.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from market_pipeline.cache.memory import MemoryCache
from market_pipeline.cache.protocol import Cache, Entry, Fill
from market_pipeline.cache.redis_store import RedisStore, StoreTroubleError

FIRST_TRY_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 15.0
Answer = TypeVar("Answer")
logger = logging.getLogger("market_pipeline.cache")


class RedisCache(Cache):
    """A cache in Redis that answers from memory, or not at all, while Redis is in trouble.

    The first test comes ``first_try_seconds`` after a failure, each later one after twice as long,
    at most 15 seconds. ``trouble`` is the reason why Redis is not asked; None: it is asked.
    """

    is_local = False
    trouble: str | None = None

    def __init__(
        self, store: RedisStore, memory: MemoryCache, first_try_seconds: float = FIRST_TRY_SECONDS
    ) -> None:
        self._store, self._memory, self._first_try = store, memory, first_try_seconds
        self._lock, self._stopped = threading.Lock(), threading.Event()

    @property
    def store_name(self) -> str:
        """``redis``, or ``memory`` while it is in trouble."""
        return "memory" if self.trouble else "redis"

    def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries that there are."""
        return self._try_redis(
            lambda: self._store.get_many(keys), lambda: self._memory.get_many(keys)
        )

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
        self._stopped.set()
        self._store.close()
        self._memory.close()

    def _try_redis(self, redis: Callable[[], Answer], memory: Callable[[], Answer]) -> Answer:
        if self.trouble is None:
            try:
                return redis()
            except StoreTroubleError as error:
                # All connections of this process in use says nothing about the server.
                if error.reason != "busy":
                    self._stop_asking(error.reason)
        return memory()

    def _stop_asking(self, reason: str) -> None:
        with self._lock:
            if self.trouble is not None or self._stopped.is_set():
                return
            self.trouble = reason
        logger.warning("the cache server is in trouble (%s): serving without it", reason)
        self._memory.forget()
        threading.Thread(target=self._try_again, name="cache-probe", daemon=True).start()

    def _try_again(self) -> None:
        wait = self._first_try
        while not self._stopped.wait(wait):
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
            try:
                self._store.probe()
            except StoreTroubleError as error:
                self.trouble = error.reason
                continue
            self.trouble = None
            logger.info("the cache server works again")
            return
