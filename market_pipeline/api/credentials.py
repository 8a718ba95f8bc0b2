"""Credentials: bearer tokens, cookies of signed-in browsers and marks of our own forms.

They are compared in constant time.

Wrong sign-ins are counted by address in this process, so that nobody can try thousands of tokens.
Behind a proxy, all visitors have the proxy's address. The proxy counts by their own addresses. Not
here: which paths need credentials (``security``).
"""

import hashlib
import hmac
import math
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, ip_address

COOKIE = "market_pipeline_session"
SESSION_SECONDS = 30 * 24 * 3_600
MOST_ADDRESSES = 1_000
_MAX_HEADER = 1_024
_FREE = 10
_SECONDS_EACH = 6.0
_NETWORK_BITS = 64


def holds_bearer(headers: Iterable[tuple[bytes, bytes]], secret: str) -> bool:
    """Tell whether a request carries ``Authorization: Bearer`` with this secret, once.

    False for every request when the secret is empty. The time does not tell how much was right.
    """
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1 or not secret or len(values[0]) > _MAX_HEADER:
        return False
    scheme, _, given = values[0].partition(b" ")
    return scheme.lower() == b"bearer" and _equals(given.strip(b" "), secret.encode())


def is_token(text: str, token: str) -> bool:
    """Tell whether a text is the token; never when none is set."""
    return bool(token) and len(text) <= _MAX_HEADER and _equals(text.encode(), token.encode())


def build_session(token: str, now: float, name: str = "") -> str:
    """Return a cookie's value: until when it holds, whose it is, and the token's signature.

    The name is what somebody called themselves, for the log of actions.
    """
    told = str(int(now) + SESSION_SECONDS)
    if name:
        told += "." + urlsafe_b64encode(name.encode()).decode().rstrip("=")
    return f"{told}.{_sign(f'session until {told}', token)}"


def holds_session(headers: Iterable[tuple[bytes, bytes]], token: str) -> bool:
    """Tell whether a request carries the cookie of a browser that signed in with this token."""
    return find_name(headers, token) is not None


def find_name(headers: Iterable[tuple[bytes, bytes]], token: str) -> str | None:
    """Return the name that a browser signed in with; "" without one, None if it did not."""
    if not token:
        return None
    cookies = (value.decode("latin-1") for name, value in headers if name == b"cookie")
    found = (_read_cookie(cookie, token) for cookie in cookies)
    return next((name for name in found if name is not None), None)


def build_form_token(secret: str) -> str:
    """Return what the forms of our own pages hold, and those of other sites cannot know."""
    return _sign("forms", secret)


def is_form_token(text: str, secret: str) -> bool:
    """Tell whether a form comes from a page that was made with this secret."""
    return _equals(text.encode(), build_form_token(secret).encode())


def _read_cookie(header: str, token: str) -> str | None:
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        told, _, signature = value.rpartition(".")
        expected = _sign(f"session until {told}", token)
        if name == COOKIE and _equals(signature.encode("latin-1"), expected.encode()):
            until, _, called = told.partition(".")
            if until.isdecimal() and int(until) > time.time():
                return urlsafe_b64decode(called + "=" * (-len(called) % 4)).decode()
    return None


def _sign(words: str, secret: str) -> str:
    message = f"market-pipeline {words}"
    return hmac.new(secret.encode(), message.encode("latin-1"), hashlib.sha256).hexdigest()


def _equals(given: bytes, expected: bytes) -> bool:
    """Compare in constant time; digests, so that the time does not depend on lengths."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(expected).digest())


class WrongSignIns:
    """Ten are free, then one every six seconds; the oldest of too many addresses is forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # How many count by address, and since when.
        self._counted: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._counted)

    def compute_wait(self, address: str) -> int:
        """Return after how many seconds an address may try again; 0: now."""
        excess = self._count(_find_group(address)) - (_FREE - 1)
        return math.ceil(max(excess, 0.0) * _SECONDS_EACH)

    def note(self, address: str) -> None:
        """Count a wrong sign-in."""
        group = _find_group(address)
        count = self._count(group)
        self._counted.pop(group, None)
        if len(self._counted) >= MOST_ADDRESSES:
            del self._counted[next(iter(self._counted))]
        self._counted[group] = (count + 1, self._clock())

    def _count(self, group: str) -> float:
        count, since = self._counted.get(group, (0.0, 0.0))
        return max(count - (self._clock() - since) / _SECONDS_EACH, 0.0)


def _find_group(address: str) -> str:
    """Return the network that is counted as one: an IPv6 user has a whole network of addresses."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(int(parsed) >> _NETWORK_BITS)
    return address
