"""Commands that run in the background, and the proof that nothing of them is left.

Every process is found by a mark in its environment, which children inherit whatever session or
parent they end up with. What only waits for a condition is here too: poll with a deadline.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

MARK = "MARKET_PIPELINE_TEST_MARK"
STOP_SECONDS = 300.0
POLL_SECONDS = 0.2
# Whoever kills the tests with -9 ends their processes as well; and a shell that started the tests
# with `&` has ignored SIGINT for them, which Dagster's commands need.
GUARDED = ("setpriv", "--pdeathsig=TERM", "env", "--default-signal=INT,TERM")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Background:
    """A running command: its process, what it prints, and the mark of all its descendants."""

    process: subprocess.Popen[bytes]
    log: Path
    mark: str

    def read_log(self) -> str:
        """Return all that the command has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def read_last_words(self) -> str:
        """Return the end of what the command has printed."""
        return self.read_log()[-3_000:]

    def list_processes(self) -> list[str]:
        """Return the command lines of the command and its descendants that still run."""
        return [read_command_line(pid) for pid in find_marked(self.mark)]

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the command and its descendants; SIGKILL: as a machine that stops."""
        for pid in find_marked(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> int:
        """Ask the command to end, as a service manager does, and return its exit code."""
        self.process.terminate()
        return self.process.wait(STOP_SECONDS)

    def check_running(self) -> None:
        """Fail with the command's last words if it has ended."""
        assert self.process.poll() is None, f"it ended:\n{self.read_last_words()}"


@contextlib.contextmanager
def run_in_background(
    command: Sequence[str], environment: Mapping[str, str], folder: Path
) -> Iterator[Background]:
    """Run a command with its output in a file; at the end it and all its descendants are gone."""
    mark = uuid4().hex
    log = folder / f"{Path(command[0]).name}-{mark[:6]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*GUARDED, *command],
            env={**environment, MARK: mark}, cwd=folder, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    running = Background(process, log, mark)
    try:
        yield running
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.stop()
        running.signal_all(signal.SIGKILL)
        process.wait(STOP_SECONDS)


def find_marked(mark: str) -> list[int]:
    """Return the ids of running processes whose environment bears a mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def read_command_line(pid: int) -> str:
    """Return a process's command line, "" if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def wait_for(
    question: Callable[[], Value], seconds: float, doing: str, alive: Background | None = None
) -> Value:
    """Ask until the answer is truthy, and return it.

    Raises:
        AssertionError: The deadline passed, or the command that is waited for ended.
    """
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        if alive is not None:
            alive.check_running()
        if time.monotonic() > deadline:
            words = alive.read_last_words() if alive is not None else ""
            raise AssertionError(f"waited {seconds:.0f} s for {doing}\n{words}")
        time.sleep(POLL_SECONDS)
    return answer
