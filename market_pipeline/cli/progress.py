"""A progress bar that follows a run's receipt, whatever process does the work."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import TracebackType
from typing import Self
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from market_pipeline.cli.database import open_database
from market_pipeline.storage.runs.receipts import count_received

PERIOD_SECONDS = 0.3


def is_terminal() -> bool:
    """Tell whether somebody watches."""
    return sys.stderr.isatty()


@contextmanager
def show_progress(run_id: UUID, expected: int) -> Iterator[None]:
    """Show a bar on a terminal while a run goes on; the receipt tells how far it is."""
    if not expected or not is_terminal():
        yield
        return
    with BarProgress(run_id, expected):
        yield


class BarProgress:
    """Counts the bars that a run has received, on stderr.

    Args:
        run_id: The run.
        expected: How many bars the plan expects.
    """

    def __init__(self, run_id: UUID, expected: int) -> None:
        self._run_id, self._expected = run_id, expected
        self._stop = Event()
        self._thread = Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        """Begin to follow."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        columns = (TextColumn("bars"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with (
            Progress(*columns, console=Console(stderr=True)) as shown,
            open_database() as engine,
        ):
            task = shown.add_task("bars", total=self._expected)
            is_over = False
            while not is_over:
                is_over = self._stop.wait(PERIOD_SECONDS)
                with engine.connect() as connection:
                    received = count_received(connection, self._run_id)
                shown.update(task, completed=min(received, self._expected))
