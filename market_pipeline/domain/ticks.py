"""Ticks: one request that several runs carry out together, each a shard of its markets.

Shards are execution, not data: nothing that is stored depends on them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from market_pipeline.domain.errors import SettingError

TICK_TAG = "market_pipeline/tick"
SHARD_TAG = "market_pipeline/shard"
VERSION_TAG = "market_pipeline/version"
DERIVING = 0
"""The number of the part that derives what needs all markets, when the shards have ended."""


@dataclass(frozen=True, slots=True)
class TickPart:
    """One run's part of a tick: a shard from 1 to ``shards``, or ``DERIVING``."""

    tick_id: UUID
    shard: int
    shards: int

    @property
    def name(self) -> str:
        """The part's name: its number, or what it does."""
        return "derive" if self.shard == DERIVING else str(self.shard)

    @property
    def key(self) -> str:
        """The key by which the part is launched once."""
        return f"{self.tick_id}:{self.name}"

    def __str__(self) -> str:
        """Return it as a run's configuration has it."""
        return f"{self.tick_id}:{self.shard}/{self.shards}"


def parse_part(text: str) -> TickPart | None:
    """Return the part that a run's configuration names; None for an empty text.

    Raises:
        SettingError: It is no part of a tick.
    """
    if not text:
        return None
    tick_id, _, place = text.partition(":")
    shard, _, shards = place.partition("/")
    try:
        part = TickPart(UUID(tick_id), int(shard), int(shards))
    except ValueError:
        part = None
    if part is None or not DERIVING <= part.shard <= part.shards:
        raise SettingError(f"tick={text[:60]!r}: expected a tick's id and a part, such as ID:2/4")
    return part


def choose_shard(symbol: str, shards: int) -> int:
    """Return a market's shard, from 1: the same in every process, on every machine.

    Within a request the symbol is a market's identity: each symbol is one market of one provider.
    """
    digest = hashlib.blake2b(symbol.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards + 1


def split_symbols(symbols: Sequence[str], shards: int) -> dict[int, list[str]]:
    """Return the symbols of each shard that has some, in the order given."""
    parts: dict[int, list[str]] = defaultdict(list)
    for symbol in symbols:
        parts[choose_shard(symbol, shards)].append(symbol)
    return dict(sorted(parts.items()))
