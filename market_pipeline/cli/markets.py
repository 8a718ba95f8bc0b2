"""``market-pipeline markets``: list, add, prefer, switch off, read again, or remove markets."""

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from market_pipeline.cli.database import open_database
from market_pipeline.cli.show import AS_JSON, print_json, print_rows
from market_pipeline.settings import read_ingestion_defaults

if TYPE_CHECKING:
    from sqlalchemy import Connection

_EPILOG = """\b
Examples:
  market-pipeline markets list
  market-pipeline markets add SOL-USD --provider coingecko
  market-pipeline markets prefer yahoo:BTC-USD
  market-pipeline markets deactivate BTC-USD
  market-pipeline markets purge yahoo:SPX
  market-pipeline markets reload coingecko:BTC-USD

\b
What a run ingests is INGESTION_MARKETS, less what is deactivated. BTC-USD is the symbol's primary
market, yahoo:BTC-USD that of a provider.
"""
_RELOAD_EPILOG = """\b
Examples:
  market-pipeline markets reload coingecko:BTC-USD          # what it would cost and change
  market-pipeline markets reload coingecko:BTC-USD --yes

\b
Interrupt it at any time: what was committed stays, and the same command goes on from there.
Exits with 0 when all came, 3 when some did not, 1 when nothing did.
"""


@click.group(epilog=_EPILOG, short_help="List, add, prefer, deactivate, reload or purge markets.")
def markets() -> None:
    """Markets that are stored, and those that runs ingest."""


@markets.command("list")
@AS_JSON
def list_markets(as_json: bool) -> None:
    """List stored markets, and those of INGESTION_MARKETS that no run has stored yet."""
    from market_pipeline.storage.markets.listings import list_markets

    with open_database() as engine, engine.connect() as connection:
        rows = list_markets(connection)
    wanted = read_ingestion_defaults().symbols
    stored = {row["symbol"] for row in rows}
    told = [{**row, "ingested": row["active"] and row["symbol"] in wanted} for row in rows]
    missing = [symbol for symbol in wanted if symbol not in stored]
    if as_json:
        print_json({"markets": told, "not stored yet": missing})
        return
    print_rows("Markets", told)
    if missing:
        click.echo(f"In INGESTION_MARKETS, and not stored yet: {', '.join(missing)}")


@markets.command()
@click.argument("symbol")
@click.option("--provider", metavar="NAME", help="The provider; default INGESTION_PROVIDER.")
def add(symbol: str, provider: str | None) -> None:
    """Make sure that a provider serves SYMBOL, register it, and say how runs come to ingest it.

    A market that was deactivated is ingested again. No provider is asked: its catalogue decides.
    """
    from market_pipeline.domain.symbols import parse_symbols
    from market_pipeline.providers.registry import route_markets
    from market_pipeline.settings import parse_provider_names
    from market_pipeline.storage.markets.registration import activate_market

    defaults = read_ingestion_defaults()
    names = parse_provider_names(provider) if provider else defaults.providers
    [(_, market)] = route_markets(parse_symbols([symbol]), names, os.environ)
    with open_database() as engine:
        activate_market(engine, market, claim_primary=names == defaults.providers)
    click.echo(f"{market.provider} serves {market.symbol} ({market.name}): registered")
    for name, value in _find_settings(market.symbol, market.provider):
        click.echo(f"To ingest it, set {name}={value}")


def _find_settings(symbol: str, provider: str) -> list[tuple[str, str]]:
    """Return the settings that must change before a run without options ingests a market."""
    defaults, needed = read_ingestion_defaults(), []
    if symbol not in defaults.symbols:
        needed.append(("INGESTION_MARKETS", ",".join((*defaults.symbols, symbol))))
    if provider not in defaults.providers:
        needed.append(("INGESTION_PROVIDER", ",".join((*defaults.providers, provider))))
    return needed


