"""Who a market is: its provider's id, not its symbol. Renamed markets, re-used tickers."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, text

from market_pipeline.domain.errors import UnknownMarketError
from market_pipeline.domain.records import Market
from market_pipeline.ingestion.request import filter_active
from market_pipeline.providers.mock import MockProvider
from market_pipeline.readers.resolve import find_markets
from market_pipeline.storage.markets.admin import prefer_market
from market_pipeline.storage.markets.registration import ensure_market, register_markets
from market_pipeline_tests.ingestion.test_next_run import NOON, Pipeline

_ROWS = """SELECT symbol, provider_market_id, is_active, is_primary FROM market_data.market
    ORDER BY market_id"""


@pytest.fixture
def luna() -> Market:
    """A market as its provider names it at first."""
    found = MockProvider({}).find_market("LUNA-USD")
    assert found is not None
    return replace(found, provider_market_id="terra-luna")


def read_rows(engine: Engine) -> list[tuple[Any, ...]]:
    """Return symbol, provider's id, active, primary of every row, the oldest first."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(_ROWS))]


def read_primaries(engine: Engine) -> list[str]:
    """Return the providers of all primary markets."""
    query = "SELECT provider FROM market_data.market WHERE is_primary"
    with engine.connect() as connection:
        return list(connection.execute(text(query)).scalars())


def register(engine: Engine, *markets: Market) -> None:
    """Register as a run does."""
    with engine.begin() as connection:
        register_markets(connection, markets, claim_primary=True)


def test_a_renamed_market_keeps_its_row_and_its_history(engine: Engine, luna: Market) -> None:
    """The new symbol is another name of the same series."""
    key = ensure_market(engine, luna, claim_primary=True)
    renamed = replace(luna, symbol="LUNC-USD", base="LUNC")
    assert ensure_market(engine, renamed, claim_primary=True) == key
    assert read_rows(engine) == [("LUNC-USD", "terra-luna", True, True)]


def test_who_asks_for_a_former_symbol_hears_the_new_one(engine: Engine, luna: Market) -> None:
    """Also after a second renaming, by provider, and among others that are simply unknown."""
    for symbol in ("LUNA-USD", "LUNX-USD", "LUNC-USD"):
        register(engine, replace(luna, symbol=symbol))
    with engine.connect() as connection:
        for former in ("LUNA-USD", "LUNX-USD", "MOCK:LUNA-USD"):
            with pytest.raises(UnknownMarketError) as refused:
                find_markets(connection, [former, "NO-USD"])
            assert str(refused.value) == (
                f"no stored market is called {former}, NO-USD: {former} was renamed to "
                "mock:LUNC-USD; there is LUNC-USD"
            )
        with pytest.raises(UnknownMarketError) as another:
            find_markets(connection, "YAHOO:LUNA-USD")
        assert "renamed" not in str(another.value)
    register(engine, replace(luna, symbol="LUNC-USD"), replace(luna, provider_market_id="luna-2"))
    with engine.connect() as connection:
        [found] = find_markets(connection, "LUNA-USD").values()
    assert found.provider_market_id == "luna-2"


def test_a_re_used_ticker_begins_a_row_of_its_own(engine: Engine, luna: Market) -> None:
    """The former market ends; two instruments are never one series."""
    key = ensure_market(engine, luna, claim_primary=True)
    other = replace(luna, provider_market_id="terra-luna-2")
    assert ensure_market(engine, other, claim_primary=True) != key
    assert read_rows(engine) == [
        ("LUNA-USD", "terra-luna", False, False),
        ("LUNA-USD", "terra-luna-2", True, True),
    ]
    assert ensure_market(engine, other, claim_primary=True) != key
    assert len(read_rows(engine)) == 2


def test_a_name_goes_over_while_its_owner_takes_another(engine: Engine, luna: Market) -> None:
    """Both in one run, in whatever order: each keeps what is its own."""
    register(engine, luna)
    renamed = replace(luna, symbol="LUNC-USD", base="LUNC")
    other = replace(luna, provider_market_id="terra-luna-2")
    for markets in ((other, renamed), (renamed, other)):
        register(engine, *markets)
        assert read_rows(engine) == [
            ("LUNC-USD", "terra-luna", True, True),
            ("LUNA-USD", "terra-luna-2", True, True),
        ]


