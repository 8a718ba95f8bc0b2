"""The latest values of markets, from the cache if it has them, otherwise from the database.

``read_latest`` gives a frame to analysts. ``fetch_latest`` gives plain JSON to servers: the body as
it is stored, where it came from, how old it is, and its versions. The cache comes from
``readers.serving.open_serving_cache``. Values that it does not have are added to it. Not here:
which entry may be served (``cache.guard``), the SQL (``storage.latest.values``).
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pandas as pd
from sqlalchemy import Connection, Engine

from market_pipeline.cache.keys import ALL_MARKETS, make_latest_key, make_name_key
from market_pipeline.cache.protocol import Cache, Entry, Fill, write_json
from market_pipeline.domain.symbols import parse_symbols
from market_pipeline.readers.latest_frame import build_latest_frame
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.resolve import find_named_markets
from market_pipeline.storage.latest.market_versions import read_market_versions
from market_pipeline.storage.latest.values import (
    LatestRow,
    read_latest_rows,
)
from market_pipeline.storage.markets.lookup import read_active_markets

Source: TypeAlias = Literal["cache", "database"]
Pair: TypeAlias = tuple[str, str]
_ALL = "*"


@dataclass(frozen=True)
class Latest:
    """The latest values of one market.

    Attributes:
        provider: The market's. symbol: Its name.
        entry: The values, when they were read from the database, and at which stamp.
        source: Where this reader had them from.
    """

    provider: str
    symbol: str
    entry: Entry
    source: Source

    @property
    def body(self) -> bytes:
        """The values as JSON in UTF-8, the same in cache and database."""
        return self.entry.body

    @property
    def value(self) -> dict[str, Any]:
        """The values; shared with other readers, so do not change them.

        ``symbol``, ``provider``, ``name``, ``base``, ``quote``, ``venue``, ``calendar``,
        ``is_primary``, ``is_active``, ``dataset_version`` (newest of its bars, or None),
        ``snapshot`` (the newest, or None), ``bars`` (the newest final one of each interval) and
        ``roi`` (the newest statistic of each horizon, with the reason of what is None). Times are
        ISO 8601 in UTC.
        """
        value: dict[str, Any] = self.entry.value
        return value

    @property
    def version(self) -> int:
        """The market's stamp: changes with every change of any of its values, and only then."""
        return self.entry.version

    @property
    def dataset_version(self) -> int | None:
        """The newest version of its bars; None: it has none."""
        version: int | None = self.value["dataset_version"]
        return version

    @property
    def age_seconds(self) -> float:
        """Seconds since the values were read from the database."""
        return self.entry.age_seconds


def fetch_latest(
    names: str | Sequence[str] | None = None,
    engine: Engine | None = None,
    cache: Cache | None = None,
) -> list[Latest]:
    """Return the latest values of markets, by symbol and provider, each once.

    Args:
        names: ``BTC-USD`` is the symbol's primary market, ``yahoo:BTC-USD`` that of a provider;
            None: all active markets.
        engine: Of the database; None opens the database in use, if it is needed.
        cache: Asked first, and filled; None: the database alone.

    Raises:
        UnknownMarketError: Names every market that is not stored.
        SettingError: A name is malformed, or there are none.
        StorageError: The database cannot be opened; one handed in raises SQLAlchemy's own errors.
    """
    wanted = None if names is None else parse_symbols([names] if isinstance(names, str) else names)
    pairs = _recall_markets(wanted, cache) if cache else None
    if cache and pairs is not None:
        known = _recall_values(pairs, cache)
        if len(known) == len(pairs):
            return [known[pair] for pair in pairs]
    with open_snapshot(engine) as connection:
        return _read_latest(connection, wanted, cache)


def _recall_markets(names: Sequence[str] | None, cache: Cache) -> list[Pair] | None:
    """Return the markets that names mean, if the cache knows all names."""
    keys = list(dict.fromkeys(map(make_name_key, _name_all(names))))
    found = cache.get_many(keys)
    if len(found) < len(keys):
        return None
    return _arrange(pair for key in keys for pair in found[key].value)


