"""Days made of hours, where a provider serves hours only: always of all that is stored."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from sqlalchemy import Engine

from market_pipeline.domain.bars import BuiltBars
from market_pipeline.domain.columns import read_frame_columns
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, build_bar_frame
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.ingestion.bar_writing import write_market_bars
from market_pipeline.ingestion.derived import MarketBars, derive_bars
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.mock import MockProvider
from market_pipeline.storage.bars.stored import read_bars
from market_pipeline.storage.markets.registration import ensure_market
from market_pipeline_tests.frames import build_days

START, END = datetime(2024, 3, 10, tzinfo=UTC), datetime(2024, 3, 16, tzinfo=UTC)
HOURS = pd.date_range(START, END, freq="h", inclusive="left", unit="us")


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
        expected = build_days(hours, read_sessions(hourly.calendar, START, END))
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


def test_days_are_built_before_their_hours_are_stored(hourly: Market) -> None:
    """Of new hours laid over stored ones, so the merge lock waits for no computation."""
    hours = read_frame_columns(make_hours(np.arange(24), seed=1))
    stored = BuiltBars(hours.take(slice(0, 12)), np.full(12, 1))
    part = MarketBars(hourly, 1, hours.take(slice(12, 24)))
    built = derive_bars([part], stored, END)
    days = built.bars.of_interval(Interval.DAY)
    assert days.volume.tolist() == [24.0]
    assert days.high.tolist() == [hours.high.max()]
    assert days.is_final.tolist() == [True]


def test_a_provisional_hour_does_not_replace_a_final_one(hourly: Market) -> None:
    """Neither in the table nor in the day that is built of it."""
    hours = read_frame_columns(make_hours(np.arange(24), seed=1))
    stored = BuiltBars(hours, np.full(24, 1))
    late = hours.take(slice(23, 24))
    late = replace(late, volume=late.volume + 7, is_final=np.array([False]))
    days = derive_bars([MarketBars(hourly, 1, late)], stored, END).bars.of_interval(Interval.DAY)
    assert days.volume.tolist() == [24.0]
    assert days.is_final.tolist() == [True]