def test_a_preferred_market_stays_primary_whatever_runs_are_configured_with(
    engine: Engine, luna: Market
) -> None:
    """Also against the configured provider; a run decides again once the preference is undone."""
    other = replace(luna, provider="yahoo")
    keys = [ensure_market(engine, market, claim_primary=True) for market in (luna, other)]
    assert read_primaries(engine) == ["yahoo"]
    assert prefer_market(engine, keys[0]) == "yahoo"
    register(engine, other)
    assert read_primaries(engine) == ["mock"]
    assert prefer_market(engine, keys[0], is_preferred=False) == "mock"
    assert read_primaries(engine) == ["mock"]
    register(engine, other)
    assert read_primaries(engine) == ["yahoo"]


def test_a_preference_ends_with_its_symbol(engine: Engine, luna: Market) -> None:
    """A renamed market is not preferred under a name that nobody declared."""
    prefer_market(engine, ensure_market(engine, luna, claim_primary=True))
    renamed = replace(luna, symbol="LUNC-USD", base="LUNC")
    register(engine, renamed)
    register(engine, replace(renamed, provider="yahoo"))
    assert read_primaries(engine) == ["yahoo"]


def test_bars_of_the_former_market_stay_apart(engine: Engine) -> None:
    """A run of the new one adds nothing to the old series."""
    pipeline = Pipeline(engine)
    pipeline.run(NOON)
    before = len(pipeline.bars())
    with engine.begin() as connection:
        connection.execute(text("UPDATE market_data.market SET provider_market_id = 'former'"))
    pipeline.run(NOON)
    counts = pipeline.read("""SELECT provider_market_id, count(*) FROM market_data.market_aggregate
        JOIN market_data.market USING (market_id) GROUP BY 1 ORDER BY 1""")
    assert {row["provider_market_id"]: row["count"] for row in counts}["former"] == before
    assert len(counts) == 2


FACTS = "SELECT calendar, quote, price_basis, venue FROM market_data.market"
NEW_FACTS = {"calendar": "XETR", "quote": "EUR", "price_basis": "adjusted", "venue": "XETRA"}


def read_facts(engine: Engine) -> tuple[Any, ...]:
    """Return calendar, quote, price basis and venue of the one market."""
    with engine.connect() as connection:
        return tuple(connection.execute(text(FACTS)).one())


def test_what_bars_were_read_by_is_not_changed_by_a_run(engine: Engine) -> None:
    """Calendar, quote and price basis stay while there are bars; a venue is only a name."""
    Pipeline(engine).run(NOON)
    stored = MockProvider({}).find_market("BTC-USD")
    assert stored is not None
    told = replace(stored, **NEW_FACTS)
    register(engine, told)
    assert read_facts(engine) == ("24/7", "USD", "unadjusted", "XETRA")
    with engine.begin() as connection:
        register_markets(connection, [told], claim_primary=True, replace_facts=True)
    assert read_facts(engine) == tuple(NEW_FACTS.values())


def test_a_market_without_bars_is_what_its_provider_says(engine: Engine, luna: Market) -> None:
    """Nothing was read by the old facts."""
    register(engine, luna)
    register(engine, replace(luna, **NEW_FACTS))
    assert read_facts(engine) == tuple(NEW_FACTS.values())


def test_a_run_goes_on_with_the_stored_facts_and_says_so(engine: Engine) -> None:
    """The route's market is the stored one, with a note for the receipt; others are as routed."""
    Pipeline(engine).run(NOON)
    provider = MockProvider({})
    bitcoin, ether = provider.find_market("BTC-USD"), provider.find_market("ETH-USD")
    assert bitcoin is not None
    assert ether is not None
    told = replace(bitcoin, calendar="XETR", quote="EUR", assumed="quote EUR assumed")
    with engine.connect() as connection:
        kept = filter_active(connection, [(provider, told), (provider, ether)])
        same = filter_active(connection, [(provider, bitcoin)])
    assert [market for _, market in kept] == [bitcoin, ether]
    assert kept[1][1].assumed is same[0][1].assumed is None
    assert kept[0][1].assumed == (
        "quote EUR assumed; calendar 24/7 and quote USD are kept as stored, though mock says XETR "
        "and EUR: `market-pipeline markets reload mock:BTC-USD` would change them"
    )


def test_the_receipt_holds_what_was_assumed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a market that gave bars, and of one that gave none."""
    find_market = MockProvider.find_market

    def find_unsure(provider: MockProvider, symbol: str) -> Market | None:
        found = find_market(provider, symbol)
        return found and replace(found, assumed=f"everything about {symbol}")

    monkeypatch.setattr(MockProvider, "find_market", find_unsure)
    pipeline = Pipeline(engine)
    for fault in ("", "BTC-USD:wrong_symbol"):
        receipt = pipeline.receipt(pipeline.run(NOON, fault))
        assert receipt["assumed"] == "everything about BTC-USD"
