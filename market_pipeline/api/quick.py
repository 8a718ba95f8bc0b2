"""The fast path for latest values: sends values in this process's memory without the route.

It asks the same guarded cache as the route, so it gives nothing that the route would not. It leaves
everything unusual to the route: other formats, a tag to compare, a miss, a cache on a server. Here:
the requests that qualify, and their headers. Not here: which entry may be served (``cache.guard``).
"""

from types import SimpleNamespace
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from market_pipeline.api.counting import LATEST
from market_pipeline.api.media import MEDIA_TYPES, Origin, make_etag
from market_pipeline.api.services import Services
from market_pipeline.cache.keys import ALL_MARKETS, make_latest_key, make_name_key
from market_pipeline.cache.protocol import Entry

Headers = list[tuple[bytes, bytes]]
_BEFORE, _AFTER = "/api/markets/", "/latest"
_PLAIN = frozenset({b"*/*", b"application/json"})
_MOST = 10_000
# The route that requests answered here are counted for.
_ROUTE = SimpleNamespace(path="/api/markets/{symbol}/latest")


class LatestFastPath:
    """Answers plain questions for latest values from memory; all others go on."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._cache = app, services.cache
        self._ready: dict[str, tuple[Entry, Headers]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the route do it."""
        entry = self._find_entry(scope) if _is_plain(scope) else None
        if entry is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = _ROUTE
        LATEST.inc(source="cache")
        headers = self._prepare(scope["path"], entry)
        age = (b"age", str(int(entry.age_seconds)).encode())
        start = {"type": "http.response.start", "status": 200, "headers": [age, *headers]}
        await send(start)
        await send({"type": "http.response.body", "body": entry.body})

    def _find_entry(self, scope: Scope) -> Entry | None:
        """Return the values, if the name and they are in memory and current."""
        name = scope["path"][len(_BEFORE) : -len(_AFTER)]
        # Every market together has an entry as well, whose name is no market's.
        is_here = self._cache.is_local and name != ALL_MARKETS
        meant = self._cache.get(make_name_key(name)) if is_here else None
        if meant is None:
            return None
        ((provider, symbol),) = meant.value
        return self._cache.get(make_latest_key(provider, symbol))

    def _prepare(self, path: str, entry: Entry) -> Headers:
        """Return the headers but for the age; made once for each entry."""
        known = self._ready.get(path)
        if known is not None and known[0] is entry:
            return known[1]
        if len(self._ready) >= _MOST:
            self._ready.clear()
        headers = _build_headers(entry)
        self._ready[path] = (entry, headers)
        return headers


def _is_plain(scope: Scope) -> bool:
    """Tell whether a request is one for JSON, without conditions."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope["query_string"]:
        return False
    path: str = scope["path"]
    if not (path.startswith(_BEFORE) and path.endswith(_AFTER)):
        return False
    given: Any = scope["headers"]
    return all(
        (name != b"accept" or value in _PLAIN) and name != b"if-none-match" for name, value in given
    )


def _build_headers(entry: Entry) -> Headers:
    etag = make_etag(entry.version, "json")
    told = Origin("cache", entry.value["dataset_version"], etag=etag).headers
    told |= {"Content-Type": MEDIA_TYPES["json"], "Content-Length": str(len(entry.body))}
    del told["Age"]
    return [(name.lower().encode(), value.encode()) for name, value in told.items()]
