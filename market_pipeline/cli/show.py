"""The output of commands, as tables or JSON."""

import json
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod
    from rich.table import Table

_UNATTENDED_WIDTH = 160
_UNBOUNDED_WIDTH = 10_000
_LONG_TEXT = 24  # A text column beyond it may be folded, or stand below its row.
_LEAST_FOLDED = 30
_GAP = 2
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ID_CHARACTERS = 8  # Commands take the beginning of an id.
_WIDE = "market_pipeline.wide"
_JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of a table."
)


def _note_wide(ctx: click.Context, parameter: click.Parameter, is_wide: bool) -> None:
    del parameter
    ctx.meta[_WIDE] = ctx.meta.get(_WIDE, False) or is_wide


_WIDE_OPTION = click.option(
    "--wide", is_flag=True, expose_value=False, callback=_note_wide,
    help="Print every column in full, however wide the terminal is.",
)  # fmt: skip


def AS_JSON(command: Callable[..., Any]) -> Callable[..., Any]:  # noqa: N802 - an option, as others
    """Add the options of a command that lists something: ``--json`` and ``--wide``."""
    return _JSON_OPTION(_WIDE_OPTION(command))


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

    Where there are none, a table is nothing, or what ``if_none`` says. What does not fit the
    terminal gets shorter step by step: market names in one column, ids by their beginning, no empty
    columns; then long texts stand below their rows, and the last columns are left out and named.
    Callers put the columns that matter first.
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
    context = click.get_current_context(silent=True)
    if context is not None and context.meta.get(_WIDE):
        output.width = _UNBOUNDED_WIDTH
        output.print(_build_table(title, rows), crop=False, soft_wrap=True)
        return
    # Those that hold nothing but 0, None and empty texts.
    empty = [name for name in rows[0] if not any(row.get(name) for row in rows)]
    short = [_shorten_row(row, empty) for row in rows]
    if _fits(output, _build_table(title, rows)):
        output.print(_build_table(title, rows))
    elif _fits(output, _build_table(title, short)):
        output.print(_build_table(title, short))
        _print_left_out(output, empty, [])
    else:
        output.print(title, style="italic")
        lines, left_out = _lay_out(short, output.width)
        for line in lines:
            output.print(line, markup=False, highlight=False, soft_wrap=True)
        _print_left_out(output, empty, left_out)


def _fits(console: "Console", table: "Table") -> bool:
    unbounded = console.options.update(max_width=_UNBOUNDED_WIDTH)
    return console.measure(table, options=unbounded).maximum <= console.width


def _print_left_out(console: "Console", empty: Sequence[str], left_out: Sequence[str]) -> None:
    parts = (("Empty or 0", empty), ("Left out", left_out))
    told = [f"{what}: {', '.join(map(_name_column, names))}." for what, names in parts if names]
    if told:
        console.print(" ".join([*told, "--wide shows all."]), style="dim", highlight=False)


def _shorten_row(row: Mapping[Any, Any], empty: Sequence[str]) -> dict[str, Any]:
    """Return a row without some columns, its market in one, and ids by their beginning."""
    kept = {str(name): value for name, value in row.items() if name not in empty}
    if kept.get("symbol") and "provider" in kept:
        name = ":".join(filter(None, (kept["provider"], kept["symbol"])))
        del kept["provider"]
        kept = {"market" if key == "symbol" else key: value for key, value in kept.items()}
        kept["market"] = name
    return {name: _shorten_id(value) for name, value in kept.items()}


def _shorten_id(value: object) -> object:
    text = str(value) if isinstance(value, UUID | str) else ""
    return text[:_ID_CHARACTERS] if _UUID.fullmatch(text) else value


def _lay_out(rows: Sequence[Mapping[str, Any]], width: int) -> tuple[list[str], list[str]]:
    """Return the lines of a table without a frame, and the names of the columns left out."""
    names = list(rows[0])
    cells = [{name: format_cell(row.get(name)).plain for name in names} for row in rows]
    below: list[str] = []
    left_out: list[str] = []
    sizes = {name: max(len(_name_column(name)), *(len(c[name]) for c in cells)) for name in names}
    while sum(sizes[name] + _GAP for name in names) - _GAP > width and len(names) > 1:
        room = width - sum(sizes[name] + _GAP for name in names[:-1])
        texts = [name for name in names if any(isinstance(row.get(name), str) for row in rows)]
        long = [name for name in texts if sizes[name] > _LONG_TEXT]
        if names[-1] in long and room >= _LEAST_FOLDED:
            sizes[names[-1]] = room
        elif long:
            below.append(max(long, key=sizes.__getitem__))
            names.remove(below[-1])
        else:
            left_out.insert(0, names.pop())
    right = {name for name in names if isinstance(rows[0].get(name), int | float)}
    head = {name: _name_column(name) for name in names}
    lines = _write_line(head, names, sizes, right)
    for row in cells:
        lines += _write_line(row, names, sizes, right)
        for name in below:
            lines += textwrap.wrap(
                f"{_name_column(name)}: {row[name]}", width,
                initial_indent="    ", subsequent_indent="    ",
            ) if row[name] else []  # fmt: skip
    return lines, left_out


def _write_line(
    row: Mapping[str, str], names: Sequence[str], sizes: Mapping[str, int], right: Collection[str]
) -> list[str]:
    """Return the line of a row; more where the last column is folded."""
    start = sum(sizes[name] + _GAP for name in names[:-1])
    last, folded = names[-1], textwrap.wrap(row[names[-1]], sizes[names[-1]]) or [""]
    told = [
        row[name].rjust(sizes[name]) if name in right else row[name].ljust(sizes[name])
        for name in names[:-1]
    ]
    first = folded[0].rjust(sizes[last]) if last in right else folded[0]
    line = (" " * _GAP).join([*told, first]).rstrip()
    return [line, *(" " * start + more for more in folded[1:])]


def _build_table(title: str, rows: Sequence[Mapping[Any, Any]]) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        justify: JustifyMethod = "right" if isinstance(value, int | float) else "left"
        table.add_column(_name_column(name), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(format_cell, row.values()))
    return table


def _name_column(name: object) -> str:
    return str(name).replace("_", " ")


def format_cell(value: object) -> Any:
    """Return a value as a cell of a table: times in UTC to the minute, None as nothing."""
    from rich.text import Text

    if value is None:
        return Text("")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, datetime):
        return Text(f"{value.astimezone(UTC):%Y-%m-%d %H:%M}")
    return Text(f"{value:,}" if isinstance(value, int) else str(value))
