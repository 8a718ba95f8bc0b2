"""A proxy before PostgreSQL that loses an answer on purpose: the server did what it was told to.

It hands everything on, until the server has answered the message that it waits for. Then that
answer is lost: the client's connection is reset, or it hears nothing more (a black hole).
"""

import contextlib
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event, Lock, Thread

COMMIT = b"COMMIT\0"
_ENDS = COMMIT, b"ROLLBACK\0"
RESET, BLACK_HOLE = "reset", "black hole"
_ABRUPTLY = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST, and nothing that waits."""


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        port: Where it listens. lost: Set once an answer was lost.
    """

    port: int
    lost: Event = field(default_factory=Event)
    _waits_for: bytes = b""
    _after: bytes = b""
    _how: str = RESET
    _lock: Lock = field(default_factory=Lock)
    _clients: list[socket.socket] = field(default_factory=list)

    def lose_answer(self, message: bytes, how: str, after: bytes = b"") -> None:
        """Lose the answer to the next message that contains these bytes, once.

        Args:
            message: What the client sends.
            how: ``RESET`` or ``BLACK_HOLE``.
            after: A pattern of what the client has sent before, in the same transaction.
        """
        with self._lock:
            self.lost.clear()
            self._waits_for, self._how, self._after = message, how, after

    def meets(self, sent: bytes, message: bytes) -> bool:
        """Tell whether the answer to a message is the one to lose, once; ``sent`` came before."""
        with self._lock:
            is_met = self._waits_for and self._waits_for in message
            is_met = is_met and re.search(self._after, sent, re.DOTALL)
            if is_met:
                self._waits_for = b""
            return bool(is_met)

    def reset_all(self) -> None:
        """Reset every connection: a network that fails."""
        for client in self._clients:
            _reset(client)

    def serve(self, client: socket.socket, server: socket.socket) -> None:
        """Hand on what both say until one of them ends."""
        self._clients.append(client)
        is_deaf = Event()
        back = Thread(target=_pump, args=(server, client, is_deaf), daemon=True)
        back.start()
        sent = b""
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                is_lost = self.meets(sent, data)
                if is_lost:
                    is_deaf.set()
                server.sendall(data)
                if is_lost:
                    self._lose(client, server)
                sent = b"" if any(end in data for end in _ENDS) else sent + data
        for end in (server, client):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _lose(self, client: socket.socket, server: socket.socket) -> None:
        # The server's session ends by itself, once it has done all that it was sent.
        server.shutdown(socket.SHUT_WR)
        self.lost.set()
        if self._how == RESET:
            _wait_for_end(server)
            _reset(client)
        else:
            while client.recv(1 << 16):
                pass


def _wait_for_end(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while server.recv(1 << 16):
            pass


def _reset(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABRUPTLY)
        client.close()


def _pump(source: socket.socket, target: socket.socket, is_deaf: Event) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            if is_deaf.is_set():
                continue
            target.sendall(data)
        if not is_deaf.is_set():
            target.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def run_proxy(target: str | tuple[str, int]) -> Iterator[Proxy]:
    """Run a proxy before a server's socket file, or its host and port."""
    with socket.create_server(("127.0.0.1", 0)) as ear:
        proxy = Proxy(ear.getsockname()[1])
        Thread(target=_accept, args=(proxy, ear, target), daemon=True).start()
        try:
            yield proxy
        finally:
            ear.shutdown(socket.SHUT_RDWR)
            proxy.reset_all()


def _accept(proxy: Proxy, ear: socket.socket, target: str | tuple[str, int]) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = ear.accept()
            family = socket.AF_UNIX if isinstance(target, str) else socket.AF_INET
            server = socket.socket(family)
            try:
                server.connect(target)
            except OSError:
                _reset(client)
                continue
            Thread(target=proxy.serve, args=(client, server), daemon=True).start()
