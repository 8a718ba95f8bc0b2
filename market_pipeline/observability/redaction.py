"""Removal of secrets from finished text, whoever wrote it and whatever it quotes.

It is a safety net below the rule that messages name no secret: what a library says about an address
and the arguments in a traceback pass here before they are written.
"""

import os
import re
from functools import lru_cache
from urllib.parse import quote, unquote, urlsplit

from market_pipeline.settings import SETTINGS

HIDDEN = "***"
_NAMES = (*(setting.name for setting in SETTINGS if setting.is_secret), "PGPASSWORD")
# What comes after the scheme of these is a secret as a whole; of other addresses the password is.
_ADDRESSES = frozenset({"ALERT_WEBHOOK_URL", "HEARTBEAT_URL"})
_LEAST = 4
_LEAST_PART = 8
_PASSWORD = re.compile(r"(?<=:)[^:/@]+(?=@[^@]*$)")


def redact(text: str) -> str:
    """Return a text without the values of settings that are secret."""
    pattern = _compile(tuple(os.environ.get(name, "") for name in _NAMES))
    return text if pattern is None else pattern.sub(HIDDEN, text)


@lru_cache(maxsize=8)
def _compile(values: tuple[str, ...]) -> re.Pattern[str] | None:
    found = {
        spelling
        for name, value in zip(_NAMES, values, strict=True)
        for secret in _list_secrets(name, value)
        for spelling in _list_spellings(secret)
        if len(spelling) >= _LEAST
    }
    # The longest first: a part of it must not be taken out before the whole.
    ordered = sorted(found, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _list_secrets(name: str, value: str) -> list[str]:
    parts = value.split()
    if name in _ADDRESSES:
        whole = [part.partition("://")[2] or part for part in parts]
        pieces = (piece for part in whole for piece in part.split("/"))
        return [*whole, *(piece for piece in pieces if len(piece) > _LEAST_PART)]
    if "://" in value:
        return [found.group() for found in [_PASSWORD.search(_find_authority(value))] if found]
    return [*parts, value.strip()]


def _find_authority(address: str) -> str:
    """Return user, password and host; of an address that cannot be read, what may be them."""
    try:
        return urlsplit(address).netloc or address.partition("://")[2]
    except ValueError:
        return address.partition("://")[2]


def _list_spellings(secret: str) -> set[str]:
    """Return a secret as it may be written: as it is, decoded, encoded."""
    plain = unquote(secret)
    return {secret, plain, quote(plain, safe=""), quote(plain)}
