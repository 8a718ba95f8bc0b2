"""The interface of a cache: entries with versions, by key, that may be gone at any time.

Keys are ``market:{provider}:{symbol}:latest`` and ``market:{provider}:{symbol}:aggregates:...``.
The version of an entry is the market's stamp (``storage.latest.market_versions``) in the snapshot
that it was read from. No method raises because a store has failed: a value that cannot be read is a
miss.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, Protocol, TypeAlias

Json: TypeAlias = Any
"""A value of JSON: numbers are finite, keys are text."""


@dataclass(frozen=True)
class Entry:
    """A value as it was read from the database, and the stamp that its market had then.

    The body is JSON, UTF-8, as HTTP can send it. It was stored in seconds since 1970 (UTC).
    """

    version: int
    body: bytes
    stored_at: float

    @cached_property
    def value(self) -> Json:
        """The value; parsed once and shared, so do not change it."""
        return parse_json(self.body)

    @property
    def age_seconds(self) -> float:
        """Seconds since it was stored, at least 0 if another machine's clock was ahead."""
        return max(0.0, time.time() - self.stored_at)


@dataclass(frozen=True, slots=True)
class Fill:
    """A value to be put: its key, the version it was read at, and the value as JSON."""

    key: str
    version: int
    body: bytes


class Cache(Protocol):
    """A cache; safe to use from several threads.

    ``is_local`` means that it asks nobody: what it has is in this process's memory.
    """

    is_local: bool

    @property
    def store_name(self) -> str:
        """The store that answers now: ``redis`` or ``memory``."""

    @property
    def trouble(self) -> str | None:
        """The present trouble of the store in one word; None: no trouble."""

    def get(self, key: str) -> Entry | None:
        """Return the entry of a key; None when there is none that may be served."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries that may be served, in one question to the store."""

    def put(self, key: str, version: int, value: Json) -> bool:
        """Store a value and return True, unless it is too large or the entry there is newer.

        The version is of the snapshot that the value was read from. A value that is not of JSON is
        a ``ValueError``.
        """
        return self.put_many([Fill(key, version, write_json(value))]) == 1

    def put_many(self, fills: Iterable[Fill]) -> int:
        """Store several values, each as ``put`` does, and count those stored."""

    def invalidate(self, pattern: str) -> int:
        """Drop the entries with a key that matches a pattern, or below such a key; count them.

        ``*`` is any text: ``market:*:aggregates`` drops ``market:mock:BTC-USD:aggregates:1d`` too.
        """

    def forget(self) -> None:
        """Drop what this process alone holds: it may have missed a change."""

    def close(self) -> None:
        """Give back connections and threads."""
        self.forget()


def write_json(value: Json) -> bytes:
    """Return a value as JSON; NaN, infinity and what has no form there are a ``ValueError``."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(f"only JSON can be cached: {error}") from None


def parse_json(body: bytes) -> Json:
    """Return the value of JSON; anything else, NaN and infinity too, is a ``ValueError``."""
    try:
        return json.loads(body, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
