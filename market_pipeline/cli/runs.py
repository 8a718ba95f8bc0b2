"""``market-pipeline runs``: the receipts of runs, and one of them whole."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from market_pipeline.cli.options import choose_id, make_id_argument
from market_pipeline.cli.show import AS_JSON, format_cell, print_json, print_rows
from market_pipeline.domain.errors import PipelineError
from market_pipeline.observability.logs import get_logger

if TYPE_CHECKING:
    from rich.console import Console

    from market_pipeline.cli.progress import RunDisplay

EXIT_FAILED = 1
EXIT_PARTIAL = 3
EXIT_CODES = {"ok": 0, "partial": EXIT_PARTIAL}
_SHOWN_RUNS = 20
# What a screen holds: of many markets first those that went wrong.
_SHOWN_MARKETS = 15
_WORST = ("failed", "interrupted", "missing", "partial", "running", "ok")
_NONE_YET = "no run has written anything yet: run `market-pipeline ingest`"
_COUNTS = (
    "received", "inserted", "updated", "unchanged", "revised", "derived_inserted",
    "derived_updated", "quarantined", "holes_left", "calls",
)  # fmt: skip
_LISTED = (
    "run_id", "started_at", "outcome", "ok", "markets", "inserted", "holes_left", "quarantined",
    "updated", "trigger", "provider", "revised", "rows_written",
)  # fmt: skip
_EPILOG = """\b
Examples:
  market-pipeline runs
  market-pipeline runs show                                       # the last one
  market-pipeline runs show 61ba452b                              # the beginning of its id
"""


@click.group(
    invoke_without_command=True, epilog=_EPILOG, short_help="List runs, and show what one wrote."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000),
    default=_SHOWN_RUNS,
    show_default=True,
    help="Runs listed at most.",
)
@AS_JSON
@click.pass_context
def runs(ctx: click.Context, limit: int, as_json: bool) -> None:
    """List the last runs with the sums of their receipts, the newest first.

    A run that has not ended is `running`, or `interrupted` when its process is gone. Bars inserted
    and updated are fetched ones; rows written are those of all tables, derived bars included.
    """
    if ctx.invoked_subcommand:
        return
    from market_pipeline.cli.database import open_database
    from market_pipeline.storage.runs.receipts import read_run_totals

    with open_database() as engine, engine.connect() as connection:
        totals = read_run_totals(connection, limit)
    rows = [{name: total[name] for name in _LISTED} for total in totals]
    if not rows and not as_json:
        raise PipelineError(_NONE_YET)
    print_rows("Runs", rows, as_json)


@runs.command(short_help="Show what a run wrote.")
@make_id_argument("[RUN_ID]", is_required=False)
@AS_JSON
def show(beginning: str | None, as_json: bool) -> None:
    """Show what a run wrote, by market and by table; without RUN_ID, the last one.

    The beginning of an id is enough.

    Bars inserted, updated and unchanged are those that were fetched; derived ones are days and
    weeks built from them. Holes left are those in the run's own window, when it ended.
    """
    from market_pipeline.cli.database import open_database
    from market_pipeline.storage.runs.receipts import read_last_run_id
    from market_pipeline.storage.tables import ingestion_run

    with open_database() as engine, engine.connect() as connection:
        chosen = (
            choose_id(connection, ingestion_run.c.run_id, beginning, "run", "market-pipeline runs")
            if beginning
            else read_last_run_id(connection)
        )
    if chosen is None:
        raise PipelineError(_NONE_YET)
    show_run(chosen, as_json)


def finish_run(run_id: UUID, causes: Sequence[str], as_json: bool, *, has_failed: bool) -> int:
    """Print a run's receipt, on stderr why it failed, and return its command's exit code."""
    outcome = show_run(run_id, as_json, has_failed)
    for cause in causes:
        if sys.stderr.isatty():
            click.echo(f"Error: {cause}", err=True)
        else:
            get_logger(__name__).error(cause)
    return EXIT_CODES.get(outcome or "", EXIT_FAILED)


def show_run(run_id: UUID, as_json: bool, has_failed: bool = False) -> str | None:
    """Print a run's receipt, and return its outcome: None when there is no receipt.

    ``has_failed``: a step failed, which the receipt of what landed before need not know.
    """
    receipt = _read_receipt(run_id, has_failed)
    if as_json:
        print_json(receipt)
    elif receipt["outcome"] is not None and sys.stdout.isatty():
        from rich.console import Console

        print_summary(receipt, Console(highlight=False), has_failed)
    elif receipt["outcome"] is not None:
        print_rows("Bars by market", [_pick_columns(row) for row in receipt["markets"]])
        for row in receipt["markets"]:
            if row["assumed"]:
                click.echo(f"{row['provider']}:{row['symbol']}: {row['assumed']}")
        print_rows("Rows by table", receipt["tables"])
        if receipt["shards"]:
            print_rows("Runs of the tick (shard 0 derives)", receipt["shards"])
        told = f": {receipt['error']}" if receipt["error"] else ""
        click.echo(f"Run {run_id}: {receipt['outcome']}{told}")
    outcome: str | None = receipt["outcome"]
    return outcome


def tell(text: str, display: "RunDisplay | None" = None) -> None:
    """Say something about a run on stderr: as words on a terminal, else as a line of its log."""
    if display:
        display.keep(text)
    elif sys.stderr.isatty():
        click.echo(text, err=True)
    else:
        get_logger(__name__).info(text)


def print_summary(receipt: Mapping[str, Any], console: "Console", has_failed: bool = False) -> None:
    """Print a receipt for people, in the width of their terminal: what went wrong comes first.

    ``has_failed``: the command says the causes itself, after the summary.
    """
    from rich.text import Text

    ranks = {outcome: rank for rank, outcome in enumerate(_WORST)}
    markets = sorted(receipt["markets"], key=lambda row: ranks.get(row["outcome"], 0))
    if markets:
        has_one_provider = len({row["provider"] for row in markets if row["provider"]}) == 1
        console.print(_build_table(markets[:_SHOWN_MARKETS], has_one_provider))
    for line in (*_list_reasons(receipt, markets), *_list_ends(receipt, markets, has_failed)):
        console.print(Text(line))


def _build_table(markets: Sequence[Mapping[str, Any]], is_short: bool) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("market", overflow="fold")
    for name in ("new", "changed", "holes"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("final to", "result"):
        table.add_column(name, no_wrap=True)
    for row in markets:
        name = row["symbol"] if is_short else _name_market(row)
        new = _add(row, "inserted", "derived_inserted")
        changed = _add(row, "updated", "derived_updated", "revised")
        cells = (name, new, changed, row["holes_left"], row["watermark_after"], row["outcome"])
        table.add_row(*map(format_cell, cells))
    return table


def _name_market(row: Mapping[str, Any]) -> str:
    """Return a market as readers take it; one that no provider serves has its symbol alone."""
    return ":".join(filter(None, (row["provider"], row["symbol"])))


def _add(row: Mapping[str, Any], *names: str) -> int:
    """Return a sum; a market that was never asked for has no counts."""
    return sum(row[name] or 0 for name in names)


def _list_reasons(receipt: Mapping[str, Any], markets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what went wrong with the markets that are shown, or was assumed of them."""
    shown = [(row, row["reason"] or row["assumed"]) for row in markets[:_SHOWN_MARKETS]]
    error = receipt["error"] or ""
    return [
        f"{_name_market(row)}: {text}"
        for row, text in shown
        if text and text not in error  # An error that lists them says it already.
    ]


