"""Two sources of a symbol, compared from what is stored."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from market_pipeline import read_agreement
from market_pipeline.domain.errors import HistoryRequestError, UnknownMarketError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.readers.agreement import compare_sources
from market_pipeline_tests.readers.bar_history import MONDAY, Bar, History, make_days

SPAN = ("1d", MONDAY, MONDAY + timedelta(days=30))
CLOSES = [100.0 + day % 3 for day in range(20)]


@pytest.fixture
def sources(history: History) -> History:
    """Three sources of SPX: the second is 10 bp higher, the third a hundred times; and one of A."""
    changes = {"mock": 1.0, "alpha": 1.001, "beta": 100.0}
    for provider, factor in changes.items():
        key = history.add_market("SPX", provider, is_primary=provider == "mock")
        history.commit(key, make_days(close * factor for close in CLOSES))
    history.add_market("A-USD")
    return history


def test_each_two_sources_are_compared_with_the_primary_first(sources: History) -> None:
    """Figures, verdict, and the bars that differ most with both values."""
    pairs = read_agreement("SPX", *SPAN, engine=sources.engine)
    assert [(one.provider, one.other_provider) for one in pairs] == [
        ("mock", "alpha"), ("mock", "beta"), ("alpha", "beta"),
    ]  # fmt: skip
    near, far = pairs[0].agreement, pairs[1].agreement
    assert (near.verdict, near.bars, near.missing, near.other_missing) == ("agree", 20, 0, 0)
    assert near.median_bp == pytest.approx(10)
    assert (far.verdict, far.hint) == (
        "differ", "the first is 0.01 times the second: one of them may have another unit",
    )  # fmt: skip
    worst = far.worst[0]
    assert (worst.open_time, worst.close, worst.other_close) == (MONDAY, 100.0, 10_000.0)


def test_sessions_are_judged_more_strictly(sources: History) -> None:
    """Ten basis points are too much for an index."""
    with sources.engine.begin() as connection:
        connection.execute(text("UPDATE market_data.market SET calendar = 'XNYS'"))
    assert read_agreement("SPX", *SPAN, engine=sources.engine)[0].agreement.verdict == "differ"


def test_a_provider_narrows_the_pairs(sources: History) -> None:
    """``alpha:SPX`` means the pairs that it is in."""
    pairs = read_agreement("alpha:SPX", *SPAN, engine=sources.engine)
    assert [one.name for one in pairs] == ["SPX of mock and alpha", "SPX of alpha and beta"]


def test_only_final_bars_in_the_span_count(sources: History) -> None:
    """Neither those that still run nor those outside."""
    sources.commit(1, [Bar(MONDAY + timedelta(days=20), 5.0, is_final=False)])
    sources.commit(2, make_days([1.0, 2.0], first=MONDAY + timedelta(days=20)))
    few = ("1d", MONDAY, MONDAY + timedelta(days=5))
    assert read_agreement("SPX", *few, engine=sources.engine)[0].agreement.bars == 5
    assert read_agreement("SPX", *SPAN, engine=sources.engine)[0].agreement.bars == 20


def test_another_currency_is_the_cause(sources: History) -> None:
    """It is known, and need not be guessed."""
    with sources.engine.begin() as connection:
        connection.execute(text("UPDATE market_data.market SET quote = 'GBX' WHERE market_id = 3"))
    pairs = read_agreement("SPX", *SPAN, engine=sources.engine)
    assert pairs[1].agreement.hint == "they are priced in USD and GBX"


def test_a_single_source_has_nobody_to_compare_with(sources: History) -> None:
    """Nor has one whose namesakes are deactivated; and bars may be missing altogether."""
    assert read_agreement("A-USD", *SPAN, engine=sources.engine) == []
    sources.add_market("A-USD", "alpha", is_primary=False)
    (pair,) = read_agreement("A-USD", *SPAN, engine=sources.engine)
    assert pair.agreement.verdict == "nothing_in_common"
    with sources.engine.begin() as connection:
        connection.execute(text("UPDATE market_data.market SET is_active = provider = 'mock'"))
    assert read_agreement("SPX", *SPAN, engine=sources.engine) == []


def test_all_symbols_are_compared_in_one_go(sources: History) -> None:
    """By symbol and provider; those wanted alone."""
    assert len(read_agreement(None, *SPAN, engine=sources.engine)) == 3
    sources.add_market("A-USD", "alpha", is_primary=False)
    window = Window(MONDAY, datetime(2024, 2, 1, tzinfo=UTC))
    with sources.engine.connect() as connection:
        pairs = compare_sources(connection, Interval.DAY, window)
        assert [one.symbol for one in pairs] == ["A-USD", "SPX", "SPX", "SPX"]
        assert len(compare_sources(connection, Interval.DAY, window, ["A-USD"])) == 1
        assert compare_sources(connection, Interval.DAY, window, ["B-USD"]) == []


def test_bad_arguments_are_refused(sources: History) -> None:
    """With what was expected."""
    with pytest.raises(UnknownMarketError, match="NOPE"):
        read_agreement("NOPE", *SPAN, engine=sources.engine)
    with pytest.raises(HistoryRequestError, match="interval '5m' is unknown"):
        read_agreement("SPX", "5m", *SPAN[1:], engine=sources.engine)
