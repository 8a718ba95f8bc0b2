"""Processes of the tests' own, which do a step when told to and can be suspended or killed.

Commands of the project are run by ``system/processes.py``. Both show what the process printed when
a test waits for it in vain.
"""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 300.0


@dataclass(frozen=True)
class Child:
    """A process that runs ``work(pipe, *arguments)``, at the other end of a pipe."""

    process: BaseProcess
    pipe: Connection
    log: Path

    def hear(self) -> Any:
        """Return the next thing it says."""
        try:
            assert self.pipe.poll(ANSWER_SECONDS), f"the child says nothing:\n{self.read_log()}"
            return self.pipe.recv()
        except EOFError:
            raise AssertionError(f"the child ended:\n{self.read_log()}") from None

    def read_log(self) -> str:
        """Return the end of what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-3_000:]

    def tell(self, word: object = "go") -> None:
        """Say something to it."""
        self.pipe.send(word)

    def send_signal(self, number: signal.Signals) -> None:
        """Suspend it, let it go on, or kill it."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@contextmanager
def start_child(
    work: Callable[..., None], *arguments: object, method: str = "spawn"
) -> Iterator[Child]:
    """Start a process on a function of a module; it is gone when the block ends.

    It is a fresh interpreter, or with ``forkserver`` a fork of one that has imported what was named
    to it, and done nothing else.
    """
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    with tempfile.NamedTemporaryFile(prefix="mp-child-") as log:
        told = (log.name, work, theirs, *arguments)
        process = context.Process(target=_work_with_a_log, args=told, daemon=True)
        process.start()
        theirs.close()
        try:
            yield Child(process, ours, Path(log.name))
        finally:
            process.kill()
            process.join()
            ours.close()


def _work_with_a_log(log: str, work: Callable[..., None], *arguments: object) -> None:
    """Do the work with everything that is printed in a file, tracebacks included."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    work(*arguments)
