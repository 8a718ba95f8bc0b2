"""History as it is, as it was known, and of a version, read back from real runs."""

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from sqlalchemy import Engine, event, text

from market_pipeline.domain.errors import (
    HistoryRequestError,
    NothingKnownYetError,
    UnknownMarketError,
)
from market_pipeline.readers import read_aggregates
from market_pipeline_tests.ingestion.test_next_run import NOON, Pipeline

SPAN = (datetime(2024, 3, 4, tzinfo=UTC), datetime(2024, 3, 14, tzinfo=UTC))


@pytest.fixture
def corrected(engine: Engine) -> Engine:
    """Ten days of one market, of which one day was corrected by a later version."""
    pipeline = Pipeline(engine)
    pipeline.run(NOON)
    with engine.begin() as connection:
        connection.execute(
            text("""
            UPDATE market_data.market_aggregate SET close = close * 1.01, high = high * 1.02
            WHERE interval = '1d' AND open_time = '2024-03-13T00:00Z'""")
        )
    pipeline.run(NOON + timedelta(hours=1))
    return engine


def test_the_newest_values_are_final_bars_in_order(corrected: Engine) -> None:
    """A tidy frame: one row for each day, none of them running."""
    bars = read_aggregates("BTC-USD", "1d", *SPAN, engine=corrected)
    assert len(bars) == 10
    assert bars.index.is_monotonic_increasing
    assert set(bars["provider"]) == {"mock"}


def test_a_version_shows_a_corrected_day_as_it_was(corrected: Engine) -> None:
    """The first version has the value that the second replaced; all other days are the same."""
    newest = read_aggregates("BTC-USD", "1d", *SPAN, engine=corrected)
    first = int(newest["dataset_version"].min())
    before = read_aggregates("BTC-USD", "1d", *SPAN, version=first, engine=corrected)
    differs = newest["close"] != before["close"]
    assert list(newest.index[differs]) == [datetime(2024, 3, 13, tzinfo=UTC)]


def test_a_read_is_of_one_moment(corrected: Engine) -> None:
    """What is committed between two of its statements is seen by none of them."""
    before = read_aggregates("BTC-USD", "1d", *SPAN, engine=corrected)
    waiting = ["UPDATE market_data.market_aggregate SET close = close + 1, high = high + 1",
               "SELECT nextval('market_data.dataset_version_seq')",
               "UPDATE market_data.market_coverage SET settled = '{}'"]  # fmt: skip

    def change(*_: object) -> None:
        changes, waiting[:] = waiting[:], []
        for statement in changes:
            with corrected.begin() as connection:
                connection.exec_driver_sql(statement)

    event.listen(corrected, "after_cursor_execute", change)
    seen = read_aggregates("BTC-USD", "1d", *SPAN, engine=corrected)
    event.remove(corrected, "after_cursor_execute", change)
    assert waiting == []
    pd.testing.assert_frame_equal(seen, before)
    assert seen.attrs == before.attrs


def test_nothing_known_is_said_with_the_time_of_the_first(corrected: Engine) -> None:
    """History that was filled later was not known; the assumption is explicit, and flagged."""
    then = datetime(2024, 3, 9, tzinfo=UTC)
    with pytest.raises(NothingKnownYetError, match="assumed"):
        read_aggregates("BTC-USD", "1d", *SPAN, as_of=then, engine=corrected)
    assumed = read_aggregates("BTC-USD", "1d", *SPAN, as_of=then, basis="assumed", engine=corrected)
    assert len(assumed) == 5  # the days of 4 to 8 March had closed
    assert assumed["is_assumed"].all()


def test_what_cannot_be_answered_is_named(corrected: Engine) -> None:
    """Unknown symbols among good ones, a version to come, a time to come."""
    with pytest.raises(UnknownMarketError, match="NO-USD, NOR-USD"):
        read_aggregates(["NO-USD", "BTC-USD", "NOR-USD"], "1d", *SPAN, engine=corrected)
    with pytest.raises(HistoryRequestError, match="999"):
        read_aggregates("BTC-USD", "1d", *SPAN, version=999, engine=corrected)
    future = datetime.now(UTC) + timedelta(days=1)
    with pytest.raises(HistoryRequestError, match="future"):
        read_aggregates("BTC-USD", "1d", *SPAN, as_of=future, engine=corrected)
