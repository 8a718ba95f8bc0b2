"""The markets of files: the contents of ``markets.csv``, and the assumptions without it.

Here: reading that table, and conclusions from a symbol and from the dates of its rows.
Not here: prices.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd

from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.intervals import ALWAYS_OPEN
from market_pipeline.domain.sessions import resolve_calendar
from market_pipeline.domain.strays import find_weekend_rule
from market_pipeline.domain.symbols import describe_symbol, parse_symbol
from market_pipeline.providers.listings import CURRENCIES, INDICES, LISTINGS

TABLE = "markets.csv"
WEEKDAYS = "24/5"
ADJUSTED = "adjusted"
PRICE_BASES = ("unadjusted", "split_adjusted", ADJUSTED)
_PAIR = re.compile(r"([A-Z]{3})[-/]?([A-Z]{3})")
_QUOTE = re.compile(r"[A-Z0-9]{2,10}")
# Known to be right: asking the library costs a third of a second.
_CALENDARS = {
    ALWAYS_OPEN, WEEKDAYS, "XNYS", *(calendar for calendar, _ in LISTINGS.values()),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MarketFacts:
    """The cells of a line of ``markets.csv``; an empty text means no value.

    The time zone, such as ``Europe/Berlin``, is that of stamps that name none; it also decides on
    which date a day's moment lies.
    """

    calendar: str = ""
    quote: str = ""
    timezone: str = ""
    price_basis: str = ""
    name: str = ""
    venue: str = ""


COLUMNS = ("symbol", *(field.name for field in fields(MarketFacts)))


@dataclass(frozen=True, slots=True)
class Reading:
    """The facts that a symbol implies; ``is_certain`` if they are no guess."""

    base: str
    quote: str
    calendar: str
    name: str
    is_certain: bool


def read_symbol(symbol: str) -> Reading:
    """Return the facts that a bare symbol implies about a file's market.

    ``BTC-USD`` never closes, ``DAX`` is an index, ``SAP.DE`` has the suffix of an exchange,
    ``EURUSD`` is two currencies, which trade on weekdays; whatever else is a share in New York.
    """
    described = describe_symbol(symbol.replace("/", "-"))
    if symbol in INDICES:
        _, name, _, calendar, currency = INDICES[symbol]
        return Reading(symbol, currency, calendar, name, is_certain=True)
    pair = _PAIR.fullmatch(symbol)
    if pair and CURRENCIES.issuperset(pair.groups()):
        return Reading(pair[1], pair[2], WEEKDAYS, symbol, is_certain=False)
    if described.calendar == ALWAYS_OPEN:
        return Reading(described.base, described.quote, ALWAYS_OPEN, symbol, is_certain=True)
    _, dot, suffix = symbol.rpartition(".")
    calendar, currency = LISTINGS.get(suffix if dot else "", ("XNYS", "USD"))
    return Reading(symbol, currency, calendar, symbol, is_certain=False)


def settle_facts(
    symbol: str, told: MarketFacts | None, dates: pd.DatetimeIndex, place: str
) -> tuple[str, str, str | None]:
    """Return calendar and quote of a file's market, and in a sentence what of them is assumed.

    ``told`` is what the table says of it; None: it does not name it. Dates are those of the file's
    rows, at 00:00 UTC. ``place`` is the table's name, for the sentence.
    """
    known, read = told or MarketFacts(), read_symbol(symbol)
    weekends = None if read.is_certain or known.calendar else find_weekend_rule(dates)
    calendar = known.calendar or (ALWAYS_OPEN if weekends else read.calendar)
    quote = known.quote or read.quote
    assumed = [
        f"{name} {value}"
        for name, value, is_told in (
            ("calendar", f"{calendar} ({weekends})" if weekends else calendar, known.calendar),
            ("quote", quote, known.quote),
        )
        if not is_told and not read.is_certain
    ]
    why = f"does not name {symbol}" if told is None else f"does not tell it of {symbol}"
    sentence = f"{' and '.join(assumed)} assumed: {place} {why}" if assumed else None
    return calendar, quote, sentence


def read_market_facts(path: Path) -> dict[str, MarketFacts]:
    """Return what a table says, by symbol; an error names the file, the line and the value."""
    facts: dict[str, MarketFacts] = {}
    lines: dict[str, int] = {}
    for line, cells in _iterate_rows(path):
        try:
            symbol = _take_symbol(cells, lines)
            facts[symbol], lines[symbol] = _check_facts(cells), line
        except SettingError as error:
            raise SettingError(f"{path} line {line}: {error}") from None
    return facts


def _take_symbol(cells: dict[str, str], lines: Mapping[str, int]) -> str:
    symbol = parse_symbol(cells.pop("symbol"))
    if symbol in lines:
        raise SettingError(
            f"symbol {symbol!r} is on line {lines[symbol]} as well: keep one of them"
        )
    return symbol


def _iterate_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row's line and cells by column."""
    text = _decode(path)
    first = text.partition("\n")[0]
    separator = max(",;\t|", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        _check_header(header)
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, _name_cells(header, row)
    except (csv.Error, SettingError) as error:
        raise SettingError(f"{path} line {max(reader.line_num, 1)}: {error}") from None


def _decode(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content[: error.start].count(b"\n") + 1, content[error.start]
        raise SettingError(
            f"{path} line {line}: byte {byte:#04x} is not UTF-8: save it as UTF-8"
        ) from None


def _check_header(header: list[str]) -> None:
    for at, name in enumerate(header):
        if name not in COLUMNS:
            known = ", ".join(COLUMNS)
            raise SettingError(f"column {name[:40]!r} is unknown: expected some of {known}")
        if name in header[:at]:
            raise SettingError(f"column {name!r} appears twice: keep one of them")
    if "symbol" not in header:
        raise SettingError("there is no column 'symbol': add it, with the name of each file")


def _name_cells(header: list[str], row: list[str]) -> dict[str, str]:
    if len(row) > len(header):
        raise SettingError(
            f"{','.join(row)[:60]!r} has {len(row)} cells for {len(header)} columns: put a name "
            "with a comma into quotation marks"
        )
    return dict.fromkeys(header, "") | {
        name: cell.strip() for name, cell in zip(header, row, strict=False)
    }


def _check_facts(cells: Mapping[str, str]) -> MarketFacts:
    facts = dict(cells)
    if facts.get("calendar") and facts["calendar"] not in _CALENDARS:
        facts["calendar"] = resolve_calendar(facts["calendar"])
    if quote := facts.get("quote", ""):
        facts["quote"] = quote.upper()
        if not _QUOTE.fullmatch(quote.upper()):
            raise SettingError(
                f"quote {quote[:40]!r} is not a currency: expected a code such as EUR"
            )
    if facts.get("timezone"):
        _check_zone(facts["timezone"])
    basis = facts.get("price_basis", "")
    if basis and basis not in PRICE_BASES:
        raise SettingError(
            f"price_basis {basis[:40]!r} is unknown: expected one of {', '.join(PRICE_BASES)}"
        )
    return MarketFacts(**facts)


def _check_zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # a folder of zones is none
        raise SettingError(
            f"timezone {name[:40]!r} is unknown: expected a name such as Europe/Berlin or UTC"
        ) from None
