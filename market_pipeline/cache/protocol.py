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
    """A value as it was read from the database.

    Attributes:
        version: The stamp of its market then.
        body: The value as JSON, UTF-8; what HTTP can send as it is.
        stored_at: When it was put into the cache, in seconds since 1970 (UTC).
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
        """How long ago it was stored, at least 0 whatever another machine's clock said."""
        return max(0.0, time.time() - self.stored_at)


@dataclass(frozen=True, slots=True)
class Fill:
    """A value to be put: its key, the version it was read at, and the value as JSON."""

    key: str
    version: int
    body: bytes


class Cache(Protocol):
    """A cache; safe to use from several threads.

    Attributes:
        is_local: It asks nobody: what it has is in this process's memory.
    """

    is_local: bool

    @property
    def store_name(self) -> str:
        """Who answers at the moment: ``redis`` or ``memory``."""

    @property
    def trouble(self) -> str | None:
        """What is wrong with the store at the moment, in one word; None: nothing."""

    def get(self, key: str) -> Entry | None:
        """Return the entry of a key; None when there is none that may be served."""

    def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries that may be served, in one question to the store."""

    def put(self, key: str, version: int, value: Json) -> bool:
        """Store a value, unless the entry there has a newer version.

        Args:
            key: Where.
            version: Of the snapshot that the value was read from.
            value: Of JSON.

        Returns:
            Whether it is stored now.

        Raises:
            ValueError: The value is not of JSON.
        """

    def put_many(self, fills: Iterable[Fill]) -> int:
        """Store several values, each as ``put`` does, and count those stored."""

    def invalidate(self, pattern: str) -> int:
        """Drop the entries with a key that matches a pattern, or below such a key; count them.

        Args:
            pattern: ``*`` is any text: ``market:*:aggregates`` also drops
                ``market:mock:BTC-USD:aggregates:1d``.
        """

    def forget(self) -> None:
        """Drop what this process alone holds: it may have missed a change."""

    def close(self) -> None:
        """Give back connections and threads."""


def write_json(value: Json) -> bytes:
    """Return a value as JSON.

    Raises:
        ValueError: NaN, infinity, or what JSON has no form for.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(f"only JSON can be cached: {error}") from None


def parse_json(body: bytes) -> Json:
    """Return the value of JSON.

    Raises:
        ValueError: It is not JSON; NaN and infinity are not.
    """
    try:
        return json.loads(body, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
