"""The cache within a process: drops the least recently used entries first, and expired ones."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from market_pipeline.cache.keys import compile_pattern
from market_pipeline.cache.protocol import Cache, Entry, Fill

MAX_ENTRIES = 10_000
MAX_BYTES = 64 * 2**20
MAX_VALUE_BYTES = 2**20


class MemoryCache(Cache):
    """Entries of this process, bounded in number, size (of values) and age; safe for threads."""

    store_name = "memory"
    is_local = True
    trouble: str | None = None

    def __init__(
        self,
        ttl_seconds: float,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl, self._clock = ttl_seconds, clock
        self._max_entries, self._max_bytes = max_entries, max_bytes
        # With the time at which each ends.
        self._kept: OrderedDict[str, tuple[Entry, float]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> Entry | None:
        """Return the entry of a key, unless its time is over."""
        with self._lock:
            entry, expires = self._kept.get(key, (None, 0.0))
            if entry is not None and expires <= self._clock():
                self._drop(key)
                return None
            if entry is not None:
                self._kept.move_to_end(key)
            return entry

    def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries that there are."""
        found = ((key, self.get(key)) for key in keys)
        return {key: entry for key, entry in found if entry is not None}

    def put_many(self, fills: Iterable[Fill]) -> int:
        """Store values, each as ``put`` does."""
        return sum(map(self._put_fill, fills))

    def _put_fill(self, fill: Fill) -> bool:
        if len(fill.body) > MAX_VALUE_BYTES:
            return False
        with self._lock:
            there, expires = self._kept.get(fill.key, (None, 0.0))
            if there and there.version > fill.version and expires > self._clock():
                return False
            self._drop(fill.key)
            entry = Entry(fill.version, fill.body, time.time())
            self._kept[fill.key] = (entry, self._clock() + self._ttl)
            self._bytes += len(fill.body)
            while len(self._kept) > self._max_entries or self._bytes > self._max_bytes:
                self._drop(next(iter(self._kept)))
            return True

    def invalidate(self, pattern: str) -> int:
        """Drop the entries whose keys match."""
        matches = compile_pattern(pattern).fullmatch
        with self._lock:
            keys = [key for key in self._kept if matches(key)]
            for key in keys:
                self._drop(key)
        return len(keys)

    def forget(self) -> None:
        """Drop everything: all of it is this process's."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _drop(self, key: str) -> None:
        entry, _ = self._kept.pop(key, (None, 0.0))
        if entry is not None:
            self._bytes -= len(entry.body)
