"""``market-pipeline ingest``: options checked before anything runs, then Dagster's job, here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import click

from market_pipeline.cli.options import PROVIDER, SYMBOLS, check_with, keep_given, parse_time
from market_pipeline.cli.runs import finish_run, tell
from market_pipeline.cli.show import AS_JSON
from market_pipeline.domain.triggers import TRIGGERS
from market_pipeline.settings import parse_lookback_days, read_shards

if TYPE_CHECKING:
    from market_pipeline.cli.progress import RunDisplay
    from market_pipeline.cli.run import FinishedRun

_EPILOG = """\b
Examples:
  market-pipeline ingest --symbols BTC-USD,SPX --lookback-days 90
  market-pipeline ingest --provider coingecko,yahoo
  market-pipeline ingest --window-end 2019-01-01   # history as it stood then

\b
Exits with 0 when every market gave all its bars, 3 when some came short,
1 when nothing usable came, a step failed, or an option was refused.
"""


@click.command(epilog=_EPILOG, short_help="Fetch, store and analyse every market, once.")
@SYMBOLS
@PROVIDER
@click.option(
    "--lookback-days",
    metavar="DAYS",
    callback=check_with(parse_lookback_days),
    help="Days of history kept complete, 1 to 36525; default INGESTION_LOOKBACK_DAYS.",
)
@click.option(
    "--window-end",
    metavar="TIME",
    callback=check_with(parse_time),
    help="ISO 8601 time taken as now (UTC where it has no zone); default now.",
)
@click.option("--history-from", hidden=True, callback=check_with(parse_time))
@click.option("--history-to", hidden=True, callback=check_with(parse_time))
@click.option("--run-id", type=click.UUID, hidden=True, help="The run's id; default a new one.")
@click.option("--trigger", type=click.Choice(TRIGGERS), default="manual", hidden=True)
@AS_JSON
@click.pass_context
def ingest(
    ctx: click.Context,
    /,
    as_json: bool,
    run_id: UUID | None,
    trigger: str,
    **options: object,
) -> None:
    """Run Dagster's ingest job in this process, recorded like any other run.

    Every market's bars are committed as they come; one market's failure does not lose the others.
    With INGESTION_SHARDS above 1, Dagster's daemon starts several runs, and this command waits.
    """
    from market_pipeline.cli.progress import display_run

    with display_run() as display:
        finished = _run(keep_given(options), run_id, trigger, display)
    has_failed = not finished.succeeded
    ctx.exit(finish_run(finished.run_id, finished.causes, as_json, has_failed=has_failed))


def _run(
    given: Mapping[str, Any], run_id: UUID | None, trigger: str, display: "RunDisplay | None"
) -> "FinishedRun":
    from market_pipeline.cli.run_request import check_options

    request = check_options(given)
    if display:
        display.expect(len(request.symbols))
        display.say("Loading the pipeline")
    from market_pipeline.cli.run import run_job, run_tick  # A second's worth of imports.

    if read_shards() > 1:
        say = display.say if display else tell
        return run_tick(given, run_id or uuid4(), trigger, say)
    return run_job("ingest", given, run_id, trigger, display)
