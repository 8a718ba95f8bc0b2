"""A webhook's receiver on loopback: keeps what it is sent, answers as told."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET_PATH = "s3cret-path"  # noqa: S105 - made up


@dataclass(frozen=True, slots=True)
class Post:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        """Return its JSON."""
        found: dict[str, Any] = json.loads(self.raw)
        return found


@dataclass
class Receiver:
    """What came, and how the next ones are answered.

    Attributes:
        address: Where it listens. posts: What came.
        status, headers, says: Of answers. delay: Seconds before an answer.
    """

    address: str = ""
    posts: list[Post] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    says: str = ""

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Return the JSON of what came."""
        return [post.body for post in self.posts]

    @property
    def ids(self) -> list[str]:
        """Return the webhook-id of what came."""
        return [post.headers["webhook-id"] for post in self.posts]


@contextmanager
def serve_receiver() -> Iterator[Receiver]:
    """Serve one until the block ends."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.posts.append(Post(self.command, self.path, headers, raw))
            time.sleep(receiver.delay)
            self.send_response(receiver.status)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            body = receiver.says.encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815 - the server's name for it

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    receiver.address = f"http://127.0.0.1:{server.server_port}/{SECRET_PATH}"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
