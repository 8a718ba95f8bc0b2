"""Credentials: bearer tokens and the cookie of a signed-in browser, compared in constant time.

Not here: which paths need them (``security``).
"""

import hashlib
import hmac
import time
from collections.abc import Iterable

COOKIE = "market_pipeline_session"
SESSION_SECONDS = 30 * 24 * 3_600
_MAX_HEADER = 1_024


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


def build_session(token: str, now: float) -> str:
    """Return a cookie's value: until when it holds, and the token's signature of that."""
    until = str(int(now) + SESSION_SECONDS)
    return f"{until}.{_sign(until, token)}"


def holds_session(headers: Iterable[tuple[bytes, bytes]], token: str) -> bool:
    """Tell whether a request carries the cookie of a browser that signed in with this token."""
    if not token:
        return False
    for name, value in headers:
        if name == b"cookie" and _holds_cookie(value.decode("latin-1"), token):
            return True
    return False


def _holds_cookie(header: str, token: str) -> bool:
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        until, _, signature = value.partition(".")
        if name == COOKIE and _equals(signature.encode("latin-1"), _sign(until, token).encode()):
            return until.isdecimal() and int(until) > time.time()
    return False


def _sign(until: str, token: str) -> str:
    message = f"market-pipeline session until {until}"
    return hmac.new(token.encode(), message.encode("latin-1"), hashlib.sha256).hexdigest()


def _equals(given: bytes, expected: bytes) -> bool:
    """Compare in constant time; digests, so that the time does not depend on lengths."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(expected).digest())
