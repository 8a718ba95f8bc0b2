"""``market-pipeline diff`` and ``why``: list changed bars, and trace a number to its origin."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from market_pipeline.cli.options import STORED_SYMBOLS
from market_pipeline.cli.show import AS_JSON, print_json, print_rows

if TYPE_CHECKING:
    from market_pipeline.readers.why import Explanation

_SHOWN_ROWS = 50
_DIFF_EPILOG = """\b
Examples:
  market-pipeline diff 12..15
  market-pipeline diff 0..15 --symbols BTC-USD,yahoo:SPX --json

\b
Versions follow the order of commits; `market-pipeline runs` tells which a run wrote. Version 0 is
the empty one before the first.
"""
_WHY_EPILOG = """\b
Examples:
  market-pipeline why BTC-USD sharpe
  market-pipeline why yahoo:SPX max_drawdown --horizon 365d --at 12
"""


@click.command(epilog=_DIFF_EPILOG, short_help="List the bars that changed between two versions.")
@click.argument("versions", metavar="VERSION..VERSION")
@STORED_SYMBOLS
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="ROWS",
    help=f"Rows shown at most; default {_SHOWN_ROWS}, with --json all.",
)
@AS_JSON
def diff(versions: str, symbols: list[str] | None, limit: int | None, as_json: bool) -> None:
    """List the final bars that differ between two dataset versions, each once."""
    from market_pipeline.readers.changes import parse_versions, read_changes

    older, newer = parse_versions(versions)
    shown = limit if limit or as_json else _SHOWN_ROWS
    changes = read_changes(older, newer, symbols, shown)
    if as_json:
        print_json(changes.rows)
        return
    print_rows("Changed bars", changes.rows)
    more = changes.total - len(changes.rows)
    hint = f"; --limit shows {more:,} more" if more else ""
    click.echo(f"{changes.total:,} bars differ between version {older} and {newer}{hint}")


@click.command(epilog=_WHY_EPILOG, short_help="Trace a statistic to its bars, runs and requests.")
@click.argument("symbol")
@click.argument("statistic")
@click.option("--horizon", default="30d", show_default=True, help="The span it looks back.")
@click.option(
    "--at", "at_version", type=click.IntRange(min=0), metavar="VERSION",
    help="Compute it from the bars of this dataset version too, and show what changed it.",
)  # fmt: skip
@AS_JSON
def why(symbol: str, statistic: str, horizon: str, at_version: int | None, as_json: bool) -> None:
    """Trace the newest STATISTIC of SYMBOL to its method, bars, revisions, runs and requests."""
    from market_pipeline.readers.why import explain_statistic

    explanation = explain_statistic(symbol, statistic, horizon, at_version)
    if as_json:
        print_json(asdict(explanation))
    else:
        _print_explanation(explanation)


def _print_explanation(told: "Explanation") -> None:
    from market_pipeline.readers.why import format_value

    value = format_value(told.value, told.reason)
    click.echo(
        f"{told.statistic} of {told.symbol} ({told.provider}) over {told.horizon} is {value}"
    )
    if told.comparison is not None:
        click.echo(f"Compared with version {told.comparison.version}: {told.comparison.moved}")
    print_rows(
        "Computed", [{"what": name, "is": text} for name, text in _describe_numbers(told).items()]
    )
    _print_some("Runs that wrote its bars", told.runs)
    _print_some("Their requests", told.requests)
    _print_some("Revisions among its bars", told.revisions)


def _describe_numbers(told: "Explanation") -> dict[str, str]:
    from market_pipeline.readers.why import format_value

    bars = told.bars
    span = f": {bars['first_open_time']} to {bars['last_open_time']}" if bars["count"] else ""
    return {
        "as of": str(told.as_of),
        "method": told.method,
        "annualisation factor": f"{told.annualisation_factor:g}",
        "returns": f"{told.n_returns}, and {told.n_missing} left out because they span a hole",
        "bars": f"{bars['count']} {told.interval}{span}",
        "provisional bars left out": str(bars.get("provisional", 0)),
        "dataset version": str(told.dataset_version),
        "computed by run": str(told.run_id),
        "from these bars now": format_value(told.recomputed, "as above"),
    }


def _print_some(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    print_rows(title, rows[:_SHOWN_ROWS])
    if len(rows) > _SHOWN_ROWS:
        click.echo(f"{len(rows) - _SHOWN_ROWS:,} more are not shown: use --json")
