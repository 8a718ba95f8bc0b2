"""``market-pipeline quarantine``: list, replay or discard impossible rows."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from market_pipeline.cli.database import open_database
from market_pipeline.cli.options import STORED_SYMBOLS
from market_pipeline.cli.runs import EXIT_FAILED, EXIT_PARTIAL
from market_pipeline.cli.show import AS_JSON, print_json, print_rows
from market_pipeline.domain.errors import PipelineError

if TYPE_CHECKING:
    import pandas as pd

STATUSES = ("open", "replayed", "discarded", "all")
DEFAULT_LIMIT = 50
_EPILOG = """\b
Examples:
  market-pipeline quarantine list --symbols BTC-USD
  market-pipeline quarantine show 17
  market-pipeline quarantine replay 17 18
  market-pipeline quarantine replay --all
  market-pipeline quarantine discard 17
"""
_REPLAY_EPILOG = """\b
Exits with 0 when every row was good, 3 when some were, 1 when none was.
"""
_ROW_IDS = click.argument("row_ids", nargs=-1, metavar="[ID]...", type=click.IntRange(1, 2**63 - 1))


@click.group(epilog=_EPILOG, short_help="Show, replay or discard impossible bars.")
def quarantine() -> None:
    """Bars that cannot be true: kept once with their reason, while the others were stored."""


@quarantine.command("list")
@STORED_SYMBOLS
@click.option(
    "--status", type=click.Choice(STATUSES), default="open", show_default=True, help="Which rows."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    default=DEFAULT_LIMIT,
    show_default=True,
    help="The most rows shown, the last seen first.",
)
@AS_JSON
def list_rows(symbols: list[str] | None, status: str, limit: int, as_json: bool) -> None:
    """List rows, the last seen first."""
    from market_pipeline.readers.resolve import find_market_ids
    from market_pipeline.storage.bars.quarantine import read_quarantine

    chosen = None if status == "all" else status
    with open_database() as engine, engine.connect() as connection:
        of = None if symbols is None else find_market_ids(connection, symbols)
        # One more than is shown tells whether there are more.
        rows = read_quarantine(connection, market_ids=of, status=chosen, limit=limit + 1)
    shown = _describe_rows(rows.iloc[:limit])
    listed = shown if as_json else [_shorten_row(row) for row in shown]
    print_rows("Quarantine", listed, as_json, if_none="No such rows in the quarantine")
    if len(rows) > limit and not as_json:
        click.echo(f"There are more than {limit}: --limit shows more", err=True)


@quarantine.command()
@click.argument("row_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@AS_JSON
def show(row_id: int, as_json: bool) -> None:
    """Show a row with the whole bar as it came."""
    from market_pipeline.storage.bars.quarantine import read_quarantine

    with open_database() as engine, engine.connect() as connection:
        rows = _describe_rows(read_quarantine(connection, row_ids=[row_id]))
    if not rows:
        raise PipelineError(
            f"row {row_id} is not in the quarantine: `market-pipeline quarantine list` shows "
            "what is"
        )
    if as_json:
        print_json(rows[0])
        return
    flat = {**rows[0], **{f"bar {name}": value for name, value in rows[0]["payload"].items()}}
    del flat["payload"]
    lines = [{"what": name, "value": str(value)} for name, value in flat.items() if value != ""]
    print_rows(f"Row {row_id}", lines)


@quarantine.command(epilog=_REPLAY_EPILOG)
@_ROW_IDS
@click.option("--all", "is_all", is_flag=True, help="Every open row.")
@click.pass_context
def replay(ctx: click.Context, row_ids: Sequence[int], is_all: bool) -> None:
    """Validate rows again by today's rules, and store those that are good now.

    A row that contradicts a stored bar is still bad. Weeks follow; statistics do with the next run.
    """
    from market_pipeline.ingestion.quarantine import replay_rows

    if is_all == bool(row_ids):
        raise click.UsageError("Name rows, or --all.")
    with open_database() as engine:
        result = replay_rows(engine, None if is_all else row_ids, datetime.now(UTC))
    for row_id, reason in sorted(result.refused.items()):
        click.echo(f"Row {row_id} is still bad: {reason}", err=True)
    click.echo(f"{len(result.replayed)} rows replayed, {len(result.refused)} still bad")
    if result.replayed:
        click.echo(f"Stored by run {result.run_id}")
    if result.refused:
        ctx.exit(EXIT_PARTIAL if result.replayed else EXIT_FAILED)


@quarantine.command()
@_ROW_IDS
def discard(row_ids: Sequence[int]) -> None:
    """Dismiss rows for good: they are counted when they come again, and no longer listed."""
    from market_pipeline.ingestion.quarantine import discard_rows

    if not row_ids:
        raise click.UsageError("Name rows.")
    with open_database() as engine:
        discarded = discard_rows(engine, row_ids, datetime.now(UTC))
    click.echo(f"{len(discarded)} rows discarded")


def _describe_rows(rows: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return rows as JSON can hold them: times as text, nothing as None."""
    whole = rows.drop(columns="market_id").astype(object)
    whole = whole.where(whole.notna(), None)
    return [
        {
            str(name): cell if isinstance(cell, dict | int | None) else str(cell)
            for name, cell in row.items()
        }
        for row in whole.to_dict("records")
    ]


def _shorten_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what fits a line of the terminal."""
    return {
        "id": row["row_id"],
        "market": f"{row['provider']}:{row['symbol']}",
        "interval": row["interval"],
        "opens (UTC)": (row["open_time"] or "none")[:16],
        "rule": row["rule"],
        "detail": row["detail"],
        "seen": row["times_seen"],
        "last seen (UTC)": row["last_seen_at"][:16],
        "status": row["status"],
    }
