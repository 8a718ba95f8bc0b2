"""A provider that changes its mind about stored bars: followed to its end, then read again."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import Engine

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.ingestion.stream import BarStream
from market_pipeline.ingestion.write import commit_item
from market_pipeline.providers.base import Provider
from market_pipeline.providers.file import FileProvider
from market_pipeline.providers.mock import MockProvider
from market_pipeline_tests.commands import ROOT
from market_pipeline_tests.ingestion.test_next_run import NOON, REQUESTS, Pipeline

HOUR = timedelta(hours=1)
EVENTS = "SELECT * FROM market_data.market_event ORDER BY event_id"
BARS = """
    SELECT interval, open_time, open, high, low, close FROM market_data.market_aggregate
    WHERE is_final AND interval <> '1w' ORDER BY interval, open_time"""
REVISIONS = "SELECT count(*) AS count FROM market_data.market_aggregate_revision"
SERIES = ROOT / "market_pipeline_tests" / "recordings" / "series" / "SPX.csv"
SATURDAY = datetime(2024, 6, 29, 12, tzinfo=UTC)
MONDAY = datetime(2024, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def pipeline(engine: Engine) -> Pipeline:
    """A pipeline on an empty database."""
    return Pipeline(engine)


def ingest(engine: Engine, provider: Provider, symbol: str, now: datetime, days: int) -> Run:
    """Ingest one market of any provider as a run of its own."""
    market = provider.find_market(symbol)
    assert market is not None
    request = build_request(datetime.now(UTC), [symbol], provider.name, days, now.isoformat())
    run = Run(uuid4(), "manual", now, request)
    for item in BarStream(engine, run.run_id, request, [(provider, market)]):
        commit_item(engine, run, item)
    return run


def compute_history(now: datetime, symbol: str = "BTC-USD", faults: str = "") -> pd.DataFrame:
    """Return what the mock says by itself of all final bars: no database is asked."""
    provider = MockProvider({"MOCK_FAULTS": faults})
    market = provider.find_market(symbol)
    assert market is not None
    window = Window(now - timedelta(days=100), now)
    frames = [
        provider.fetch_bars(market, interval, window, now)
        for interval in (Interval.DAY, Interval.HOUR)
    ]
    bars = pd.concat(frames)
    return bars[bars["is_final"]].set_index(["interval", "open_time"]).sort_index()


def find_wrong(pipeline: Pipeline, expected: pd.DataFrame) -> list[Any]:
    """Return the stored final bars whose prices are not the expected ones."""
    prices = ["open", "high", "low", "close"]
    stored = pd.DataFrame(pipeline.read(BARS)).set_index(["interval", "open_time"])
    other = expected.loc[stored.index, prices].to_numpy()
    same = np.isclose(stored[prices].to_numpy(), other, rtol=1e-12).all(axis=1)
    return stored.index[~same].tolist()


def list_purposes(pipeline: Pipeline, run_id: Any) -> list[str]:
    """Return what a run asked for, without repetition."""
    return sorted({row["purpose"] for row in pipeline.read(REQUESTS, run_id=run_id)})


def write_spx(folder: Path, ratio: float) -> FileProvider:
    """Write 300 recorded days of the S&P 500 on the sessions up to 28 June 2024, and serve them."""
    recorded = pd.read_csv(SERIES).tail(300)
    sessions = read_sessions("XNYS", datetime(2023, 1, 1, tzinfo=UTC), SATURDAY)
    dates = sessions["session_date"].tail(300).dt.strftime("%Y-%m-%d")
    prices = recorded[["Open", "High", "Low", "Close"]].to_numpy() * ratio
    table = pd.DataFrame(prices, columns=["open", "high", "low", "close"])
    table.insert(0, "date", dates.to_numpy())
    table.to_csv(folder / "SPX.csv", index=False)
    return FileProvider({"FILE_PROVIDER_PATH": str(folder)})


def test_a_first_load_in_a_wrong_scale_is_healed_by_the_first_clean_run(pipeline: Pipeline) -> None:
    """Three per cent is no split, and still one and the same event over all of the market."""
    pipeline.run(NOON, "*:rescaled=1.03")
    clean = pipeline.run(NOON + HOUR)
    assert find_wrong(pipeline, compute_history(NOON + HOUR)) == []
    (event,) = pipeline.read(EVENTS)
    assert (event["kind"], event["resolution"]) == ("difference", "repaired")
    assert event["ratio"] == pytest.approx(1 / 1.03)
    assert event["spread"] < 1e-9
    receipt = pipeline.receipt(clean)
    assert (receipt["outcome"], receipt["reason"]) == ("ok", None)
    assert receipt["revised"] == pipeline.read(REVISIONS)[0]["count"] > 300


def test_a_rescaled_file_leaves_no_correction_inside_the_old_series(
    engine: Engine, pipeline: Pipeline, tmp_path: Path
) -> None:
    """Read again before the session opens, when nothing but old bars is looked at."""
    ingest(engine, write_spx(tmp_path, 1.0), "SPX", SATURDAY, 366)
    before = pd.DataFrame(pipeline.read(BARS))
    run = ingest(engine, write_spx(tmp_path, 0.25), "SPX", MONDAY, 366)
    after = pd.DataFrame(pipeline.read(BARS))
    assert np.allclose(after["close"] / before["close"], 0.25, rtol=1e-12)
    (event,) = pipeline.read(EVENTS)
    assert (event["ratio"], event["resolution"]) == (pytest.approx(0.25), "repaired")
    assert list_purposes(pipeline, run.run_id) == ["reload", "trace", "verify"]
    weeks = "SELECT max(high) / min(low) AS span FROM market_data.market_aggregate"
    assert pipeline.read(weeks)[0]["span"] < 2  # no bar of any kind holds both scales
