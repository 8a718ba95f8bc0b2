"""The guard: serves an entry only while it is known to be equal to the database.

An entry's version must equal the newest known version of its market. So no reader sees an old value
after a crash between commit and invalidation, a lost invalidation, a late fill by another process,
or a restart of Redis with old entries. While versions cannot be known, nothing is served and
nothing is filled.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from market_pipeline.cache.keys import find_scope
from market_pipeline.cache.protocol import Cache, Entry, Fill


class Versions(Protocol):
    """The newest versions, known to a listener of the database."""

    @property
    def epoch(self) -> int:
        """Changes when it started to listen again, so that it may have missed a change."""

    def find_version(self, scope: str) -> int | None:
        """Return the version of ``provider:symbol`` or ``*``; None while it cannot be known."""


class GuardedCache(Cache):
    """A cache whose entries are compared with the database's versions."""

    def __init__(self, cache: Cache, versions: Versions) -> None:
        self._cache, self._versions = cache, versions
        self._epoch = versions.epoch
        self._lock = threading.Lock()
        self.is_local = cache.is_local

    @property
    def store_name(self) -> str:
        """``redis`` or ``memory``."""
        return self._cache.store_name

    @property
    def trouble(self) -> str | None:
        """The trouble in one word: of the store, or ``unwatched``; None: no trouble."""
        is_unwatched = self._versions.find_version("*") is None
        return "unwatched" if is_unwatched else self._cache.trouble

    def get(self, key: str) -> Entry | None:
        """Return the entry of a key, if it is of the newest version."""
        self._flush_if_reconnected()
        version = self._versions.find_version(find_scope(key))
        entry = self._cache.get(key) if version is not None else None
        return entry if entry is not None and entry.version == version else None

    def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries that are of the newest versions."""
        self._flush_if_reconnected()
        wanted = {key: self._versions.find_version(find_scope(key)) for key in keys}
        known = [key for key, version in wanted.items() if version is not None]
        found = self._cache.get_many(known) if known else {}
        return {key: entry for key, entry in found.items() if entry.version == wanted[key]}

    def put_many(self, fills: Iterable[Fill]) -> int:
        """Store values, unless their markets changed since they were read; count those stored."""
        current = [fill for fill in fills if self._is_current(fill)]
        return self._cache.put_many(current) if current else 0

    def invalidate(self, pattern: str) -> int:
        """Drop the entries whose keys match."""
        return self._cache.invalidate(pattern)

    def forget(self) -> None:
        """Drop what is held in memory."""
        self._cache.forget()

    def close(self) -> None:
        """Close the cache; the versions belong to the caller."""
        self._cache.close()

    def _is_current(self, fill: Fill) -> bool:
        """Whether nothing newer is known; a listener may also be behind what was just read."""
        newest = self._versions.find_version(find_scope(fill.key))
        return newest is not None and fill.version >= newest

    def _flush_if_reconnected(self) -> None:
        epoch = self._versions.epoch
        if epoch == self._epoch:
            return
        with self._lock:
            if epoch != self._epoch:
                self._cache.forget()
                self._epoch = epoch
