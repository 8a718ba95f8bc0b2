"""Metrics of the API itself: requests by route and status, and how long they took."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from market_pipeline.observability.metrics import counter, histogram

REQUESTS = counter(
    "http_requests_total", "Requests answered by this process", ("method", "route", "status")
)
SECONDS = histogram("http_request_seconds", "From a request to the end of its answer", ("route",))
LATEST = counter(
    "latest_reads_total",
    "Latest values answered by this process, by where they came from",
    ("source",),
)
for _source in ("cache", "database"):
    LATEST.inc(0, source=_source)
_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
_NO_ROUTE = "none"


class Counting:
    """Counts what passes; the outermost layer, so that refusals are counted too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            # Templates, not paths: there are as many paths as anybody cares to ask for.
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            REQUESTS.inc(method=method, route=route, status=str(status))
            SECONDS.observe(time.perf_counter() - began, route=route)