@markets.command()
@click.argument("name", metavar="MARKET")
def deactivate(name: str) -> None:
    """Ingest MARKET no longer; what is stored stays readable. `markets add` takes it back."""
    from market_pipeline.storage.markets.admin import deactivate_market

    with open_database() as engine:
        with engine.connect() as connection:
            market_id, shown = _find_market(connection, name)
        changed = deactivate_market(engine, market_id)
    click.echo(f"{shown} is deactivated{'' if changed else ' already'}; its data stay")


@markets.command()
@click.argument("name", metavar="MARKET")
@click.option("--undo", is_flag=True, help="Let INGESTION_PROVIDER decide again.")
def prefer(name: str, undo: bool) -> None:
    """Let the bare symbol mean MARKET, such as yahoo:BTC-USD, also if runs name others first.

    `markets list` shows what is preferred, and since when.
    """
    from market_pipeline.storage.markets.admin import prefer_market

    with open_database() as engine:
        with engine.connect() as connection:
            market_id, shown = _find_market(connection, name)
            _refuse_inactive(connection, market_id, shown)
        former = prefer_market(engine, market_id, is_preferred=not undo)
    provider, _, symbol = shown.partition(":")
    if undo:
        click.echo(f"{symbol} means {former}:{symbol} until a run is configured with another one")
        return
    changed = f"; it meant {former}:{symbol}" if former and former != provider else ""
    click.echo(f"{symbol} means {shown} from now on{changed}")


@markets.command()
@click.argument("name", metavar="MARKET")
@click.option("--yes", is_flag=True, help="Do not ask.")
@AS_JSON
def purge(name: str, yes: bool, as_json: bool) -> None:
    """Remove MARKET with its bars, statistics, revisions and every other row, for good.

    In small transactions, so that nobody waits for it. Interrupted, it is done by calling it again.
    """
    from market_pipeline.storage.markets.admin import count_rows, purge_market

    with open_database() as engine:
        with engine.connect() as connection:
            market_id, shown = _find_market(connection, name)
            counts = count_rows(connection, market_id)
        if not yes:
            print_rows(f"Rows of {shown}", _list_tables(counts.items()))
            click.confirm(f"Remove {shown} and these rows for good?", abort=True)
        removed = _list_tables(purge_market(engine, market_id))
    print_rows(f"Removed of {shown}", removed, as_json)


@markets.command("reload", epilog=_RELOAD_EPILOG, short_help="Read stored history again.")
@click.argument("name", metavar="MARKET")
@click.option("--provider", metavar="NAME", help="Whose market; default the symbol's primary one.")
@click.option("--yes", is_flag=True, help="Do it; without --yes only show what would be done.")
@AS_JSON
@click.pass_context
def reload_stored(
    ctx: click.Context, name: str, provider: str | None, yes: bool, as_json: bool
) -> None:
    """Show what reading MARKET again would cost and change; with --yes dump it, then replace.

    Reads what an older parser has read, else the whole stored history. Old values stay readable as
    revisions; what the provider has no more stays as it is.
    """
    from market_pipeline.cli.reloading import preview_reload, run_reload

    asked_at = datetime.now(UTC)
    with open_database() as engine:
        with engine.connect() as connection:
            found = _find_market(connection, f"{provider}:{name}" if provider else name)
        if not yes:
            preview_reload(engine, *found, asked_at, as_json)
            return
        code = run_reload(engine, *found, asked_at, as_json)
    ctx.exit(code)


def _refuse_inactive(connection: "Connection", market_id: int, shown: str) -> None:
    from market_pipeline.storage.markets.lookup import read_market

    if not read_market(connection, market_id).is_active:
        provider, _, symbol = shown.partition(":")
        raise click.UsageError(
            f"{shown} is deactivated, so nothing new would be read of {symbol}: "
            f"`market-pipeline markets add {symbol} --provider {provider}` takes it back"
        )


def _list_tables(counts: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"table": table, "rows": rows} for table, rows in counts if rows]


def _find_market(connection: "Connection", name: str) -> tuple[int, str]:
    from market_pipeline.readers.resolve import find_markets

    [(market_id, market)] = find_markets(connection, name).items()
    return market_id, f"{market.provider}:{market.symbol}"
