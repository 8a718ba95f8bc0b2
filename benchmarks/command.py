"""The command: which figures are measured, and how they are shown."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks import (
    analytics,
    fetching,
    history,
    jobs,
    latest,
    memory,
    mock_tick,
    planning,
    reading,
    serving,
    shards,
    small_batches,
    waves,
    write_path,
)
from benchmarks.bench import Bench, Measurement
from benchmarks.database import describe_server, find_server, open_folder
from benchmarks.figures import RESULTS, TARGETS, Figure, write_figures
from market_pipeline.settings import load_dotenv

MEASUREMENTS: tuple[Measurement, ...] = (
    write_path.MEASUREMENT,
    small_batches.MEASUREMENT,
    memory.MEASUREMENT,
    jobs.INGEST,
    waves.TICKS,
    waves.FILL,
    shards.MEASUREMENT,
    fetching.MEASUREMENT,
    jobs.IMPORT,
    analytics.ROI,
    analytics.PAIRS,
    latest.MEASUREMENT,
    planning.MEASUREMENT,
    history.BACKFILL,
    history.AS_OF,
    reading.MEASUREMENT,
    history.RESTATEMENT,
    serving.LATEST,
    serving.METRICS,
    serving.READERS,
    mock_tick.MEASUREMENT,
)
_LIBRARIES = ("dagster", "pandas", "numpy", "SQLAlchemy", "psycopg2-binary", "dlt", "pangres")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME,...]")
@click.option("--list", "is_list", is_flag=True, help="List the figures and their targets.")
@click.option("--rows", default=1_000_000, show_default=True, help="Bars in the full table.")
@click.option("--rounds", default=5, show_default=True, help="How often each way takes its turn.")
@click.option(
    "--output",
    default=RESULTS / "latest.json",
    show_default="benchmarks/results/latest.json",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the figures are written.",
)
def main(names: Sequence[str], is_list: bool, rows: int, rounds: int, output: Path) -> None:
    """Measure the named figures, or all, on the embedded PostgreSQL or DATABASE_URL."""
    console = Console()
    if is_list:
        console.print(_build_list())
        return
    wanted = parse_names(names)
    _refuse_missing(wanted)
    load_dotenv()
    with open_folder() as folder:
        bench = Bench(find_server(folder), folder, rows, rounds, console.log)
        machine = f"{describe_machine()}; {describe_server(bench.server_url)}"
        console.log(machine)
        figures = measure(bench, wanted, output)
    console.print(build_table(figures, machine))
    console.print(f"Written to {output}")


def parse_names(words: Sequence[str]) -> frozenset[str]:
    """Return the wanted figures; ``ONLY=`` before a name is what make passes on.

    Raises:
        click.BadParameter: There is no such figure.
    """
    known = [name for one in MEASUREMENTS for name in one.figures]
    parts = [part.strip() for word in words for part in word.removeprefix("ONLY=").split(",")]
    names = [part for part in parts if part]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
    return frozenset(names or known)


def measure(bench: Bench, wanted: frozenset[str], output: Path) -> list[Figure]:
    """Return the wanted figures; what is known is written after every measurement."""
    figures: list[Figure] = []
    for one in MEASUREMENTS:
        chosen = wanted & frozenset(one.figures)
        if not chosen:
            continue
        bench.report(f"measuring {one.title}")
        figures.extend(one.measure(bench, chosen))
        write_figures(figures, output)
    return figures


def describe_machine() -> str:
    """Return cores, interpreter and the versions that matter."""
    versions = [f"{name} {_find_version(name)}" for name in _LIBRARIES]
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(versions)}"


def _find_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _refuse_missing(wanted: frozenset[str]) -> None:
    needed = {
        module
        for one in MEASUREMENTS
        for name, modules in one.needs.items()
        for module in modules
        if name in wanted
    }
    missing = sorted(module for module in needed if find_spec(module) is None)
    if missing:
        raise click.ClickException(
            f"{', '.join(missing)} not installed: run make bench, or pip install -e '.[bench]'"
        )


def build_table(figures: Sequence[Figure], title: str) -> Table:
    """Return the figures beside their targets."""
    table = Table(title=title)
    for heading, justify in (("figure", "left"), ("value", "right"), ("unit", "left")):
        table.add_column(heading, justify="right" if justify == "right" else "left")
    for heading in ("target", "", "runs"):
        table.add_column(heading)
    for figure in figures:
        target = TARGETS.get(figure.name)
        mark = "" if target is None else "✔" if target.is_met(figure.value) else "✘"
        shown = "" if target is None else str(target)
        table.add_row(
            figure.name, f"{figure.value:.4g}", figure.unit, shown, mark, str(figure.runs)
        )
    return table


def _build_list() -> Table:
    table = Table("figure", "target", "of")
    for one in MEASUREMENTS:
        for name in one.figures:
            table.add_row(name, str(TARGETS.get(name, "")), one.title)
    return table
