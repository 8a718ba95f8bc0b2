"""TLS before a server that has none, with a certificate of an authority made for the test."""

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import trustme

_PIECE_BYTES = 65_536


class TlsFront:
    """Takes TLS connections on a port of its own and passes them to a server on loopback.

    Args:
        port: Of the server.
        folder: Where the authority's certificate is put.
        name: Whom the certificate is for.
    """

    def __init__(self, port: int, folder: Path, name: str = "127.0.0.1") -> None:
        authority = trustme.CA()
        self._folder, self._port = folder, port
        authority.cert_pem.write_to_path(str(self.authority))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(self._context)
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def authority(self) -> Path:
        """The certificate of whoever vouches for it."""
        return self._folder / "authority.pem"

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1."""
        return int(self._listening.getsockname()[1])

    @property
    def url(self) -> str:
        """Its address, with the authority to trust."""
        return f"{self.url_of_strangers}?ssl_ca_certs={self.authority}"

    @property
    def url_of_strangers(self) -> str:
        """Its address, for who trusts the system's authorities alone."""
        return f"rediss://127.0.0.1:{self.port}/0"

    def close(self) -> None:
        """Take no more connections."""
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):  # Closed.
            while True:
                plain, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with (
            suppress(OSError),
            self._context.wrap_socket(plain, server_side=True) as outer,
            socket.create_connection(("127.0.0.1", self._port)) as inner,
        ):
            back = threading.Thread(target=_pass_on, args=(inner, outer), daemon=True)
            back.start()
            _pass_on(outer, inner)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
