"""Statistics and comparisons as frames: the newest, a span, at a time, of a version."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import Engine, text

from market_pipeline import read_comparisons, read_roi_statistics
from market_pipeline.domain.errors import HistoryRequestError, UnknownMarketError
from market_pipeline.storage.bulk.upsert import upsert_frame
from market_pipeline.storage.tables import market_comparison
from market_pipeline_tests.ingestion.test_next_run import NOON
from market_pipeline_tests.readers.writing import find_market_id

DAYS = [datetime(2024, 3, day, tzinfo=UTC) for day in (12, 13, 14)]


@pytest.fixture
def stored(stored: Engine) -> Engine:
    """Two markets, Bitcoin with statistics of one day, and three days of comparisons."""
    base, quote = (find_market_id(stored, symbol) for symbol in ("BTC-USD", "ETH-USD"))
    rows = pd.DataFrame(
        {
            "base_market_id": base, "quote_market_id": quote, "interval": "1d", "horizon": "30d",
            "as_of": DAYS, "method": "simple;skew=21600",
            "price_ratio": [20.0, 21.0, 22.0], "correlation": [0.5, 0.6, np.nan],
            "n_returns": [30, 30, 3], "reason": [None, None, "insufficient_data"],
            "dataset_version": pd.Series([1, 2, 3], dtype="Int64"),
        }
    )  # fmt: skip
    missing = ("volume_ratio", "roi_spread", "close_skew_seconds")
    with stored.begin() as connection:
        upsert_frame(
            connection, market_comparison, rows.assign(**dict.fromkeys(missing, np.nan)), {}
        )
    return stored


def test_the_newest_statistic_of_each_horizon_is_read(stored: Engine) -> None:
    """One row a horizon, in the order of their length, with the table's values."""
    frame = read_roi_statistics("BTC-USD", engine=stored)
    assert list(frame["horizon"]) == ["7d", "30d"]
    with stored.connect() as connection:
        query = text("SELECT roi FROM market_data.market_roi_statistic WHERE horizon = '7d'")
        assert frame["roi"].iloc[0] == connection.execute(query).scalar_one()
        newest = connection.execute(text("SELECT max(version) FROM market_data.dataset_version"))
        assert frame.attrs["dataset_version"] == newest.scalar_one()
    assert str(frame.index.dtype) == "datetime64[us, UTC]"
    assert str(frame["n_returns"].dtype) == "Int64"


def test_reads_on_one_connection_are_of_one_moment(stored: Engine) -> None:
    """What is committed between two reads is seen by neither."""
    change = text("UPDATE market_data.market_roi_statistic SET roi = 7")
    with stored.connect() as opened:
        connection = opened.execution_options(isolation_level="REPEATABLE READ")
        before = read_roi_statistics("BTC-USD", engine=connection)
        with stored.begin() as other:
            other.execute(change)
        after = read_roi_statistics("BTC-USD", engine=connection)
    pd.testing.assert_frame_equal(before, after)
    assert set(read_roi_statistics("BTC-USD", engine=stored)["roi"]) == {7.0}


def test_types_are_the_same_without_rows(stored: Engine) -> None:
    """A market without statistics gives an empty frame of the same shape."""
    some, none = (read_roi_statistics(one, engine=stored) for one in ("BTC-USD", "ETH-USD"))
    assert none.empty
    assert list(some.dtypes) == list(none.dtypes)
    assert some.index.dtype == none.index.dtype


def test_comparisons_are_the_newest_or_those_of_a_span(stored: Engine) -> None:
    """Spans are half open; either side of a pair finds it."""
    newest = read_comparisons("ETH-USD", engine=stored)
    assert list(newest["price_ratio"]) == [22.0]
    assert newest["reason"].iloc[0] == "insufficient_data"
    span = read_comparisons(start=DAYS[0], end=DAYS[2], engine=stored)
    assert list(span.index) == DAYS[:2]
    assert list(span["base_symbol"]) == ["BTC-USD"] * 2
    assert list(span["quote_provider"]) == ["mock"] * 2


def test_a_time_or_version_shows_what_was_newest_then(stored: Engine) -> None:
    """By the close of the bars used, and by their version."""
    then = DAYS[1] + timedelta(hours=1)
    assert list(read_comparisons(as_of=then, engine=stored)["price_ratio"]) == [21.0]
    assert list(read_comparisons(version=1, engine=stored)["price_ratio"]) == [20.0]
    assert read_roi_statistics(version=0, engine=stored).empty


def test_the_other_side_of_a_pair_can_be_named(stored: Engine) -> None:
    """A pair is found from both ends, and only with both."""
    assert len(read_comparisons("ETH-USD", against="BTC-USD", engine=stored)) == 1
    assert read_comparisons("ETH-USD", against="ETH-USD", engine=stored).empty


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"start": NOON}, "belong together"),
        ({"start": NOON, "end": NOON, "as_of": NOON}, "exclude each other"),
        ({"as_of": datetime(2999, 1, 1, tzinfo=UTC)}, "future"),
        ({"version": 9_999}, "9999"),
        ({"interval": "2d"}, "2d"),
        ({"start": NOON, "end": NOON - timedelta(days=1)}, "after end"),
    ],
)
def test_what_contradicts_itself_is_refused(
    stored: Engine, asked: dict[str, object], words: str
) -> None:
    """The message says what was wrong."""
    for read in (read_roi_statistics, read_comparisons):
        with pytest.raises(HistoryRequestError, match=words):
            read(engine=stored, **asked)  # type: ignore[operator]
    with pytest.raises(UnknownMarketError, match="NO-USD"):
        read_comparisons(["BTC-USD", "NO-USD"], engine=stored)
