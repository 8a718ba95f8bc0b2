"""Days made of hours, where a provider serves hours only: always of all that is stored."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from sqlalchemy import Engine

from market_pipeline.domain.bars import build_daily_bars
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, build_bar_frame
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.ingestion import derived
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.registration import ensure_market
from market_pipeline.ingestion.request import build_request
from market_pipeline.ingestion.write import write_market_bars
from market_pipeline.providers.mock import MockProvider
from market_pipeline.storage.queries import read_bars

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
        expected = build_daily_bars(hours, read_sessions(hourly.calendar, START, END))
        assert_frame_equal(days, expected)


def test_hours_that_are_all_there_is_are_not_read_again(
    engine: Engine, hourly: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first load knows what it stored."""
    monkeypatch.delattr(derived, "read_bars")
    market_id = ensure_market(engine, replace(hourly, symbol="ETH-USD"), claim_primary=True)
    hours = make_hours(np.arange(len(HOURS)), seed=1)
    with engine.begin() as connection:
        run = Run(uuid4(), "manual", END, build_request(END, ["ETH-USD"], "mock", 10))
        stored = hours.assign(market_id=market_id)
        with pytest.raises(NameError, match="read_bars"):  # Nothing is stored yet.
            derived.rebuild_days(connection, hourly, market_id, stored, END)
    monkeypatch.undo()
    write(engine, hourly, market_id, hours)
    monkeypatch.delattr(derived, "read_bars")
    with engine.connect() as connection:
        days = derived.rebuild_days(connection, hourly, market_id, hours, run.request.now)
    assert days["is_final"].all()
    assert len(days) == len(HOURS) / 24
