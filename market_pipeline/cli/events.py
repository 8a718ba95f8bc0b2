"""``market-pipeline events``: restated history and suspected splits, and decisions about them."""

from datetime import UTC, datetime
from typing import Any

import click

from market_pipeline.cli.database import open_database
from market_pipeline.cli.options import STORED_SYMBOLS
from market_pipeline.cli.show import AS_JSON, print_rows

_EPILOG = """\b
Examples:
  market-pipeline events list
  market-pipeline events dismiss 17          # no split: the price did jump
  market-pipeline events confirm 17          # shows what it would change
  market-pipeline events confirm 17 --yes

\b
A provider that restates its history is followed by runs alone; a suspected split waits for you.
"""
_EVENT_ID = click.argument("event_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))


@click.group(epilog=_EPILOG, short_help="Restated history and suspected splits.")
def events() -> None:
    """Events over a span of a series: while one is open, statistics over it are NULL."""


@events.command("list")
@STORED_SYMBOLS
@click.option("--all", "is_all", is_flag=True, help="List ended events too.")
@AS_JSON
def list_all(symbols: list[str] | None, is_all: bool, as_json: bool) -> None:
    """List open events, the newest first."""
    from market_pipeline.readers.resolve import find_market_ids
    from market_pipeline.storage.bars.events import list_events

    with open_database() as engine, engine.connect() as connection:
        of = None if symbols is None else find_market_ids(connection, symbols)
        rows = list_events(connection, of, is_open=not is_all)
    shown = rows if as_json else [_shorten(row) for row in rows]
    print_rows("Events", shown, as_json, if_none="No such events" if is_all else "No open events")


@events.command()
@_EVENT_ID
def dismiss(event_id: int) -> None:
    """Say that ID is no split, so that statistics go on over it; it is not suspected again."""
    from market_pipeline.ingestion.deciding import dismiss_event

    with open_database() as engine:
        name = dismiss_event(engine, event_id)
    click.echo(f"Event {event_id} of {name} is dismissed; its statistics follow with the next run")


@events.command()
@_EVENT_ID
@click.option("--yes", is_flag=True, help="Do it; without --yes nothing is changed.")
def confirm(event_id: int, yes: bool) -> None:
    """Say that ID is a split: the bars before it are multiplied by its ratio.

    Their old values stay readable as revisions. Weeks follow; statistics do with the next run.
    """
    from market_pipeline.ingestion.deciding import confirm_split, preview_split

    with open_database() as engine:
        if yes:
            done = confirm_split(engine, event_id, datetime.now(UTC))
            click.echo(f"{done.bars:,} bars of {done.name} multiplied by {done.ratio:.6g}")
            click.echo(f"Stored by run {done.run_id}")
            return
        with engine.connect() as connection:
            told = preview_split(connection, event_id)
    click.echo(f"{told.name}: {told.detail}")
    click.echo(
        f"{told.bars:,} final bars before it would be multiplied by {told.ratio:.6g}. "
        "Nothing was changed: --yes does it"
    )


def _shorten(row: dict[str, Any]) -> dict[str, Any]:
    """Return what fits a line of the terminal."""
    return {
        "id": row["event_id"],
        "market": f"{row['provider']}:{row['symbol']}",
        "kind": row["kind"],
        "from (UTC)": f"{row['starts_at']:%Y-%m-%d %H:%M}" if row["starts_at"] else "all",
        "to (UTC)": f"{row['ends_at']:%Y-%m-%d %H:%M}" if row["ends_at"] else "now",
        "detail": row["detail"],
        "seen (UTC)": f"{row['detected_at']:%Y-%m-%d %H:%M}",
        "state": row["resolution"] or row["trace"].get("stage", "open"),
    }
