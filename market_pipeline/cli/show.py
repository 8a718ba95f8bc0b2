"""What was written and what there is to ask: the commands that only list, and their tables."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from market_pipeline.domain.errors import PipelineError

if TYPE_CHECKING:
    import pandas as pd

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_UNATTENDED_WIDTH = 160
_VERSIONS = ("first_version", "last_version")
_COUNTS = (
    "received", "inserted", "updated", "unchanged", "revised", "quarantined", "holes_left", "calls",
)  # fmt: skip


@click.command(short_help="Show what a run wrote.")
@click.argument("run_id", required=False, type=click.UUID)
@AS_JSON
def runs(run_id: UUID | None, as_json: bool) -> None:
    """Show what a run wrote, by market and by table; without RUN_ID, the last one."""
    if show_run(run_id or _read_last_run_id(), as_json) is None:
        raise PipelineError(
            f"run {run_id} has written nothing: `market-pipeline runs` shows the last"
        )


@click.command(short_help="List providers and whether they are configured.")
@AS_JSON
def providers(as_json: bool) -> None:
    """List providers, what each serves, and whether it is configured."""
    from market_pipeline.providers.registry import list_provider_names, load_provider

    loaded = [load_provider(name, os.environ) for name in list_provider_names()]
    rows = [
        {
            "provider": one.name,
            "serves": one.summary,
            "symbols": ", ".join(one.list_symbols()[:6]),
            "configured": one.explain_missing_settings() or "yes",
        }
        for one in loaded
    ]
    print_rows("Providers", rows, as_json)


def _read_last_run_id() -> UUID:
    from market_pipeline.cli.database import open_database
    from market_pipeline.storage.queries import read_last_run_id

    with open_database() as engine, engine.connect() as connection:
        chosen = read_last_run_id(connection)
    if chosen is None:
        raise PipelineError("no run has written anything yet: run `market-pipeline ingest`")
    return chosen


def show_run(run_id: UUID, as_json: bool, has_failed: bool = False) -> str | None:
    """Print a run's receipt, and return its outcome: None when there is no receipt.

    Args:
        run_id: The run.
        as_json: One JSON object on stdout instead of tables.
        has_failed: A step failed, which the receipt of what landed before need not know.
    """
    receipt = _read_receipt(run_id, has_failed)
    if as_json:
        print_json(receipt)
    elif receipt["outcome"] is not None:
        print_rows("Bars by market", [_pick_columns(row) for row in receipt["markets"]])
        print_rows("Rows by table", receipt["tables"])
        click.echo(f"Run {run_id}: {receipt['outcome']}")
    outcome: str | None = receipt["outcome"]
    return outcome


def _read_receipt(run_id: UUID, has_failed: bool) -> dict[str, Any]:
    from market_pipeline.cli.database import open_database
    from market_pipeline.storage import queries

    with open_database() as engine, engine.connect() as connection:
        outcome = queries.read_run_outcome(connection, run_id)
        return {
            "run_id": str(run_id),
            "outcome": "failed" if has_failed else outcome,
            "markets": _list_records(queries.read_run_markets(connection, run_id)),
            "tables": _list_records(queries.read_run_tables(connection, run_id)),
        }


def _pick_columns(row: Mapping[Any, Any]) -> dict[str, object]:
    """Return what fits a line of the terminal; --json has the rest."""
    counts = {name: row[name] for name in _COUNTS}
    ends = {"final to": row["watermark_after"], "outcome": row["outcome"], "reason": row["reason"]}
    return {"symbol": row["symbol"], "provider": row["provider"], **counts, **ends}


def _list_records(frame: "pd.DataFrame") -> list[dict[Any, Any]]:
    """Return a frame's rows; what pandas holds as NaN or NaT is None, as JSON has it."""
    whole = frame.astype(object).where(frame.notna(), None)
    return [
        {
            name: int(cell) if name in _VERSIONS and cell is not None else cell
            for name, cell in row.items()
        }
        for row in whole.to_dict("records")
    ]


def print_json(value: object) -> None:
    """Print one JSON value on stdout."""
    click.echo(json.dumps(value, default=str, allow_nan=False))


def print_rows(title: str, rows: Sequence[Mapping[Any, Any]], as_json: bool = False) -> None:
    """Print rows as a table with the first row's keys as its head, or as a JSON array."""
    if as_json:
        print_json(rows)
        return
    if not rows:
        return
    from rich.console import Console, JustifyMethod
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        justify: JustifyMethod = "right" if isinstance(value, int) else "left"
        table.add_column(str(name).replace("_", " "), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(_format_cell, row.values()))
    Console(width=None if sys.stdout.isatty() else _UNATTENDED_WIDTH).print(table)


def _format_cell(value: object) -> Any:
    from rich.text import Text

    if value is None:
        return Text("")
    if isinstance(value, datetime):
        return Text(f"{value.astimezone(UTC):%Y-%m-%d %H:%M}")
    return Text(f"{value:,}" if isinstance(value, int) else str(value))
