"""A webserver as Dagster's that answers one question after the other, and each of them late."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID, uuid4


@dataclass
class SlowWebserver:
    """What it was asked, and what it answers.

    Attributes:
        address: Where it listens. delay: Seconds that each answer takes.
        looks_until_end: After how many questions about a run the run has ended.
        launched: The runs it was told to start. looks: How often it was asked about a run.
        most_at_once: How many of those questions waited at the same time.
    """

    address: str = ""
    delay: float = 0.1
    looks_until_end: int = 5
    launched: list[UUID] = field(default_factory=list)
    looks: int = 0
    most_at_once: int = 0
    _waiting: int = 0
    _count: threading.Lock = field(default_factory=threading.Lock)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, query: str) -> dict[str, Any]:
        """Return the data that a question is answered with, when its turn has come."""
        is_look = "runOrError" in query
        self._note(is_look, 1)
        with self._turn:
            time.sleep(self.delay)
        self._note(is_look, -1)
        if "launchRun" in query:
            self.launched.append(uuid4())
            run = {"runId": str(self.launched[-1])}
            return {"launchRun": {"__typename": "LaunchRunSuccess", "run": run}}
        return self._tell_run() if is_look else self._tell_queue()

    def _note(self, is_look: bool, change: int) -> None:
        with self._count:
            self._waiting += change if is_look else 0
            self.most_at_once = max(self.most_at_once, self._waiting)
            self.looks += is_look and change > 0

    def _tell_run(self) -> dict[str, Any]:
        if self.looks < self.looks_until_end:
            return {"runOrError": {"__typename": "Run", "status": "STARTED", "endTime": None}}
        return {"runOrError": {"__typename": "Run", "status": "SUCCESS", "endTime": time.time()}}

    def _tell_queue(self) -> dict[str, Any]:
        status = {"daemonType": "QUEUED", "required": True, "lastHeartbeatTime": time.time()}
        return {
            "runsOrError": {"__typename": "Runs", "count": 0},
            "instance": {"daemonHealth": {"allDaemonStatuses": [status]}},
        }


@contextmanager
def serve_slowly(**options: Any) -> Iterator[SlowWebserver]:
    """Serve one until the block ends."""
    slow = SlowWebserver(**options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"data": slow.answer(asked["query"])}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    slow.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield slow
    finally:
        server.shutdown()
        server.server_close()
