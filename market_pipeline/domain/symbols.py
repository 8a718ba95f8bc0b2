"""Symbols: the strings that may name a market, and what a bare symbol implies about it."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.intervals import ALWAYS_OPEN

_SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9._:/^=-]{0,31}")
_QUOTES = {"USD", "EUR", "GBP", "JPY", "CHF", "AUD", "CAD", "USDT", "USDC", "BTC", "ETH"}
_INDICES = {"SPX": "S&P 500", "NDX": "Nasdaq 100", "DJI": "Dow Jones Industrial Average"}


def parse_symbol(text: str) -> str:
    """Return the symbol in its one spelling (NFC, upper case).

    Raises:
        SettingError: Characters outside ``A-Z 0-9 . _ : / ^ = -``, empty, or over 32 characters.
    """
    symbol = unicodedata.normalize("NFC", text.strip()).upper()
    if not _SYMBOL.fullmatch(symbol) or ".." in symbol:
        raise SettingError(
            f"symbol {text[:40]!r} is malformed: expected 1 to 32 of A-Z 0-9 . _ : / ^ = - "
            "beginning with a letter or digit, for example BTC-USD"
        )
    return symbol


def parse_symbols(texts: Iterable[str]) -> tuple[str, ...]:
    """Return distinct symbols in the order given.

    Raises:
        SettingError: One is malformed, or there are none.
    """
    symbols = tuple(dict.fromkeys(parse_symbol(text) for text in texts))
    if not symbols:
        raise SettingError("the market list is empty: name at least one symbol, such as BTC-USD")
    return symbols


@dataclass(frozen=True, slots=True)
class SymbolDescription:
    """The facts that a bare symbol implies: ``BTC-USD`` never closes, ``SPX`` follows New York."""

    name: str
    base: str
    quote: str
    calendar: str


def describe_symbol(symbol: str) -> SymbolDescription:
    """Read base, quote and calendar off a symbol, for providers that know no more than its name."""
    base, _, quote = symbol.rpartition("-")
    if base and quote in _QUOTES:
        return SymbolDescription(name=symbol, base=base, quote=quote, calendar=ALWAYS_OPEN)
    name = _INDICES.get(symbol, symbol)
    return SymbolDescription(name=name, base=symbol, quote="USD", calendar="XNYS")
