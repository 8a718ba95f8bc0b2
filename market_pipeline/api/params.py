"""The parameters of the read routes: markets and times, in one form."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import Path, Query, Request
from sqlalchemy import Connection

from market_pipeline.api.problems import DAYS_FORM, ProblemError
from market_pipeline.domain.records import Market
from market_pipeline.domain.symbols import parse_symbols
from market_pipeline.readers.resolve import find_named_markets
from market_pipeline.settings import split_list

Symbol = Annotated[
    str,
    Path(
        description="`BTC-USD` is the primary market, `mock:BTC-USD` that of a provider",
        max_length=80,
        examples=["BTC-USD"],
    ),
]
ProviderName = Annotated[
    str | None,
    Query(
        description="The provider; default: that of the primary market",
        max_length=40,
        examples=["mock"],
    ),
]
Symbols = Annotated[
    str | None,
    Query(
        description="Markets, named as in a path and separated by commas; default all",
        max_length=20_000,
        examples=["BTC-USD,mock:ETH-USD"],
    ),
]
Format = Annotated[
    Literal["json", "csv", "parquet", "arrow"] | None,
    Query(alias="format", description="Instead of the header Accept"),
]
Start = Annotated[datetime | None, Query(description="Start, included; UTC if it has no zone")]
End = Annotated[datetime | None, Query(description="End, not included; default now")]
AsOf = Annotated[datetime | None, Query(description="As it was known, or newest, at this time")]
MOST = 2**63 - 1
Version = Annotated[int | None, Query(ge=0, le=MOST, description="As in this dataset version")]
Require = Annotated[
    Literal["complete", "explained"] | None,
    Query(
        description="Refuse (409) if expected bars are missing; `explained`: unless they never come"
    ),
]
Horizon = Annotated[
    str | None, Query(pattern=DAYS_FORM, description="Such as 30d", examples=["30d"])
]


def find_market(connection: Connection, symbol: str, provider: str | None) -> tuple[int, Market]:
    """Return the market that a route's path and ``provider`` mean, and its key.

    One that is not stored is an ``UnknownMarketError``, a malformed name a ``SettingError``.
    """
    (name,) = parse_symbols([name_market(symbol, provider)])
    (found,) = find_named_markets(connection, [name]).values()
    return found.market_id, found.record


async def refuse_unknown(request: Request) -> None:
    """Refuse parameters that the route does not take, by name: a misspelled one would not count."""
    if not request.query_params:
        return
    paths, route = request.app.openapi()["paths"], request.scope["route"]
    described = paths.get(route.path, {}).get(request.method.lower())
    if described is None:
        return
    found = described.get("parameters", [])
    taken = sorted(parameter["name"] for parameter in found if parameter["in"] == "query")
    unknown = sorted(set(request.query_params) - set(taken))
    if unknown:
        names = f"this path takes {', '.join(taken) or 'none'}"
        detail = f"unknown parameter {', '.join(unknown)[:200]}: {names}"
        raise ProblemError(400, "Invalid Request", detail)


def split_symbols(symbols: str | None) -> tuple[str, ...] | None:
    """Return the names in a parameter of symbols; None: it was not given.

    A malformed name is a ``SettingError``, and so is none.
    """
    return None if symbols is None else parse_symbols(split_list(symbols))


def name_market(symbol: str, provider: str | None) -> str:
    """Return the one name that readers know a market by."""
    return f"{provider}:{symbol}" if provider else symbol
