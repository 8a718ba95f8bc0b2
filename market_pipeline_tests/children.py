"""Processes of the tests' own, which do a step when told to and can be suspended or killed."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Child:
    """A process that runs ``work(pipe, *arguments)``, at the other end of a pipe."""

    process: BaseProcess
    pipe: Connection

    def hear(self) -> Any:
        """Return the next thing it says."""
        assert self.pipe.poll(ANSWER_SECONDS), "the child says nothing"
        return self.pipe.recv()

    def tell(self, word: object = "go") -> None:
        """Say something to it."""
        self.pipe.send(word)

    def send_signal(self, number: signal.Signals) -> None:
        """Suspend it, let it go on, or kill it."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@contextmanager
def start_child(work: Callable[..., None], *arguments: object) -> Iterator[Child]:
    """Start a fresh interpreter on a function of a module; it is gone when the block ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Child(process, ours)
    finally:
        process.kill()
        process.join()
        ours.close()
