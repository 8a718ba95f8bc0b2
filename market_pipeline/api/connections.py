"""Limits of a connection, before and between requests.

uvicorn limits neither the bytes nor the time of a header, and counts a connection only when a
header is complete. This protocol does both. It is the one place that builds on uvicorn's own
protocol, whose methods and attributes are not a published interface. Not here: limits of a request
(``security``); limits by address, which are the proxy's task.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

_RETRY_SECONDS = 5
_MOST_AHEAD = 50


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of a connection, and how many may be open.

    A message is a header with its body and trailers. A header's time counts from a connection, or
    from its first byte, to its end; a body's from the header to its end.
    """

    header_bytes: int = 32 * 1024
    message_bytes: int = 1024 * 1024
    header_seconds: float = 10.0
    body_seconds: float = 40.0
    connections: int = 500


def bound_connections(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """Return the protocol of one server, for uvicorn's ``http``."""
    return type("BoundProtocol", (_BoundProtocol,), {"limits": limits, "waiting": {}})


class _BoundPipeline(deque[Any]):
    """The requests of one connection that wait for the answers to those before them."""

    def appendleft(self, request: Any, /) -> None:
        if len(self) >= _MOST_AHEAD:
            raise ValueError("too many requests ahead of their answers")
        super().appendleft(request)


class _BoundProtocol(HttpToolsProtocol):
    """HTTP/1.1 within limits; of connections that only wait, the oldest gives way to a new one.

    Every request passes here, and few wait. So what is known of a request is read from uvicorn's
    state, and a timer runs only while the other side is to send more.
    """

    limits: ClassVar[ConnectionLimits]
    # In order of arrival: the connections on which the other side is to send something.
    waiting: ClassVar["dict[_BoundProtocol, None]"]

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.pipeline = _BoundPipeline()
        self._timer: asyncio.TimerHandle | None = None
        self.taken_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(self.limits.header_seconds)
        if len(self.connections) > self.limits.connections:
            oldest = next(iter(self.waiting))
            oldest.give_way(503 if oldest is self else None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if len(data) > self.limits.header_bytes:
            self._take_apart(data)
            return
        before = self.cycle
        self.taken_bytes += len(data)
        super().data_received(data)
        cycle = self.cycle
        has_header = cycle is not None and cycle.scope is self.scope
        is_at_work = has_header and not (cycle.more_body or cycle.response_complete)
        if is_at_work or cycle is not before:
            self._end_wait()
        if not is_at_work:
            self._expect_rest(has_header and cycle.more_body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.taken_bytes = 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self.waiting[self] = None

    def give_way(self, status: int | None) -> None:
        """Close a connection that waits, with an answer where nothing else is being answered."""
        self._end_wait()
        if status is not None and (self.cycle is None or self.cycle.response_complete):
            retry = b"retry-after: %d\r\n" % _RETRY_SECONDS if status == 503 else b""
            ending = b"content-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + retry + ending)
        self.transport.close()

    def _take_apart(self, data: bytes) -> None:
        """Take data in pieces that are no longer than a header may be."""
        step = self.limits.header_bytes
        for start in range(0, len(data), step):
            if not self.transport.is_closing():
                self.data_received(data[start : start + step])

    def _expect_rest(self, is_body: bool) -> None:
        """Wait for the rest of a body, or of a header, unless there was too much of it."""
        limits = self.limits
        if self.taken_bytes > (limits.message_bytes if is_body else limits.header_bytes):
            self.give_way(413 if is_body else 431)
        elif self._timer is None and not self.transport.is_closing():
            self._wait(limits.body_seconds if is_body else limits.header_seconds)

    def _wait(self, seconds: float) -> None:
        self.waiting[self] = None
        self._timer = self.loop.call_later(seconds, self.give_way, 408)

    def _end_wait(self) -> None:
        self.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: a stranger would fill the log."""
