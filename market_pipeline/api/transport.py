"""Layers between the server and the routes: HEAD, compression, and other sites' pages.

Plain ASGI layers. Not here: who may ask (``security``), formats and tags (``media``).
"""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from market_pipeline.api.media import MEDIA_TYPES

# Below it a packet carries the answer anyway, and the fast path's answers are as long.
_LEAST_BYTES = 4_096
# 1 MB of bars as JSON becomes 110 kB in 7 ms. Level 9 takes 18 ms, and saves 8 % of that.
_LEVEL = 4
_COMPRESSED = (MEDIA_TYPES["parquet"], MEDIA_TYPES["arrow"])
_ASKED = ("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Prefer", "Range")
_TOLD = (
    "Age", "Content-Range", "ETag", "Idempotency-Replayed", "Location", "Retry-After",
    "X-Dataset-Version", "X-Next-Cursor", "X-Source",
)  # fmt: skip
# Its GET starts a run.
_NOT_FOR_HEAD = frozenset({"/api/cron"})


def compress_answers(app: FastAPI) -> None:
    """Send long answers compressed to clients that accept gzip; tags are weak and stay."""
    excluded = (*DEFAULT_EXCLUDED_CONTENT_TYPES, *_COMPRESSED)
    app.add_middleware(
        GZipMiddleware,
        minimum_size=_LEAST_BYTES,
        compresslevel=_LEVEL,
        exclude_content_types=excluded,
    )


def let_sites_in(app: FastAPI, origins: frozenset[str]) -> None:
    """Let pages of these sites ask and read the answers; they send a token, and no cookie."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(origins),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=_ASKED,
            expose_headers=_TOLD,
        )


class HeadAsGet:
    """Answers HEAD with the headers of GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, HEAD as a GET without the body."""
        if scope["type"] != "http" or scope["method"] != "HEAD" or scope["path"] in _NOT_FOR_HEAD:
            await self._app(scope, receive, send)
            return
        # A copy: the server must still see HEAD, and the layer that counts the route.
        asked = {**scope, "method": "GET"}

        async def send_headers(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        try:
            await self._app(asked, receive, send_headers)
        finally:
            scope["route"] = asked.get("route")
