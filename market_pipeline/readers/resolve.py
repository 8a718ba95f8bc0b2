"""The arguments of readers: names of markets, times, intervals and versions, in one form.

Every refusal is a ``HistoryRequestError`` that says what was expected or what there is.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection

from market_pipeline.domain.errors import HistoryRequestError, UnknownMarketError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window
from market_pipeline.domain.symbols import parse_symbols
from market_pipeline.readers.encoding import format_time
from market_pipeline.storage.markets.lookup import (
    StoredMarket,
    read_every_market,
    read_markets_called,
    read_primary_symbols,
    read_renamed,
)

MAX_NAMES_SHOWN = 20
# No bar lies outside, and sums of times and spans cannot overflow within.
FIRST_YEAR, LAST_YEAR = 1700, 9000


def find_markets(connection: Connection, names: str | Sequence[str]) -> dict[int, Market]:
    """Return the markets behind names by key, each once, by symbol and provider.

    Args:
        connection: Any.
        names: ``BTC-USD`` is the symbol's primary market, ``yahoo:BTC-USD`` that of a provider.

    Raises:
        UnknownMarketError: Names every one that no stored market has.
        SettingError: A name is malformed, or there are none.
    """
    wanted = parse_symbols([names] if isinstance(names, str) else names)
    chosen = list(find_named_markets(connection, wanted).values())
    chosen.sort(key=lambda market: (market.record.symbol, market.record.provider))
    return {market.market_id: market.record for market in chosen}


def read_all_markets(connection: Connection) -> dict[int, Market]:
    """Return every stored market by key, by symbol and provider."""
    stored = read_every_market(connection)
    stored.sort(key=lambda market: (market.record.symbol, market.record.provider))
    return {market.market_id: market.record for market in stored}


def find_named_markets(connection: Connection, names: Sequence[str]) -> dict[str, StoredMarket]:
    """Return the market that each name means.

    Args:
        connection: Any.
        names: As ``parse_symbols`` returns them.

    Raises:
        UnknownMarketError: Names every one that no stored market has.
    """
    stored = _read_called(connection, names)
    found = {name: _choose(name, stored) for name in names}
    _refuse_unknown(connection, [name for name, market in found.items() if market is None])
    return {name: market for name, market in found.items() if market is not None}


def find_market_called(connection: Connection, name: str) -> StoredMarket | None:
    """Return the market that a name means as it is spelled, else in upper case, if there is one.

    Args:
        connection: Any.
        name: ``provider:symbol``, or a symbol for its primary market.
    """
    spellings = (name, name.upper())
    stored = _read_called(connection, spellings)
    return next((found for spelling in spellings if (found := _choose(spelling, stored))), None)


def find_market_ids(connection: Connection, names: Sequence[str]) -> list[int]:
    """Return the keys of all markets behind names: a bare symbol means every provider's.

    Args:
        connection: Any.
        names: As ``parse_symbols`` returns them.

    Raises:
        UnknownMarketError: Names every one that no stored market has.
    """
    stored = _read_called(connection, names)
    called = {
        name: [
            market.market_id
            for market in stored
            if name in _list_names(market.record, market.record.symbol)
        ]
        for name in names
    }
    _refuse_unknown(connection, [name for name, found in called.items() if not found])
    return sorted({market_id for found in called.values() for market_id in found})


def _read_called(connection: Connection, names: Sequence[str]) -> list[StoredMarket]:
    return read_markets_called(connection, _list_symbols(names))


def _refuse_unknown(connection: Connection, unknown: Sequence[str]) -> None:
    if unknown:
        raise build_unknown_error(connection, unknown)


def build_unknown_error(connection: Connection, unknown: Sequence[str]) -> UnknownMarketError:
    """Return the error for names that no stored market has: what they are now, what there is."""
    renamed, stored = _list_renamed(connection, unknown), read_primary_symbols(connection)
    known = shorten_list(stored) if stored else "nothing yet: `market-pipeline ingest` stores some"
    told = "; ".join([*renamed, f"there is {known}"])
    return UnknownMarketError(f"no stored market is called {', '.join(unknown)}: {told}")


def _list_renamed(connection: Connection, names: Sequence[str]) -> list[str]:
    return [
        f"{name} was renamed to {market.provider}:{market.symbol}"
        for market, former in read_renamed(connection, _list_symbols(names))
        for symbol in former
        for name in names
        if name in _list_names(market, symbol)
    ]


def _list_symbols(names: Sequence[str]) -> list[str]:
    """Return what the names may mean: a symbol may have a colon of its own."""
    return sorted({part for name in names for part in (name, _split(name)[1])})


def _list_names(market: Market, symbol: str) -> set[str]:
    return {symbol, f"{market.provider.upper()}:{symbol}"}


def _choose(name: str, stored: Sequence[StoredMarket]) -> StoredMarket | None:
    """Return the market of a name; a symbol may have a colon of its own."""
    explicit = (market for market in stored if _split(name) == _make_key(market.record))
    primary = (market for market in stored if market.is_primary and market.record.symbol == name)
    return next(explicit, None) or next(primary, None)


def _split(name: str) -> tuple[str, str]:
    provider, _, symbol = name.partition(":")
    return provider.upper(), symbol


def _make_key(market: Market) -> tuple[str, str]:
    return market.provider.upper(), market.symbol


def shorten_list(words: Sequence[str]) -> str:
    """Return words with commas, and only how many more there are after the first twenty."""
    more = len(words) - MAX_NAMES_SHOWN
    shown = ", ".join(words[:MAX_NAMES_SHOWN]) or "nothing yet"
    return f"{shown} and {more:,} more" if more > 0 else shown


def parse_interval(text: str) -> Interval:
    """Return the interval.

    Raises:
        HistoryRequestError: There is no such interval.
    """
    known: Mapping[str, Interval] = {interval.value: interval for interval in Interval}
    if text not in known:
        raise HistoryRequestError(f"interval {text!r} is unknown: expected {', '.join(known)}")
    return known[text]


def parse_moment(name: str, moment: datetime | str) -> datetime:
    """Return a time in UTC; one without a zone is UTC.

    Raises:
        HistoryRequestError: It is no time, or one outside the years 1700 to 9000.
    """
    try:
        parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        parsed = parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except OverflowError:
        raise _build_range_error(name, moment) from None
    except (ValueError, AttributeError):
        raise HistoryRequestError(
            f"{name}={moment!r}: expected a datetime or an ISO 8601 text, such as 2024-01-31T00:00Z"
        ) from None
    if not FIRST_YEAR <= parsed.year <= LAST_YEAR:
        raise _build_range_error(name, moment)
    return parsed


def _build_range_error(name: str, moment: datetime | str) -> HistoryRequestError:
    told = moment if isinstance(moment, str) else moment.isoformat()
    return HistoryRequestError(
        f"{name}={told}: expected a time in the years {FIRST_YEAR} to {LAST_YEAR}"
    )


def parse_past_moment(name: str, moment: datetime | str) -> datetime:
    """Return a time in UTC that is not in the future.

    Raises:
        HistoryRequestError: It is no time, or still to come.
    """
    parsed = parse_moment(name, moment)
    if parsed > datetime.now(UTC):
        raise HistoryRequestError(
            f"{name}={format_time(parsed)} is in the future: expected a time that has passed"
        )
    return parsed


def parse_window(start: datetime | str, end: datetime | str) -> Window:
    """Return the window ``[start, end)`` in UTC.

    Raises:
        HistoryRequestError: It ends before it starts, or one is no time.
    """
    window = Window(parse_moment("start", start), parse_moment("end", end))
    if window.start > window.end:
        raise HistoryRequestError(
            f"start={format_time(window.start)} is after end={format_time(window.end)}"
        )
    return window


def check_version(version: int, newest: int) -> None:
    """Make sure that a dataset version exists; 0 is the empty one before the first.

    Raises:
        HistoryRequestError: Names the newest.
    """
    if not 0 <= version <= newest:
        raise HistoryRequestError(
            f"dataset version {version} does not exist: the newest is {newest}"
        )
