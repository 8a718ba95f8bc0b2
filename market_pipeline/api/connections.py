"""Limits of a connection, before and between requests.

uvicorn limits neither the bytes nor the time of a header, and counts a connection only when a
header is complete. This protocol does both. It is the one place that builds on uvicorn's own
protocol, whose methods and attributes are not a published interface. Not here: limits of a request
(``security``); limits by address, which are the proxy's task.
"""

import asyncio
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
    members = {"limits": limits, "waiting": {}}
    return type("BoundProtocol", (_BoundProtocol,), members)


class _BoundProtocol(HttpToolsProtocol):
    """HTTP/1.1 within limits; of connections that only wait, the oldest gives way to a new one."""

    limits: ClassVar[ConnectionLimits]
    # In order of arrival: the connections on which the other side is to send something.
    waiting: ClassVar["dict[_BoundProtocol, None]"]

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._timer: asyncio.TimerHandle | None = None
        self._taken_bytes = 0
        self._has_header = self._is_whole = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.waiting[self] = None
        self._start_timer()
        if len(self.connections) > self.limits.connections:
            oldest = next(iter(self.waiting))
            oldest.give_way(503 if oldest is self else None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting.pop(self, None)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        step = self.limits.header_bytes
        for start in range(0, len(data), step):
            if not self.transport.is_closing():
                self._take(data[start : start + step])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_header = self._is_whole = False

    def on_headers_complete(self) -> None:
        self._has_header = True
        self._stop_timer()
        if len(self.pipeline) >= _MOST_AHEAD:
            raise ValueError("too many requests ahead of their answers")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._has_header, self._is_whole = False, True
        self._taken_bytes = 0
        self.waiting.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_idle() and not self.transport.is_closing():
            self.waiting[self] = None

    def give_way(self, status: int | None) -> None:
        """Close a connection that waits, with an answer where nothing else is being answered."""
        self.waiting.pop(self, None)
        if status is not None and self._is_idle():
            retry = b"retry-after: %d\r\n" % _RETRY_SECONDS if status == 503 else b""
            ending = b"content-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + retry + ending)
        self.transport.close()

    def _take(self, piece: bytes) -> None:
        """Hand a piece on; it is no longer than a header may be."""
        self._taken_bytes += len(piece)
        super().data_received(piece)
        if self._is_whole and not self._is_idle():
            self._stop_timer()
        elif not self._has_header and self._taken_bytes > self.limits.header_bytes:
            self.give_way(431)
        elif self._taken_bytes > self.limits.message_bytes:
            self.give_way(413)
        elif self._timer is None and not self.transport.is_closing():
            self._start_timer()

    def _is_idle(self) -> bool:
        """Tell whether nothing is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        limits = self.limits
        seconds = limits.body_seconds if self._has_header else limits.header_seconds
        self._timer = self.loop.call_later(seconds, self.give_way, 408)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: a stranger would fill the log."""
