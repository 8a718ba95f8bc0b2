"""The site that a request is for, and the site of the page that sent it.

The API's security layer and the guard before Dagster's webserver share these decisions. Not here:
which requests are refused, and the text of the refusal.
"""

from collections.abc import Iterable

Headers = Iterable[tuple[bytes, bytes]]
_OTHER_SITES = frozenset({"cross-site", "same-site"})


def find_header(headers: Headers, wanted: bytes) -> str:
    """Return a header's value; "" when it is missing, and its first when it comes twice."""
    for name, value in headers:
        if name == wanted:
            return value.decode("latin-1")
    return ""


def has_two_hosts(headers: Headers) -> bool:
    """Tell whether a request names its host more than once."""
    return sum(name == b"host" for name, _ in headers) > 1


def is_served(headers: Headers, allowed: frozenset[str]) -> bool:
    """Tell whether a request is for one of these hosts; where none is named, for any."""
    host = find_header(headers, b"host")
    name = host.rpartition(":")[0] if _has_port(host) else host
    return not allowed or name.lower() in allowed


def has_foreign_origin(headers: Headers) -> bool:
    """Tell whether a page of another site is named as the sender."""
    origin = find_header(headers, b"origin")
    host = find_header(headers, b"host")
    return bool(origin) and origin.partition("://")[2].lower() != host.lower()


def is_sent_by_another_site(headers: Headers) -> bool:
    """Tell whether a browser says that another site's page, or a link there, sends this."""
    return has_foreign_origin(headers) or find_header(headers, b"sec-fetch-site") in _OTHER_SITES


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdecimal() and not host.endswith("]") and ":" in host