def _recall_values(pairs: Sequence[Pair], cache: Cache) -> dict[Pair, Latest]:
    keys = {make_latest_key(*pair): pair for pair in pairs}
    found = cache.get_many(list(keys))
    return {keys[key]: Latest(*keys[key], entry, "cache") for key, entry in found.items()}


def _read_latest(
    connection: Connection, names: Sequence[str] | None, cache: Cache | None
) -> list[Latest]:
    """Return what the cache has, and of one moment of the database what it has not."""
    meant = _find_meant(connection, names)
    pairs = _arrange(pair for found in meant.values() for pair in found)
    known = _recall_values(pairs, cache) if cache else {}
    rows = read_latest_rows(connection, [pair for pair in pairs if pair not in known])
    for row in rows:
        entry = Entry(row.version, row.body, time.time())
        known[row.provider, row.symbol] = Latest(row.provider, row.symbol, entry, "database")
    if cache:
        cache.put_many([*_fill_names(connection, meant), *map(make_fill, rows)])
    return [known[pair] for pair in pairs]


def _find_meant(connection: Connection, names: Sequence[str] | None) -> dict[str, list[Pair]]:
    """Return the markets that each name means."""
    if names is None:
        active = read_active_markets(connection)
        return {_ALL: [(row["provider"], row["symbol"]) for row in active]}
    return {
        name: [(market.record.provider, market.record.symbol)]
        for name, market in find_named_markets(connection, names).items()
    }


def _fill_names(connection: Connection, meant: Mapping[str, Sequence[Pair]]) -> list[Fill]:
    stamp = read_market_versions(connection, [ALL_MARKETS])[ALL_MARKETS]
    return [Fill(make_name_key(name), stamp, write_json(pairs)) for name, pairs in meant.items()]


def make_fill(row: LatestRow) -> Fill:
    """Return what is put into the cache for a market."""
    return Fill(make_latest_key(row.provider, row.symbol), row.version, row.body)


def _name_all(names: Sequence[str] | None) -> Sequence[str]:
    return [_ALL] if names is None else names


def _arrange(pairs: Iterable[Sequence[str]]) -> list[Pair]:
    """Return (provider, symbol) pairs, each once, by symbol and provider."""
    distinct = {(provider, symbol) for provider, symbol in pairs}
    return sorted(distinct, key=lambda pair: (pair[1], pair[0]))


def read_latest(
    symbols: str | Sequence[str] | None = None,
    engine: Engine | None = None,
    cache: Cache | None = None,
) -> pd.DataFrame:
    """Return the latest values of markets, one row each, by symbol and provider.

    Args:
        symbols: ``BTC-USD`` is the symbol's primary market, ``yahoo:BTC-USD`` that of a provider;
            None: all active markets.
        engine: Of :func:`open_database`, for many reads; None opens the database for this one.
        cache: Of :func:`open_serving_cache`; None: the database alone.

    Returns:
        Indexed by ``observed_at`` of the newest snapshot (datetime64[us, UTC], NaT without one):

        - ``symbol``, ``provider``, ``quote``, ``reason``, ``source`` (cache or database): str
        - ``price``, ``change_24h_ratio``, ``volume_24h``, ``market_cap``, ``realised_volatility``,
          ``roi``: float64, NaN where unknown, ``reason`` says why for the last two
        - ``bars_as_of`` (close of the last bar in them): datetime64[us, UTC]
        - ``close_1h``, ``close_1d``, ``close_1w`` of the newest final bars: float64, and
          ``closed_at_1h`` and so on: datetime64[us, UTC]
        - of each horizon that is stored, such as ``30d``: ``roi_30d``, ``sharpe_30d``,
          ``sortino_30d``, ``max_drawdown_30d``, ``annualised_volatility_30d``: float64, and
          ``reason_30d`` why one of them is NaN: str
        - ``dataset_version`` (newest of the market's bars): Int64

        ``attrs["dataset_version"]`` is the newest of all, None when there is none.

    Raises:
        UnknownMarketError: Names every market that is not stored.
        SettingError: A name is malformed, or there are none.
        StorageError: The database cannot be opened; one handed in raises SQLAlchemy's own errors.
    """
    found = fetch_latest(symbols, engine, cache)
    return build_latest_frame([(latest.value, latest.source) for latest in found])
