"""``market-pipeline runs``: the receipts of runs, and one of them whole."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from market_pipeline.cli.show import AS_JSON, print_json, print_rows
from market_pipeline.domain.errors import PipelineError

if TYPE_CHECKING:
    import pandas as pd

_SHOWN_RUNS = 20
_NONE_YET = "no run has written anything yet: run `market-pipeline ingest`"
_VERSIONS = ("first_version", "last_version")
_COUNTS = (
    "received", "inserted", "updated", "unchanged", "revised", "derived_inserted",
    "derived_updated", "quarantined", "holes_left", "calls",
)  # fmt: skip
_LISTED = (
    "run_id", "trigger", "provider", "started_at", "outcome", "ok", "markets", "inserted",
    "updated", "revised", "quarantined", "holes_left", "rows_written",
)  # fmt: skip
_EPILOG = """\b
Examples:
  market-pipeline runs
  market-pipeline runs show                                       # the last one
  market-pipeline runs show 61ba452b-da3a-4122-9e19-fd75835cdc11
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
    rows = [{name: one[name] for name in _LISTED} for one in totals]
    if not rows and not as_json:
        raise PipelineError(_NONE_YET)
    print_rows("Runs", rows, as_json)


@runs.command(short_help="Show what a run wrote.")
@click.argument("run_id", required=False, type=click.UUID)
@AS_JSON
def show(run_id: UUID | None, as_json: bool) -> None:
    """Show what a run wrote, by market and by table; without RUN_ID, the last one.

    Bars inserted, updated and unchanged are those that were fetched; derived ones are days and
    weeks built from them. Holes left are those in the run's own window, when it ended.
    """
    if show_run(run_id or _read_last_run_id(), as_json) is None:
        raise PipelineError(
            f"run {run_id} has no receipt: `market-pipeline runs` lists the receipts"
        )


def _read_last_run_id() -> UUID:
    from market_pipeline.cli.database import open_database
    from market_pipeline.storage.runs.receipts import read_last_run_id

    with open_database() as engine, engine.connect() as connection:
        chosen = read_last_run_id(connection)
    if chosen is None:
        raise PipelineError(_NONE_YET)
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
        for row in receipt["markets"]:
            if row["assumed"]:
                click.echo(f"{row['provider']}:{row['symbol']}: {row['assumed']}")
        print_rows("Rows by table", receipt["tables"])
        told = f": {receipt['error']}" if receipt["error"] else ""
        click.echo(f"Run {run_id}: {receipt['outcome']}{told}")
    outcome: str | None = receipt["outcome"]
    return outcome


def _read_receipt(run_id: UUID, has_failed: bool) -> dict[str, Any]:
    from market_pipeline.cli.database import open_database
    from market_pipeline.storage.runs.receipts import read_run, read_run_markets, read_run_tables

    with open_database() as engine, engine.connect() as connection:
        run = read_run(connection, run_id) or {"outcome": None, "error": None}
        return {
            "run_id": str(run_id),
            "outcome": "failed" if has_failed else run["outcome"],
            "error": run["error"],
            "markets": _list_records(read_run_markets(connection, run_id)),
            "tables": _list_records(read_run_tables(connection, run_id)),
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
