"""``read_agreement``: how far the bars of one symbol lie apart between its sources.

Computed from stored bars when asked. Nothing is stored, and nothing is averaged.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import combinations, groupby

import numpy as np
from sqlalchemy import Connection, Engine

from market_pipeline.domain.agreement import Agreement, Series, compare_series, find_threshold
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.resolve import find_markets, parse_interval, parse_window
from market_pipeline.storage.bars.final_bars import FinalSpan, read_spans
from market_pipeline.storage.markets.lookup import read_active_markets
from market_pipeline.storage.rows import Row


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """How two sources of a symbol agree; where one is the symbol's primary, it is the first."""

    symbol: str
    interval: str
    provider: str
    other_provider: str
    agreement: Agreement

    @property
    def name(self) -> str:
        """Return ``SPX of yahoo and fred``."""
        return f"{self.symbol} of {self.provider} and {self.other_provider}"


def read_agreement(
    symbol: str | None,
    interval: Interval | str,
    start: datetime | str,
    end: datetime | str,
    engine: Engine | Connection | None = None,
) -> list[PairAgreement]:
    """Return how the final bars of a symbol agree, for each two of its active markets.

    Args:
        symbol: Such as ``SPX``; ``yahoo:SPX`` means the pairs that this market is in. None: all.
        interval: ``1h``, ``1d`` or ``1w``.
        start: Bars that open at or after it. A time without a zone is UTC.
        end: Bars that open before it.
        engine: Of :func:`open_database`, or a connection in a transaction; None opens the database.

    Returns:
        The pairs by provider, the primary market's first; none where one source has the symbol.
        Counts of missing bars are of the time in which both have bars.

    Raises:
        UnknownMarketError: No stored market is called so.
        HistoryRequestError: Arguments are malformed or contradict each other.
        StorageError: The database cannot be opened; one handed in raises SQLAlchemy's own errors.
    """
    window, chosen = parse_window(start, end), parse_interval(interval)
    with open_snapshot(engine) as connection:
        if symbol is None:
            return compare_sources(connection, chosen, window)
        [market] = find_markets(connection, symbol).values()
        pairs = compare_sources(connection, chosen, window, [market.symbol])
    is_any = market.symbol == symbol.strip().upper()
    return [one for one in pairs if is_any or market.provider in (one.provider, one.other_provider)]


def compare_sources(
    connection: Connection,
    interval: Interval,
    window: Window,
    symbols: Collection[str] | None = None,
) -> list[PairAgreement]:
    """Compare each two active markets that share one of some symbols, or any; ordered by both.

    The connection may be any: one statement reads all bars.
    """
    active = read_active_markets(connection)
    rows = [row for row in active if symbols is None or row["symbol"] in symbols]
    pairs = [
        pair
        for _, namesakes in groupby(rows, key=lambda row: row["symbol"])
        for pair in combinations(sorted(namesakes, key=lambda row: not row["is_primary"]), 2)
    ]
    bars = _read_series(connection, interval, window, pairs)
    return [_compare(one, other, interval, bars) for one, other in pairs]


def _compare(one: Row, other: Row, interval: Interval, bars: dict[int, Series]) -> PairAgreement:
    threshold = find_threshold(one["calendar"], other["calendar"])
    found = compare_series(bars[one["market_id"]], bars[other["market_id"]], threshold)
    if found.verdict == "differ" and one["quote"] != other["quote"]:
        found = replace(found, hint=f"they are priced in {one['quote']} and {other['quote']}")
    return PairAgreement(one["symbol"], interval.value, one["provider"], other["provider"], found)


def _read_series(
    connection: Connection, interval: Interval, window: Window, pairs: Sequence[Sequence[Row]]
) -> dict[int, Series]:
    """Return the closes of every market in the pairs by key."""
    keys = sorted({row["market_id"] for pair in pairs for row in pair})
    if not keys:
        return {}
    last = window.end - timedelta(microseconds=1)
    spans = [FinalSpan(key, window.start, last) for key in keys]
    bars = read_spans(connection, interval, spans, ("market_id", "open_time", "close"))
    owners, closes = bars["market_id"].to_numpy(), bars["close"].to_numpy(dtype="float64")
    opens = bars["open_time"].to_numpy(dtype="datetime64[us]").view("int64")
    bounds = np.searchsorted(owners, [keys, [key + 1 for key in keys]]).T
    return {
        key: Series(opens[slice(*bound)], closes[slice(*bound)])
        for key, bound in zip(keys, bounds, strict=True)
    }
