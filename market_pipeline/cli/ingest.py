"""``market-pipeline ingest``: options checked before anything runs, then Dagster's job, here."""

from collections.abc import Callable

import click

from market_pipeline.cli.show import AS_JSON, show_run
from market_pipeline.domain.symbols import parse_symbols
from market_pipeline.settings import (
    name_errors,
    parse_lookback_days,
    parse_provider_names,
    shorten,
    split_list,
)

EXIT_FAILED = 1
EXIT_PARTIAL = 3
_EXIT_CODES = {"ok": 0, "partial": EXIT_PARTIAL}
_EPILOG = """\b
Examples:
  market-pipeline ingest --symbols BTC-USD,SPX --lookback-days 90
  market-pipeline ingest --provider coingecko,yahoo
  market-pipeline ingest --window-end 2019-01-01   # history as it stood then

\b
Exits with 0 when every market gave all its bars, 3 when some came short,
1 when nothing usable came, a step failed, or an option was refused.
"""


def _parse_symbols(text: str) -> list[str]:
    return list(parse_symbols(split_list(text)))


def _parse_providers(text: str) -> str:
    return ",".join(parse_provider_names(text))


def _parse_window_end(text: str) -> str:
    from datetime import UTC, datetime

    from market_pipeline.ingestion.request import parse_moment

    return parse_moment(text, datetime.now(UTC)).isoformat()


def _checked_by(
    parse: Callable[[str], object],
) -> Callable[[click.Context, click.Parameter, str | None], object]:
    def check(ctx: click.Context, parameter: click.Parameter, text: str | None) -> object:
        del ctx
        if text is None:
            return None
        with name_errors(f"{parameter.opts[0]} {shorten(text)!r}"):
            return parse(text)

    return check


@click.command(epilog=_EPILOG, short_help="Fetch, store and analyse every market, once.")
@click.option(
    "--symbols",
    metavar="LIST",
    callback=_checked_by(_parse_symbols),
    help="Symbols separated by commas; default INGESTION_MARKETS.",
)
@click.option(
    "--provider",
    metavar="LIST",
    callback=_checked_by(_parse_providers),
    help="Provider, or several in order of preference; default INGESTION_PROVIDER.",
)
@click.option(
    "--lookback-days",
    metavar="DAYS",
    callback=_checked_by(parse_lookback_days),
    help="Days of history kept complete, 1 to 36525; default INGESTION_LOOKBACK_DAYS.",
)
@click.option(
    "--window-end",
    metavar="TIME",
    callback=_checked_by(_parse_window_end),
    help="ISO 8601 time taken as now (UTC where it has no zone); default now.",
)
@AS_JSON
@click.pass_context
def ingest(ctx: click.Context, /, as_json: bool, **options: object) -> None:
    """Run Dagster's ingest job in this process, recorded like any other run.

    Every market's bars are committed as they come; one market's failure does not lose the others.
    """
    from market_pipeline.cli.checking import check_options

    given = {name: value for name, value in options.items() if value is not None}
    check_options(given)
    from market_pipeline.cli.run import run_ingest_job  # A second's worth of imports.

    finished = run_ingest_job(given)
    outcome = show_run(finished.run_id, as_json, has_failed=not finished.succeeded)
    for cause in finished.causes:
        click.echo(f"Error: {cause}", err=True)
    ctx.exit(_EXIT_CODES.get(outcome or "", EXIT_FAILED))
