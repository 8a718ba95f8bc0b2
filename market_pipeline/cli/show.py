"""The output of commands, as tables or JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod
    from rich.table import Table

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_UNATTENDED_WIDTH = 160
_UNBOUNDED_WIDTH = 10_000


def print_json(value: object) -> None:
    """Print one JSON value on stdout."""
    click.echo(json.dumps(value, default=str, allow_nan=False))


def print_rows(
    title: str,
    rows: Sequence[Mapping[Any, Any]],
    as_json: bool = False,
    console: "Console | None" = None,
    if_none: str = "",
) -> None:
    """Print rows as a table with the first row's keys as its head, or as a JSON array.

    Where there are none, a table is nothing, or what ``if_none`` says. A table that is wider than
    its terminal is printed without the columns that hold nothing.
    """
    if as_json:
        print_json(rows)
        return
    if not rows:
        if if_none:
            click.echo(if_none)
        return
    from rich.console import Console

    output = console or Console(width=None if sys.stdout.isatty() else _UNATTENDED_WIDTH)
    # Those that hold nothing but 0, None and empty texts.
    empty = [str(name) for name in rows[0] if not any(row.get(name) for row in rows)]
    table = _build_table(title, rows)
    unbounded = output.options.update(max_width=_UNBOUNDED_WIDTH)
    if empty and output.measure(table, options=unbounded).maximum > output.width:
        kept = [name for name in rows[0] if name not in empty]
        table = _build_table(title, [{name: row[name] for name in kept} for row in rows])
        names = ", ".join(name.replace("_", " ") for name in empty)
        table.caption, table.caption_justify = f"Empty or 0: {names}. See --json.", "left"
    output.print(table)


def _build_table(title: str, rows: Sequence[Mapping[Any, Any]]) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        justify: JustifyMethod = "right" if isinstance(value, int) else "left"
        table.add_column(str(name).replace("_", " "), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(format_cell, row.values()))
    return table


def format_cell(value: object) -> Any:
    """Return a value as a cell of a table: times in UTC to the minute, None as nothing."""
    from rich.text import Text

    if value is None:
        return Text("")
    if isinstance(value, datetime):
        return Text(f"{value.astimezone(UTC):%Y-%m-%d %H:%M}")
    return Text(f"{value:,}" if isinstance(value, int) else str(value))
