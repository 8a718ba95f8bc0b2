"""``market-pipeline agreement``: how far the bars of one symbol lie apart between its sources."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from market_pipeline.cli.options import TO, check_span, make_from_option
from market_pipeline.cli.show import AS_JSON, print_json, print_rows

if TYPE_CHECKING:
    from market_pipeline.domain.agreement import Difference
    from market_pipeline.readers.agreement import PairAgreement

_DEFAULT_DAYS = 365
_EPILOG = """\b
Examples:
  market-pipeline agreement
  market-pipeline agreement SPX --from 2016-01-01
  market-pipeline agreement yahoo:BTC-USD --interval 1h --json

\b
Differences are in basis points of the lower close. Of markets that never close, a median of 100
and a largest difference of 500 are usual; of exchange sessions 5 and 100.
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
    symbol: str | None,
    interval: str,
    history_from: str | None,
    history_to: str | None,
    as_json: bool,
) -> None:
    """Compare the final bars of each two active markets of SYMBOL; of every symbol without it.

    Without --from it compares the last 365 days.
    """
    from market_pipeline.cli.database import open_database
    from market_pipeline.readers.agreement import read_agreement

    check_span(history_from, history_to)
    now = datetime.now(UTC)
    span = (history_from or now - timedelta(days=_DEFAULT_DAYS), history_to or now)
    with open_database() as engine:
        pairs = read_agreement(symbol, interval, *span, engine)
    if as_json:
        print_json([asdict(pair) for pair in pairs])
    else:
        _print_pairs(pairs)


def _print_pairs(pairs: "Sequence[PairAgreement]") -> None:
    none = "No symbol has two active markets: a second provider is a second witness."
    print_rows("Agreement", [_describe(pair) for pair in pairs], if_none=none)
    for pair in pairs:
        if pair.agreement.hint:
            click.echo(f"{pair.name}: {pair.agreement.hint}")
            print_rows("Differ most", [_describe_bar(bar) for bar in pair.agreement.worst])


def _describe(pair: "PairAgreement") -> dict[str, Any]:
    found = pair.agreement
    return {
        "symbol": pair.symbol,
        "first": pair.provider,
        "second": pair.other_provider,
        "bars": found.bars,
        "first_lacks": found.missing,
        "second_lacks": found.other_missing,
        "median_bp": _round(found.median_bp),
        "largest_bp": _round(found.largest_bp),
        "verdict": found.verdict,
    }


def _describe_bar(bar: "Difference") -> dict[str, Any]:
    return {**asdict(bar), "difference_bp": _round(bar.difference_bp)}


def _round(basis_points: float | None) -> float | None:
    return None if basis_points is None else round(basis_points, 2)
