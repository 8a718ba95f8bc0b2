"""``market-pipeline export``: final bars as files, one for each market and interval."""

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from market_pipeline.cli.options import (
    STORED_SYMBOLS,
    TO,
    check_span,
    check_with,
    make_from_option,
    parse_time,
)
from market_pipeline.domain.errors import NothingKnownYetError, SettingError

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Connection

INTERVALS = ("1h", "1d", "1w")
_BEGINNING = "1970-01-01"
_EPILOG = """\b
Examples:
  market-pipeline export --out bars
  market-pipeline export --format csv --interval 1d --interval 1w --symbols BTC-USD --out bars
  market-pipeline export --from 2024-01-01 --as-of 2024-06-01 --out bars   # as it was known then
  market-pipeline export --from 2024-01-01 --require complete --out bars   # all bars, or no file

A file is written beside its place and moved there when it is whole. Files of markets that have no
such bars are not written.
"""


@click.command(epilog=_EPILOG, short_help="Write final bars as Parquet, CSV or Arrow files.")
@click.option(
    "--format", "kind", type=click.Choice(["parquet", "csv", "arrow"]), default="parquet",
    show_default=True, help="Of the files.",
)  # fmt: skip
@click.option(
    "--interval", "intervals", type=click.Choice(INTERVALS), multiple=True, default=["1d"],
    show_default=True, help="Length of the bars; may be given several times.",
)  # fmt: skip
@click.option(
    "--out", "folder", required=True, type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the files; made if missing.",
)  # fmt: skip
@STORED_SYMBOLS
@make_from_option(is_required=False)
@TO
@click.option(
    "--as-of", metavar="TIME", callback=check_with(parse_time), help="The values known at a time."
)
@click.option("--version", type=click.IntRange(0), help="The values of a dataset version.")
@click.option(
    "--require", type=click.Choice(["complete", "explained"]),
    help="Write nothing if expected bars are missing; explained: unless they never come.",
)  # fmt: skip
def export(
    kind: str,
    intervals: tuple[str, ...],
    folder: Path,
    symbols: list[str] | None,
    history_from: str | None,
    history_to: str | None,
    as_of: str | None,
    version: int | None,
    require: str | None,
) -> None:
    """Write final bars as files: FOLDER/PROVIDER_SYMBOL_INTERVAL.FORMAT, a market each.

    All files are of the same dataset version.
    """
    from market_pipeline.cli.database import open_database
    from market_pipeline.readers.opening import open_snapshot
    from market_pipeline.readers.resolve import find_markets, read_all_markets

    if as_of is not None and version is not None:
        raise SettingError("--as-of and --version exclude each other: give one of them")
    if require is not None and history_from is None:
        raise SettingError(f"--require {require}: set --from as well, as history has a beginning")
    check_span(history_from or _BEGINNING, history_to)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = f"{error.strerror}; name another folder"
        raise SettingError(f"--out {str(folder)!r}: {cause}") from None
    span = (history_from or _BEGINNING, history_to or datetime.now(UTC).isoformat())
    with open_database() as engine, open_snapshot(engine) as connection:
        found = find_markets(connection, symbols) if symbols else read_all_markets(connection)
        names = [f"{market.provider}:{market.symbol}" for market in found.values()]
        question = {"as_of": as_of, "version": version}
        tasks = [(name, interval) for name in names for interval in intervals]
        for name, interval in tasks if require else ():
            _read_bars(connection, name, interval, span, {**question, "require": require})
        files = rows = 0
        for name, interval in _show_progress(tasks):
            bars = _read_bars(connection, name, interval, span, question)
            if len(bars):
                _write(folder / _name_file(name, interval, kind), bars, kind)
                files, rows = files + 1, rows + len(bars)
    click.echo(f"{rows:,} bars in {files} files in {folder}")
    if not files:
        raise SettingError("there are no such bars: `market-pipeline coverage` shows what is there")


def _read_bars(
    connection: "Connection",
    name: str,
    interval: str,
    span: tuple[str, str],
    question: dict[str, Any],
) -> "pd.DataFrame":
    import pandas as pd

    from market_pipeline.readers.aggregates import read_aggregates

    try:
        return read_aggregates(name, interval, *span, **question, engine=connection)
    except NothingKnownYetError:  # Of this market; others may have been known.
        return pd.DataFrame()


def _name_file(name: str, interval: str, kind: str) -> str:
    safe = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)
    return f"{safe}_{interval}.{kind}"


def _write(path: Path, bars: "pd.DataFrame", kind: str) -> None:
    from market_pipeline.readers.encoding import ENCODERS

    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(ENCODERS[kind](bars))
        Path(draft).chmod(0o644)
        Path(draft).replace(path)
    except OSError as error:
        raise SettingError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(FileNotFoundError):
            Path(draft).unlink()


def _show_progress(tasks: list[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """Return the tasks, with a bar on a terminal."""
    from market_pipeline.cli.progress import is_terminal

    if not is_terminal():
        return tasks
    from rich.console import Console
    from rich.progress import track

    return track(tasks, "Exporting", console=Console(stderr=True), transient=True)
