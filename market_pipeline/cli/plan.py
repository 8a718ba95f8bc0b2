"""``market-pipeline plan``, ``coverage``, ``backfill``: list what is missing, and fetch it."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import click

from market_pipeline.cli.options import (
    PROVIDER,
    STORED_SYMBOLS,
    SYMBOLS,
    TO,
    keep_given,
    make_from_option,
)
from market_pipeline.cli.runs import EXIT_PARTIAL, finish_run, tell
from market_pipeline.cli.show import AS_JSON, print_json, print_rows

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from market_pipeline.cli.progress import RunDisplay
    from market_pipeline.ingestion.estimate import ProviderEstimate

_COVERAGE_PARTS = {
    "Coverage": "coverage",
    "Holes": "holes",
    "Never asked for": "never_asked",
    "Backfills that no run does by itself": "backfills",
}
_BACKFILL_EPILOG = """\b
Examples:
  market-pipeline plan --from 2015-01-01        # what it would cost, without asking anybody
  market-pipeline backfill --from 2015-01-01
  market-pipeline backfill --from 2015-01-01 --symbols SPX --provider file

\b
Interrupt it at any time: what was committed stays, and the same command goes on from there.
Exits with 0 when every market gave all its bars, 3 when some came short, 1 when nothing came.
"""


@click.command(short_help="Show what a run would ask for; asks nobody.")
@SYMBOLS
@PROVIDER
@make_from_option(is_required=False)
@TO
@AS_JSON
@click.pass_context
def plan(ctx: click.Context, /, as_json: bool, **options: object) -> None:
    """Show the requests that would make history complete: calls, bars, minutes, share of budget.

    Without --from it is the look-back that is planned, as `market-pipeline ingest` would.
    Exits with 3 when no provider serves some of the symbols; the others are planned.
    """
    estimates, unserved = _estimate(keep_given(options))
    rows = [estimate.describe() for estimate in estimates]
    markets = [row for estimate in estimates for row in estimate.describe_markets()]
    cuts = [cut for estimate in estimates for cut in estimate.describe_cuts()]
    if as_json:
        print_json({"providers": rows, "markets": markets, "cuts": cuts, "unserved": unserved})
    else:
        print_rows("Requests by market", markets)
        print_rows("By provider", rows)
        for cut in cuts:
            click.echo(cut)
        if not any(estimate.calls for estimate in estimates):
            click.echo("Nothing is missing.")
    for symbol, asked in unserved.items():
        click.echo(f"{symbol}: no provider serves it. Asked: {asked}", err=True)
    ctx.exit(EXIT_PARTIAL if unserved else 0)


@click.command(short_help="Fill history; continue if it was interrupted.", epilog=_BACKFILL_EPILOG)
@make_from_option(is_required=True)
@TO
@SYMBOLS
@PROVIDER
@AS_JSON
@click.pass_context
def backfill(ctx: click.Context, /, as_json: bool, **options: object) -> None:
    """Fetch what is missing of a span of history, then compute the statistics once."""
    from market_pipeline.cli.progress import display_run

    given, run_id = keep_given(options), uuid4()
    with display_run() as display:
        causes = _fill(given, run_id, display)
    ctx.exit(finish_run(run_id, causes, as_json, has_failed=bool(causes)))


def _fill(given: Mapping[str, Any], run_id: UUID, display: "RunDisplay | None") -> tuple[str, ...]:
    """Run both jobs, and return the causes of what failed."""
    from market_pipeline.cli.run_request import check_options

    request = check_options(given)
    if display:
        display.expect(len(request.symbols))
        display.say("Counting the requests")
    estimates, _ = _estimate(given)
    calls = sum(estimate.calls for estimate in estimates)
    bars = sum(estimate.bars for estimate in estimates)
    tell(f"{calls:,} requests, about {bars:,} bars", display)
    from market_pipeline.cli.run import run_job

    finished = run_job("backfill_history", given, run_id, trigger="backfill", display=display)
    if not finished.succeeded:
        return finished.causes
    later = {name: given[name] for name in ("symbols", "provider") if name in given}
    return run_job("statistics", later, trigger="backfill", display=display).causes


@click.command(short_help="Show what is complete, and every hole with its reason.")
@STORED_SYMBOLS
@click.option("--verify", is_flag=True, help="Scan the bars and compare them with the ledger.")
@AS_JSON
@click.pass_context
def coverage(ctx: click.Context, symbols: list[str] | None, verify: bool, as_json: bool) -> None:
    """List what is there of each market and interval, holes, and time that was never asked for.

    VERIFIED is the share of history that was read again in this turn, TURN DAYS how long a turn
    takes at its pace. For gaps that no run fills by itself it prints what fills them, and its
    price; nobody is asked.

    Exits with 3 when --verify finds bars that the ledger does not know, or misses some.
    """
    from market_pipeline.cli.database import open_database
    from market_pipeline.readers.resolve import find_market_ids
    from market_pipeline.storage.coverage.holes import list_holes
    from market_pipeline.storage.coverage.listings import (
        list_coverage,
        list_never_asked,
        list_older,
        verify_bars,
    )

    with open_database() as engine, engine.connect() as connection:
        of = None if symbols is None else find_market_ids(connection, symbols)
        listed = {
            "coverage": [_put_first(row) for row in list_coverage(connection, of)],
            "holes": list_holes(connection, of),
            "never_asked": list_never_asked(connection, of),
            "backfills": _price_backfills(connection, of),
            "older_parsings": list_older(connection, of),
        }
        wrong = verify_bars(connection, of) if verify else []
    if as_json:
        print_json({**listed, **({"wrong": wrong} if verify else {})})
    else:
        for title, name in _COVERAGE_PARTS.items():
            print_rows(title, listed[name])
        show_older(listed["older_parsings"])
        print_rows("The ledger and the bars disagree", wrong)
        if not listed["coverage"]:
            click.echo("Nothing is stored yet: run `market-pipeline ingest`")
        elif verify and not wrong:
            spans = len(listed["never_asked"])
            more = f" {spans:,} spans were never asked for." if spans else ""
            click.echo(f"The ledger and the bars agree.{more}")
    ctx.exit(EXIT_PARTIAL if wrong else 0)


def _put_first(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the columns first that matter most."""
    names = ("symbol", "provider", "interval", "bars", "n_holes", "n_never_asked", "final_to")
    return {name: row[name] for name in dict.fromkeys((*names, "first_bar_at", *row))}


