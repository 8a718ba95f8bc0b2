"""``market-pipeline plan``, ``coverage``, ``backfill``: what is there, what is missing, get it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import click

from market_pipeline.cli.ingest import EXIT_CODES, EXIT_FAILED, EXIT_PARTIAL
from market_pipeline.cli.options import (
    PROVIDER,
    STORED_SYMBOLS,
    SYMBOLS,
    TO,
    check_span,
    make_from_option,
)
from market_pipeline.cli.runs import show_run
from market_pipeline.cli.show import AS_JSON, print_json, print_rows

if TYPE_CHECKING:
    from market_pipeline.ingestion.estimate import ProviderEstimate

_BACKFILL_EPILOG = """\b
Examples:
  market-pipeline plan --from 2015-01-01        # what it would cost, without asking anybody
  market-pipeline backfill --from 2015-01-01
  market-pipeline backfill --from 2015-01-01 --symbols SPX --provider file

\b
Interrupt it at any time: what was committed stays, and the same command goes on from there.
Exits with 0 when every market gave all its bars, 3 when some came short, 1 when nothing came.
"""


@click.command(short_help="Show what a run would ask for, without asking.")
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
    given = _keep_given(options)
    _check_span(given)
    estimates, unserved = _estimate(given)
    rows = [estimate.describe() for estimate in estimates]
    markets = [row for estimate in estimates for row in estimate.describe_markets()]
    if as_json:
        print_json({"providers": rows, "markets": markets, "unserved": unserved})
    else:
        print_rows("Requests by market", markets)
        print_rows("By provider", rows)
        if not any(estimate.calls for estimate in estimates):
            click.echo("Nothing is missing.")
    for symbol, asked in unserved.items():
        click.echo(f"{symbol}: no provider serves it. Asked: {asked}", err=True)
    ctx.exit(EXIT_PARTIAL if unserved else 0)


@click.command(
    short_help="Fill history; goes on where it was interrupted.", epilog=_BACKFILL_EPILOG
)
@make_from_option(is_required=True)
@TO
@SYMBOLS
@PROVIDER
@AS_JSON
@click.pass_context
def backfill(ctx: click.Context, /, as_json: bool, **options: object) -> None:
    """Fetch what is missing of a span of history, then compute the statistics once."""
    from market_pipeline.cli.checking import check_options

    given = _keep_given(options)
    _check_span(given)
    check_options(given)
    estimates, _ = _estimate(given)
    expected = sum(estimate.bars for estimate in estimates)
    calls = sum(estimate.calls for estimate in estimates)
    click.echo(f"{calls:,} requests, about {expected:,} bars", err=True)
    from market_pipeline.cli.run import run_job

    run_id = uuid4()
    with _show_progress(run_id, expected):
        finished = run_job("backfill_history", given, run_id, trigger="backfill")
    causes = finished.causes
    if finished.succeeded:
        later: dict[str, Any] = {
            name: given[name] for name in ("symbols", "provider") if name in given
        }
        causes = run_job("statistics", later, trigger="backfill").causes
    outcome = show_run(run_id, as_json, has_failed=bool(causes))
    for cause in causes:
        click.echo(f"Error: {cause}", err=True)
    ctx.exit(EXIT_CODES.get(outcome or "", EXIT_FAILED))


@click.command(short_help="Show what is complete, and every hole with its reason.")
@STORED_SYMBOLS
@click.option("--verify", is_flag=True, help="Scan the bars and compare them with the ledger.")
@AS_JSON
@click.pass_context
def coverage(ctx: click.Context, symbols: list[str] | None, verify: bool, as_json: bool) -> None:
    """List market, interval, first and last bar, bars, holes with reasons, last refresh.

    Exits with 3 when --verify finds bars that the ledger does not know, or misses some.
    """
    from market_pipeline.cli.database import open_database
    from market_pipeline.readers.questions import find_market_ids
    from market_pipeline.storage.coverage_queries import list_coverage, list_holes, verify_bars

    with open_database() as engine, engine.connect() as connection:
        of = None if symbols is None else find_market_ids(connection, symbols)
        rows = list_coverage(connection, of)
        holes = list_holes(connection, of)
        wrong = verify_bars(connection, of) if verify else []
    if as_json:
        print_json({"coverage": rows, "holes": holes, **({"wrong": wrong} if verify else {})})
    else:
        print_rows("Coverage", rows)
        print_rows("Holes", holes)
        print_rows("The ledger and the bars disagree", wrong)
        if not rows:
            click.echo("Nothing is stored yet: run `market-pipeline ingest`")
        elif verify and not wrong:
            click.echo("The ledger and the bars agree.")
    ctx.exit(3 if wrong else 0)


def _keep_given(options: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_span(given: Mapping[str, Any]) -> None:
    check_span(given.get("history_from"), given.get("history_to"))


def _estimate(given: Mapping[str, Any]) -> "tuple[Sequence[ProviderEstimate], Mapping[str, str]]":
    """Return what providers would be asked, and why symbols are unserved."""
    import os

    from market_pipeline.cli.checking import route_request
    from market_pipeline.cli.database import open_database
    from market_pipeline.ingestion.estimate import estimate_request
    from market_pipeline.ingestion.registration import keep_active

    request, routing = route_request(given)
    with open_database() as engine, engine.connect() as connection:
        active = keep_active(connection, routing.routes)
        estimates = estimate_request(connection, active, request, os.environ)
    return estimates, routing.unserved


@contextmanager
def _show_progress(run_id: UUID, expected: int) -> Iterator[None]:
    """Show a bar on a terminal while a run goes on; the receipt tells how far it is."""
    from market_pipeline.cli.progress import BarProgress, is_terminal

    if not expected or not is_terminal():
        yield
        return
    with BarProgress(run_id, expected):
        yield
