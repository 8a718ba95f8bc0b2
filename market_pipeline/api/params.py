"""What the read side's routes take: markets and times, in one form."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import Depends, Path, Query
from sqlalchemy import Connection

from market_pipeline.api.services import Services, get_services
from market_pipeline.domain.records import Market
from market_pipeline.domain.symbols import parse_symbols
from market_pipeline.readers.resolve import find_named_markets

MAX_VERSION = 2**63 - 1

ServicesNeeded = Annotated[Services, Depends(get_services)]
Symbol = Annotated[
    str,
    Path(
        description="`BTC-USD` is the symbol's primary market, `mock:BTC-USD` a provider's",
        max_length=80,
        examples=["BTC-USD"],
    ),
]
ProviderName = Annotated[
    str | None,
    Query(description="Whose market; without it the primary one", max_length=40, examples=["mock"]),
]
Format = Annotated[
    Literal["json", "csv", "parquet", "arrow"] | None,
    Query(alias="format", description="Instead of the header Accept"),
]
Start = Annotated[datetime | None, Query(description="First moment, UTC without a zone")]
End = Annotated[datetime | None, Query(description="First moment no longer wanted; default now")]
AsOf = Annotated[datetime | None, Query(description="What was known, or newest, at this time")]
Version = Annotated[
    int | None, Query(ge=0, le=MAX_VERSION, description="What this dataset version holds")
]
Require = Annotated[
    Literal["complete", "explained"] | None,
    Query(
        description="Refuse (409) unless every expected bar is there; `explained`: or will never be"
    ),
]
Horizon = Annotated[
    str | None, Query(pattern=r"^\d{1,5}d$", description="Such as 30d", examples=["30d"])
]


def find_market(connection: Connection, symbol: str, provider: str | None) -> tuple[int, Market]:
    """Return the market that a route's path and ``provider`` mean, and its key.

    Raises:
        UnknownMarketError: It is not stored.
        SettingError: The name is malformed.
    """
    (name,) = parse_symbols([name_market(symbol, provider)])
    (found,) = find_named_markets(connection, [name]).values()
    return found.market_id, found.record


def name_market(symbol: str, provider: str | None) -> str:
    """Return the one name that readers know a market by."""
    return f"{provider}:{symbol}" if provider else symbol