def show_older(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print which stored bars an older parser has read, and which command reads them again."""
    print_rows("Read by an older parser, and to be read again", rows)
    for name in dict.fromkeys(f"{row['provider']}:{row['symbol']}" for row in rows):
        click.echo(
            "Statistics across the change are NULL. To see the cost and effect of reading again: "
            f"market-pipeline markets reload {name}"
        )


def _price_backfills(connection: "Connection", of: Sequence[int] | None) -> list[dict[str, Any]]:
    from market_pipeline.storage.coverage.ledger import read_never_asked

    gaps = read_never_asked(connection, of)
    if not gaps:
        return []
    from market_pipeline.ingestion.estimate import price_backfills
    from market_pipeline.ingestion.request import build_request

    request = build_request(datetime.now(UTC))
    priced = price_backfills(connection, gaps, request, os.environ)
    return [backfill.describe() for backfill in priced]


def _estimate(given: Mapping[str, Any]) -> "tuple[Sequence[ProviderEstimate], Mapping[str, str]]":
    """Return what providers would be asked, and why symbols are unserved."""
    from market_pipeline.cli.database import open_database
    from market_pipeline.cli.run_request import route_request
    from market_pipeline.ingestion.estimate import estimate_run

    request, _ = route_request(given)
    with open_database() as engine, engine.connect() as connection:
        return estimate_run(connection, request, os.environ)
