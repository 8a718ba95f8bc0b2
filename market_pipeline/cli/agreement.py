"""``market-pipeline agreement``: how far the bars of one symbol lie apart between its sources."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from market_pipeline.cli.options import TO, check_span, make_from_option
from market_pipeline.cli.show import AS_JSON, print_json, print_rows

if TYPE_CHECKING:
    from market_pipeline.readers.agreement import PairAgreement

_EPILOG = """\b
Examples:
  market-pipeline agreement
  market-pipeline agreement SPX --from 2016-01-01
  market-pipeline agreement yahoo:BTC-USD --interval 1h --json

\b
The first lacks the bars under "missing", the second those under "other missing". Differences are in
basis points of the lower close. They may have a median of 100 and reach 500 where a market never
closes, 5 and 100 where it has sessions.
"""


@click.command(epilog=_EPILOG, short_help="Compare the sources of each symbol.")
@click.argument("symbol", required=False)
@click.option(
    "--interval", type=click.Choice(["1h", "1d", "1w"]), default="1d", show_default=True,
    help="Length of the bars.",
)  # fmt: skip
@make_from_option(is_required=False)
@TO
@AS_JSON
def agreement(
    symbol: str | None, interval: str, history_from: str | None, history_to: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare the final bars of each two active markets of SYMBOL; of every symbol without it.

    Without --from it compares the last 365 days.
    """
    from market_pipeline.readers.agreement import read_agreement

    check_span(history_from, history_to)
    now = datetime.now(UTC)
    span = (history_from or now - timedelta(days=365), history_to or now)
    pairs = read_agreement(symbol, interval, *span)
    if as_json:
        print_json([asdict(pair) for pair in pairs])
        return
    none = "No symbol has two active markets: a second provider is a second witness."
    print_rows("Agreement", [_describe(pair) for pair in pairs], if_none=none)
    for pair in pairs:
        if pair.agreement.hint:
            click.echo(f"{pair.name}: {pair.agreement.hint}")
            print_rows("Differ most", [_round(asdict(bar)) for bar in pair.agreement.worst])


def _describe(pair: "PairAgreement") -> dict[str, Any]:
    figures = asdict(pair.agreement)
    del figures["hint"], figures["worst"]
    named = {"symbol": pair.symbol, "first": pair.provider, "second": pair.other_provider}
    return named | _round(figures)


def _round(figures: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, 2) if name.endswith("_bp") and value else value
        for name, value in figures.items()
    }
