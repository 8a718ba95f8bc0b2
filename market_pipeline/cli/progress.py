"""The progress of a run on a terminal: a bar by bars, or a bar by markets with words.

Bars are counted in the run's receipt, whatever process does the work; markets as their lines come.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, Self, TextIO
from uuid import UUID

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from market_pipeline.cli.database import open_database
from market_pipeline.observability.logs import escape_controls, read_context
from market_pipeline.observability.redaction import redact
from market_pipeline.settings import read_log_level

PERIOD_SECONDS = 0.3
_BAR_WIDTH = 20
_STEPS = {
    "markets": "Registering markets",
    "market_aggregates": "Fetching bars",
    "market_aggregates_checks": "Checking the bars",
    "market_snapshots": "Fetching prices",
    "market_comparisons": "Comparing markets",
    "market_roi_statistics": "Computing statistics",
    "latest_market_cache": "Refreshing the cache",
    "output_checks": "Checking the statistics",
}


def is_terminal() -> bool:
    """Tell whether somebody watches."""
    return sys.stderr.isatty()


@contextmanager
def show_progress(run_id: UUID, expected: int) -> Iterator[None]:
    """Show a bar of bars on a terminal while a run goes on; the receipt tells how far it is."""
    if not expected or not is_terminal():
        yield
        return
    stop = Event()
    thread = Thread(target=_follow, args=(run_id, expected, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(run_id: UUID, expected: int, stop: Event) -> None:
    from market_pipeline.storage.runs.receipts import count_received

    columns = (TextColumn("bars"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console) as shown, open_database() as engine:
        task = shown.add_task("bars", total=expected)
        is_over = False
        while not is_over:
            is_over = stop.wait(PERIOD_SECONDS)
            with engine.connect() as connection:
                received = count_received(connection, run_id)
            shown.update(task, completed=min(received, expected))


@contextmanager
def display_run() -> "Iterator[RunDisplay | None]":
    """Show a line on a terminal that says what a run does; None where nobody watches.

    LOG_LEVEL=debug shows Dagster's own log instead.
    """
    if not is_terminal() or read_log_level() == "debug":
        yield None
        return
    # A copy: while a step runs, Dagster takes what is written to stderr into the step's log.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as stream, RunDisplay(stream) as display:
        yield display


class RunDisplay(logging.Handler):
    """One line of a terminal, which changes as a run goes on; warnings stay above it.

    What concerns one market is in the summary that follows, and is not said twice.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._done = 0
        self._expected = 0
        self._shown = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(_BAR_WIDTH),
            TextColumn("{task.fields[counted]}"),
            TimeElapsedColumn(),
            TextColumn(
                "{task.fields[told]}", markup=False, table_column=Column(ratio=1, no_wrap=True)
            ),
            console=Console(file=stream), transient=True, expand=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._task = self._shown.add_task("Checking the settings", total=None, counted="", told="")

    def __enter__(self) -> Self:
        """Begin to show."""
        self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing of the line."""
        self._shown.stop()

    def say(self, doing: str) -> None:
        """Show what is being done from now on."""
        total = self._expected if doing == _STEPS["market_aggregates"] else None
        counted = f"{self._done}/{total}" if total else ""
        self._shown.reset(self._task, total=total, description=doing, counted=counted, told="")
        self._shown.refresh()

    def keep(self, text: str) -> None:
        """Print a line that stays, above the one that changes."""
        self._shown.console.print(Text(text))

    def expect(self, markets: int) -> None:
        """Say how many markets the bar stands for, while bars are fetched."""
        self._expected = markets

    def filter(self, record: logging.LogRecord) -> bool:
        """Of Dagster's events only the beginning of a step; errors are the run's causes."""
        happened = _get_event(record)
        is_step = happened is not None and happened.event_type_value == "STEP_START"
        return is_step or (happened is None and logging.INFO <= record.levelno < logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        """Show what a step says."""
        if (happened := _get_event(record)) is not None:
            self.say(_STEPS.get(happened.step_key, str(happened.step_key)))
        else:
            about = read_context()
            text = redact(escape_controls(record.dagster_meta["orig_message"]))  # type: ignore[attr-defined]
            self._show_text(text, about, is_warning=record.levelno >= logging.WARNING)

    def _show_text(self, text: str, about: Mapping[str, Any], *, is_warning: bool) -> None:
        if is_warning and "market" not in about:
            self.keep(text)
            return
        if about.get("done"):
            self._done += about["done"]
            done = self._done
            self._shown.update(self._task, completed=done, counted=f"{done}/{self._expected}")
        self._shown.update(self._task, told=text, refresh=True)


def _get_event(record: logging.LogRecord) -> Any:
    """Return the event of Dagster that a record tells, if it does."""
    return getattr(record, "dagster_meta", {}).get("dagster_event")
