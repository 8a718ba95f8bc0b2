"""A database of the version before is upgraded, read on, and added to without a revision."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text

from market_pipeline.readers.aggregates import read_aggregates
from market_pipeline.readers.changes import read_changes
from market_pipeline.readers.latest import read_latest
from market_pipeline.readers.statistics import read_comparisons, read_roi_statistics
from market_pipeline.readers.why import explain_statistic
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.schema import (
    read_newest_revision,
    read_revision,
    upgrade_schema,
)
from market_pipeline_tests.databases import create_database, read_column
from market_pipeline_tests.old_database import LATER, REPLAYED_UNTIL, ingest_again, load_dump
from market_pipeline_tests.replay import ReplayServer

BARS = """
    SELECT market_id || ' ' || interval || ' ' || open_time || ' ' || row(open, high, low, close)
    FROM market_data.market_aggregate WHERE is_final ORDER BY 1"""
REVISIONS = "SELECT count(*) FROM market_data.market_aggregate_revision"


@pytest.fixture
def old(server_url: str) -> Iterator[Engine]:
    """The old database as it was left."""
    with create_database(server_url) as url:
        load_dump(url)
        engine = open_engine(DatabaseAddress(url, is_embedded=True))
        yield engine
        engine.dispose()


@pytest.fixture
def upgraded(old: Engine) -> Engine:
    """The old database with today's tables."""
    upgrade_schema(old)
    return old


def read_rows(engine: Engine, query: str, **values: object) -> list[dict[str, Any]]:
    """Return a query's rows."""
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(query), values).mappings()]


def test_i5_the_old_tables_are_migrated_to_todays(upgraded: Engine) -> None:
    """Each migration since takes the rows along."""
    assert read_revision(upgraded) == read_newest_revision()
    counts = "SELECT count(*) FROM market_data.market_aggregate"
    assert read_column(upgraded, counts) == [2110]
    assert read_column(upgraded, REVISIONS) == [2]


@pytest.mark.parametrize("interval", ["1h", "1d", "1w"])
def test_bars_of_before_are_read_on(upgraded: Engine, interval: str) -> None:
    """By today's tables and as they were known: the values that were replaced as well."""
    span = ("mock:BTC-USD", interval, "2024-02-01", "2024-04-01")
    now = read_aggregates(*span, engine=upgraded)
    before = read_aggregates(*span, version=2, engine=upgraded)
    assert len(now) >= len(before) > 0
    assert before["close"].notna().all()
    assert now["dataset_version"].max() >= before["dataset_version"].max()


def test_statistics_and_prices_of_before_are_read_on(upgraded: Engine) -> None:
    """Every reader answers for the markets of all four providers."""
    statistics = read_roi_statistics(engine=upgraded)
    assert set(statistics["provider"]) == {"mock", "file", "coingecko", "yahoo"}
    assert statistics["roi"].notna().any()
    assert len(read_comparisons("mock:BTC-USD", against="mock:SPX", engine=upgraded)) > 0
    latest = read_latest(engine=upgraded)
    assert len(latest) == 7
    assert latest["price"].notna().all()
    assert read_changes(0, 8, engine=upgraded).total > 0
    (row, *_) = read_rows(
        upgraded,
        """SELECT horizon FROM market_data.market_roi_statistic JOIN market_data.market
            USING (market_id) WHERE provider = 'file' AND roi IS NOT NULL ORDER BY 1""",
    )
    told = explain_statistic("file:SPX", "roi", row["horizon"], engine=upgraded)
    assert told.value == told.recomputed


def test_the_first_run_after_the_upgrade_revises_nothing(upgraded: Engine) -> None:
    """The same answers, read otherwise now: what is stored stays to the last bit, more comes."""
    before = read_column(upgraded, BARS)
    with ReplayServer(now=REPLAYED_UNTIL + LATER) as replay:
        runs = ingest_again(upgraded, replay)
    after = read_column(upgraded, BARS)
    assert set(before) <= set(after)
    assert len(after) > len(before)
    assert read_column(upgraded, REVISIONS) == [2]
    assert read_column(upgraded, "SELECT count(*) FROM market_data.market_event") == [0]
    receipts = read_rows(
        upgraded,
        "SELECT outcome, revised FROM market_data.ingestion_run_market WHERE run_id = ANY(:runs)",
        runs=runs,
    )
    assert [row["revised"] for row in receipts] == [0] * 7
    assert "failed" not in [row["outcome"] for row in receipts]
