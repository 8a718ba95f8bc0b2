"""Days made of hours, where a provider serves hours only: always of all that is stored."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from sqlalchemy import Engine, text
from sqlalchemy.exc import ProgrammingError

from market_pipeline.domain.bars import build_daily_bars
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, build_bar_frame
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.ingestion.derived import rebuild_days
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.ingestion.write import write_market_bars
from market_pipeline.providers.mock import MockProvider
from market_pipeline.storage.bars.stored import read_bars
from market_pipeline.storage.markets.registration import ensure_market

START, END = datetime(2024, 3, 10, tzinfo=UTC), datetime(2024, 3, 16, tzinfo=UTC)
HOURS = pd.date_range(START, END, freq="h", inclusive="left", unit="us")
# The role goes with the transaction, which is never committed.
NO_PRICES = """
    CREATE ROLE counts_only;
    GRANT USAGE ON SCHEMA market_data TO counts_only;
    GRANT SELECT (market_id, "interval", open_time)
        ON market_data.market_aggregate TO counts_only;
    SET LOCAL ROLE counts_only"""


@pytest.fixture
def hourly() -> Market:
    """A market without days of its own."""
    found = MockProvider({}).find_market("BTC-USD")
    assert found is not None
    return replace(found, intervals=(Interval.HOUR,))


def make_hours(at: "np.ndarray[tuple[int], np.dtype[np.intp]]", seed: int) -> pd.DataFrame:
    """Return hours by their place; most of them are final."""
    random = np.random.default_rng(seed)
    close = random.uniform(90, 110, len(at))
    return build_bar_frame(
        {
            "interval": "1h",
            "open_time": HOURS[at],
            "close_time": HOURS[at] + pd.Timedelta(hours=1),
            "open": 100.0,
            "high": np.maximum(close, 100.0),
            "low": np.minimum(close, 100.0),
            "close": close,
            "volume": 1.0,
            "volume_kind": "base",
            "is_final": random.random(len(at)) < (1.0 if seed % 2 else 0.9),
        }
    )


def write(engine: Engine, one: Market, market_id: int, hours: pd.DataFrame) -> None:
    """Write hours as a batch of a run."""
    now = datetime.now(UTC)
    run = Run(uuid4(), "manual", now, build_request(now, [one.symbol], "mock", 10))
    with engine.begin() as connection:
        write_market_bars(connection, run, one, market_id, hours)


def test_days_follow_from_the_stored_hours_whatever_a_batch_brought(
    engine: Engine, hourly: Market
) -> None:
    """Parts of days, holes, corrections, and provisional hours that meet final ones."""
    market_id = ensure_market(engine, hourly, claim_primary=True)
    random = np.random.default_rng(7)
    for seed in range(30):
        first, count = random.integers(0, len(HOURS) - 1), random.integers(1, 60)
        at = np.arange(first, min(first + count, len(HOURS)))
        write(engine, hourly, market_id, make_hours(at[random.random(len(at)) < 0.95], seed))
        with engine.connect() as connection:
            hours, days = (
                read_bars(connection, market_id, interval, START, END)
                for interval in (Interval.HOUR, Interval.DAY)
            )
        expected = build_daily_bars(hours, read_sessions(hourly.calendar, START, END))
        assert_frame_equal(days, expected)


def test_an_hour_that_two_pages_had_counts_once(engine: Engine, hourly: Market) -> None:
    """Also when another stored hour makes up the number of rows."""
    market_id = ensure_market(engine, hourly, claim_primary=True)
    hours = make_hours(np.arange(24), seed=1).assign(volume=np.arange(24.0))
    write(engine, hourly, market_id, hours.iloc[:1])
    twice = pd.concat([hours.iloc[1:], hours.iloc[-1:]], ignore_index=True)
    write(engine, hourly, market_id, twice)
    with engine.connect() as connection:
        days = read_bars(connection, market_id, Interval.DAY, START, END)
    assert days["volume"].tolist() == [hours["volume"].sum()]
    assert days["is_final"].all()


@pytest.mark.owner
def test_hours_that_are_all_there_is_are_not_read_again(engine: Engine, hourly: Market) -> None:
    """A first load knows what it stored: days need no right to read a price."""
    market_id = ensure_market(engine, hourly, claim_primary=True)
    hours = make_hours(np.arange(len(HOURS)), seed=1)
    write(engine, hourly, market_id, hours)
    with engine.connect() as connection:
        connection.execute(text(NO_PRICES))
        days = rebuild_days(connection, hourly, market_id, hours, END)
        assert days["is_final"].tolist() == [True] * (len(HOURS) // 24)
        with pytest.raises(ProgrammingError, match="permission denied"):
            rebuild_days(connection, hourly, market_id, hours.iloc[:1], END)
