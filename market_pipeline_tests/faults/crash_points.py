"""Something that happens at a given point of a run: before its n-th statement or commit."""

import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, event

SEEDS = range(int(os.environ.get("SEEDS", "3")))
"""Each draws one point; a failing one is run again by its name."""


class Points:
    """Counts the points of an engine's work, or of every engine's, and acts at one of them.

    Attributes:
        count: How many there were so far.
    """

    def __init__(
        self, engine: Engine | type[Engine], at: int = -1, act: Callable[[], None] | None = None
    ) -> None:
        self.count, self._at, self._act = 0, at, act
        event.listen(engine, "before_cursor_execute", self._pass)
        event.listen(engine, "commit", self._pass)

    def _pass(self, *_: Any) -> None:
        self.count += 1
        if self.count == self._at and self._act is not None:
            self._act()


def draw_point(seed: int, count: int) -> int:
    """Return one of so many points, the first being 1."""
    return random.Random(seed).randint(1, count)  # noqa: S311 - not a secret


def wait_for_death(child: Any) -> None:
    """Wait until a child that is to be killed is gone."""
    with suppress(EOFError):
        assert child.pipe.poll(300), child.read_log()
        pytest.fail(f"the child said {child.pipe.recv()}")
    child.process.join(60)
    assert child.process.exitcode == -signal.SIGKILL, child.read_log()
