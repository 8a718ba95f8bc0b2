"""The names of entries, and the market of each."""

import re
from functools import lru_cache

_MARKET = "market:"
_LATEST = ":latest"
_AGGREGATES = ":aggregates"
MARKET_PATTERNS = ("market:*:latest", "market:*:aggregates")
"""What a run invalidates after its commit."""
ALL_MARKETS = "*"
"""The scope of what belongs to no market alone: names, and the list of markets."""


def make_latest_key(provider: str, symbol: str) -> str:
    """Return the key of a market's latest values."""
    return f"{_MARKET}{provider}:{symbol}{_LATEST}"


def make_name_key(name: str) -> str:
    """Return the key of what market a name means."""
    return f"name:{name}"


@lru_cache(maxsize=20_000)
def find_scope(key: str) -> str:
    """Return ``provider:symbol`` of a market's key, ``*`` of any other.

    A symbol may have colons, so the end of it is found by the word after it.
    """
    if not key.startswith(_MARKET):
        return ALL_MARKETS
    rest = key.removeprefix(_MARKET)
    if rest.endswith(_LATEST):
        return rest.removesuffix(_LATEST)
    scope, word, _ = rest.partition(_AGGREGATES)
    return scope if word else ALL_MARKETS


@lru_cache(maxsize=64)
def compile_pattern(pattern: str) -> "re.Pattern[str]":
    """Return the expression of a pattern and of what is below it; ``*`` is any text."""
    parts = (re.escape(part) for part in pattern.split("*"))
    return re.compile(f"{'.*'.join(parts)}(?::.*)?", re.DOTALL)
