"""Markets found by key and by name, and those that are active.

Not here: what is shown of many markets (``listings``), which market a name means
(``readers.resolve``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from sqlalchemy import Connection, Text, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market
from market_pipeline.storage.rows import Row, fetch, read_frame
from market_pipeline.storage.tables import market

# Built once: every request asks it.
_CALLED = (
    select(market)
    .where(market.c.symbol == func.any(bindparam("symbols", type_=ARRAY(Text))))
    .order_by(market.c.is_active.desc(), market.c.listed_from.desc(), market.c.market_id)
)
# The active markets of some pairs of provider and symbol.
_OF_KEYS = text("""
    SELECT market_id, provider, symbol, quote, calendar FROM market_data.market
    WHERE is_active AND (provider, symbol) IN (
        SELECT * FROM unnest(CAST(:providers AS text[]), CAST(:symbols AS text[])))
    ORDER BY market_id
""")
# The active markets, by symbol and provider.
_ACTIVE = text("""
    SELECT market_id, provider, symbol, calendar, quote, is_primary
    FROM market_data.market WHERE is_active ORDER BY symbol, provider
""")


@dataclass(frozen=True, slots=True)
class StoredMarket:
    """A market and its key."""

    market_id: int
    is_primary: bool
    is_active: bool
    record: Market


def read_markets(connection: Connection, keys: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return the active markets of (provider, symbol) pairs, in market_id order.

    Columns are ``market_id``, ``provider``, ``symbol``, ``quote`` and ``calendar``.
    """
    providers, symbols = ([key[at] for key in keys] for at in (0, 1))
    return read_frame(connection, _OF_KEYS, providers=providers, symbols=symbols)


def read_active_markets(connection: Connection) -> list[Row]:
    """Return the active markets, by symbol and provider."""
    return fetch(connection, _ACTIVE)


def read_market(connection: Connection, market_id: int) -> StoredMarket:
    """Return the market of a key."""
    query = select(market).where(market.c.market_id == market_id)
    return _build_market(connection.execute(query).mappings().one())


def read_markets_called(connection: Connection, symbols: Sequence[str]) -> list[StoredMarket]:
    """Return all markets of some symbols, whoever provides them; active and younger ones first."""
    rows = connection.execute(_CALLED, {"symbols": list(symbols)}).mappings()
    return [_build_market(row) for row in rows]


def read_every_market(connection: Connection) -> list[StoredMarket]:
    """Return all markets, also those no longer ingested."""
    return [_build_market(row) for row in connection.execute(select(market)).mappings()]


def _build_market(row: Mapping[Any, Any]) -> StoredMarket:
    names = [
        name for name in Market.__dataclass_fields__ if name in market.c and name != "intervals"
    ]
    intervals = tuple(Interval(text) for text in row["intervals"])
    record = Market(**{name: row[name] for name in names}, intervals=intervals)
    return StoredMarket(row["market_id"], row["is_primary"], row["is_active"], record)


def read_renamed(connection: Connection, symbols: Sequence[str]) -> list[tuple[Market, list[str]]]:
    """Return the active markets that once had one of the symbols, and all they were called."""
    query = select(market).where(
        market.c.is_active,
        market.c.former_symbols.op("&&")(bindparam("symbols", list(symbols), ARRAY(Text))),
    )
    rows = connection.execute(query.order_by(market.c.market_id)).mappings()
    return [(_build_market(row).record, row["former_symbols"]) for row in rows]


def read_primary_symbols(connection: Connection) -> list[str]:
    """Return the symbols that name a market without its provider, in alphabetical order."""
    query = select(market.c.symbol).where(market.c.is_primary).order_by(market.c.symbol)
    return list(connection.execute(query).scalars())
