"""Markets with bars, prices and statistics, written the way runs write them."""

from datetime import datetime, timedelta
from uuid import uuid4

import pandas as pd
from sqlalchemy import Engine, text

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import UTC_DTYPE
from market_pipeline.domain.roi import compute_roi_statistics
from market_pipeline.ingestion.commit import write_rows
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.storage.bars.final_bars import plan_market_spans, read_spans
from market_pipeline.storage.bulk.upsert import WriteCounts
from market_pipeline.storage.tables import market_roi_statistic, market_snapshot
from market_pipeline_tests.ingestion.test_next_run import NOON, Pipeline

SYMBOLS = ("BTC-USD", "ETH-USD")


def make_run(now: datetime = NOON) -> Run:
    """Return a run of the mock provider."""
    request = build_request(now, list(SYMBOLS), "mock", 10, now.isoformat())
    return Run(uuid4(), "manual", now, request)


def find_market_id(engine: Engine, symbol: str) -> int:
    """Return the key of a market."""
    query = text("SELECT market_id FROM market_data.market WHERE symbol = :symbol")
    with engine.connect() as connection:
        return int(connection.execute(query, {"symbol": symbol}).scalar_one())


def write_price(
    engine: Engine, price: float, symbol: str = "BTC-USD", observed_at: datetime = NOON
) -> WriteCounts:
    """Commit a snapshot as the asset does."""
    row = {
        "market_id": find_market_id(engine, symbol),
        "observed_at": observed_at,
        "price": price,
        "volume_24h": 1e9,
        "change_24h_ratio": 0.1,
        "market_cap": float("nan"),
        "realised_volatility": float("nan"),
        "roi": float("nan"),
        "reason": "insufficient_data",
    }
    frame = pd.DataFrame([row]).astype({"observed_at": UTC_DTYPE})
    frame["bars_as_of"] = pd.Series([pd.NaT], dtype=UTC_DTYPE)
    return write_rows(engine, make_run(), market_snapshot, frame, "ok")


def write_statistics(engine: Engine, min_returns: int = 5) -> WriteCounts:
    """Compute and commit ROI statistics of Bitcoin as the asset does."""
    key = find_market_id(engine, "BTC-USD")
    with engine.connect() as connection:
        spans = plan_market_spans(connection, {key: "24/7"}, Interval.DAY, 30)
        bars = read_spans(connection, Interval.DAY, spans)
    rows = compute_roi_statistics(
        bars, {key: "24/7"}, Interval.DAY, (7, 30), risk_free_annual=0.0, min_returns=min_returns
    ).rename(columns={"reasons": "reason"})
    return write_rows(engine, make_run(), market_roi_statistic, rows, "ok")


def write_markets_with_prices(engine: Engine) -> None:
    """Ten days of two markets; Bitcoin also has statistics."""
    for symbol, price in zip(SYMBOLS, (60_000.0, 3_000.0), strict=True):
        Pipeline(engine).run(NOON, symbol=symbol)
        write_price(engine, price - 1, symbol, NOON - timedelta(hours=1))
        write_price(engine, price, symbol)
    write_statistics(engine)
