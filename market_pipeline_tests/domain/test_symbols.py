"""Which strings name a market, and what a bare symbol tells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.symbols import (
    SymbolDescription,
    describe_symbol,
    parse_symbol,
    parse_symbols,
)


@pytest.mark.parametrize(
    ("text", "symbol"),
    [(" btc-usd ", "BTC-USD"), ("brk.b", "BRK.B"), ("mock:btc-usd", "MOCK:BTC-USD"), ("3M", "3M")],
)
def test_a_symbol_has_one_spelling(text: str, symbol: str) -> None:
    """Case and surrounding blanks do not make another market."""
    assert parse_symbol(text) == symbol


@pytest.mark.parametrize("text", ["", " ", "-USD", "../etc", "A..B", "BTC USD", "A" * 33, "B\x00C"])
def test_a_malformed_symbol_is_refused(text: str) -> None:
    """What could not name a market never reaches a provider or a path."""
    with pytest.raises(SettingError, match="malformed"):
        parse_symbol(text)


@given(st.text(max_size=40))
def test_parsing_twice_changes_nothing_or_refuses(text: str) -> None:
    """Any text gives a stable symbol or a SettingError, and no other error."""
    try:
        symbol = parse_symbol(text)
    except SettingError:
        return
    assert parse_symbol(symbol) == symbol


def test_a_list_keeps_its_order_and_names_each_market_once() -> None:
    """Repeats of one symbol, however spelled, are one market."""
    assert parse_symbols(["spx", "BTC-USD", "SPX"]) == ("SPX", "BTC-USD")


def test_an_empty_list_is_refused() -> None:
    """A request without a market is a mistake in the settings."""
    with pytest.raises(SettingError, match="empty"):
        parse_symbols([])


def test_any_number_of_symbols_is_accepted() -> None:
    """A run is as large as its user wants; only a request over HTTP has a bound."""
    assert len(parse_symbols(f"M{n}" for n in range(10_001))) == 10_001


@pytest.mark.parametrize(
    ("symbol", "description"),
    [
        ("BTC-USD", SymbolDescription("BTC-USD", "BTC", "USD", "24/7")),
        ("SPX", SymbolDescription("S&P 500", "SPX", "USD", "XNYS")),
        ("BRK-B", SymbolDescription("BRK-B", "BRK-B", "USD", "XNYS")),
    ],
)
def test_a_bare_symbol_tells_base_quote_and_calendar(
    symbol: str, description: SymbolDescription
) -> None:
    """A pair in a known currency never closes; anything else follows New York."""
    assert describe_symbol(symbol) == description
