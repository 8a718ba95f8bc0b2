"""The command that lists providers, and asks each whether it can be reached."""

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from market_pipeline.cli.database import open_database
from market_pipeline.cli.show import AS_JSON, print_rows
from market_pipeline.domain.errors import ProviderError
from market_pipeline.settings import read_ingestion_defaults

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from market_pipeline.providers.base import Provider

_EXIT_UNREACHABLE = 3
_YES = "yes"


@click.command(short_help="List providers, and whether they are configured and reachable.")
@click.option("--check", is_flag=True, help="Ask each for one live price; its budget counts that.")
@AS_JSON
def providers(check: bool, as_json: bool) -> None:
    """List providers, what each serves, and whether it is configured.

    With --check, exit with 3 if a provider of INGESTION_PROVIDER cannot be reached.
    """
    loaded = _load_providers()
    rows = [_describe(provider) for provider in loaded]
    if check:
        with open_database() as engine:
            for provider, row in zip(loaded, rows, strict=True):
                row["reachable"] = _ask(provider, engine) if row["configured"] == _YES else ""
    print_rows("Providers", rows, as_json)
    chosen = read_ingestion_defaults().providers
    if check and any(row["provider"] in chosen and row["reachable"] != _YES for row in rows):
        raise click.exceptions.Exit(_EXIT_UNREACHABLE)


def _load_providers() -> "list[Provider]":
    """Return every installed provider, and those of a family that INGESTION_PROVIDER names."""
    from market_pipeline.providers.registry import list_provider_names, load_provider

    names = dict.fromkeys((*list_provider_names(), *read_ingestion_defaults().providers))
    return [load_provider(name, os.environ) for name in names]


def _describe(provider: "Provider") -> dict[str, str]:
    return {
        "provider": provider.name,
        "serves": provider.summary,
        "symbols": ", ".join(provider.list_symbols()[:6]),
        "configured": provider.explain_missing_settings() or _YES,
    }


def _ask(provider: "Provider", engine: "Engine") -> str:
    """Return ``yes``, or what came instead of a price of the first market that it serves."""
    from market_pipeline.ingestion.drive import make_limiter
    from market_pipeline.providers.rate_limiter import use_limiter

    symbols = (*read_ingestion_defaults().symbols, *provider.list_symbols())
    market = next((found for one in symbols if (found := provider.find_market(one))), None)
    if market is None:
        return "it names no market"
    try:
        with use_limiter(make_limiter(engine, [(provider, market)])):
            prices = provider.fetch_snapshots([market], datetime.now(UTC))
    except ProviderError as error:
        return str(error)
    return _YES if prices else f"it answered without a price of {market.symbol}"
