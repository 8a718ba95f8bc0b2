"""What a measurement is given, and how one is listed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bar_table import prepare_markets
from benchmarks.database import Database, open_database
from benchmarks.figures import Figure
from benchmarks.rounds import Report


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how much is measured.

    Attributes:
        server_url: The server; every measurement has a database of its own there.
        folder: For prepared files, enterable by the server's account.
        rows: Bars in the full table.
        rounds: How often each way takes its turn.
        report: Is told what goes on.
    """

    server_url: str
    folder: Path
    rows: int
    rounds: int
    report: Report

    @contextmanager
    def open_database(self) -> Iterator[Database]:
        """Create a database with the product's tables and the markets of the bars."""
        with open_database(self.server_url) as database:
            prepare_markets(database)
            yield database


@dataclass(frozen=True, slots=True)
class Measurement:
    """Figures that are measured together; only the wanted ones cost time.

    Attributes:
        title: What is measured, in a few words.
        figures: The names of what it yields.
        measure: Yields the wanted figures.
        needs: Modules of the extra ``bench`` by figure.
    """

    title: str
    figures: tuple[str, ...]
    measure: Callable[[Bench, frozenset[str]], Iterator[Figure]]
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