def _list_ends(
    receipt: Mapping[str, Any], markets: Sequence[Mapping[str, Any]], has_failed: bool
) -> list[str]:
    """Return the last lines: markets that are not shown, rows by table, and the outcome."""
    run, rest = receipt["run_id"], Counter(row["outcome"] for row in markets[_SHOWN_MARKETS:])
    counted = ", ".join(f"{count} {outcome}" for outcome, count in rest.items())
    rows = [(row["table_name"], row["inserted"] + row["updated"]) for row in receipt["tables"]]
    written = ", ".join(f"{table} {count:,}" for table, count in rows if count)
    error = f": {receipt['error']}" if receipt["error"] and not has_failed else ""
    return [
        *([f"and {counted}: market-pipeline runs show {run} --json"] if rest else ()),
        f"Rows written: {written or 'none'}",
        f"Run {run}: {receipt['outcome']}{error}",
    ]


def _read_receipt(run_id: UUID, has_failed: bool) -> dict[str, Any]:
    from market_pipeline.cli.database import open_database
    from market_pipeline.storage.runs.receipts import read_run, read_run_markets, read_run_tables
    from market_pipeline.storage.runs.ticks import read_parts

    with open_database() as engine, engine.connect() as connection:
        run = read_run(connection, run_id) or {"outcome": None, "error": None}
        return {
            "run_id": str(run_id),
            "outcome": "failed" if has_failed else run["outcome"],
            "error": run["error"],
            "markets": read_run_markets(connection, run_id),
            "tables": read_run_tables(connection, run_id),
            "shards": read_parts(connection, run_id),
        }


def _pick_columns(row: Mapping[Any, Any]) -> dict[str, object]:
    """Return what fits a line of the terminal; --json has the rest."""
    counts = {name: row[name] for name in _COUNTS}
    ends = {"final to": row["watermark_after"], "outcome": row["outcome"], "reason": row["reason"]}
    return {"symbol": row["symbol"], "provider": row["provider"], **counts, **ends}
