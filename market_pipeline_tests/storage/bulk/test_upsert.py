"""The write path against a plain Python model: every type, any batch, several writers at once."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import IntegrityError

from market_pipeline.domain.records import BAR_COLUMNS, build_bar_frame
from market_pipeline.storage.bulk import staging
from market_pipeline.storage.bulk.staging import find_span, stage_frame
from market_pipeline.storage.bulk.upsert import (
    WriteCounts,
    merge_staged,
    take_dataset_version,
    upsert_frame,
)
from market_pipeline.storage.tables import market, market_aggregate
from market_pipeline_tests.storage.bulk.upsert_model import (
    KEYS,
    VALUES,
    Model,
    Row,
    batches,
    build_frame,
    metadata,
    revision,
    rows,
    sample,
)

PATHS = {"in the statement": 1_000_000, "by COPY": 0}
TABLES_STAY = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def sampled(engine: Engine) -> Engine:
    """A database that has the sample table as well."""
    metadata.create_all(engine)
    return engine


def test_categories_in_the_key_are_bounded_as_words_are() -> None:
    """Many comparisons with one market: their horizons are categories, which have no order."""
    horizons = pd.Categorical(["30d", "7d", "30d"], categories=["7d", "365d", "30d"])
    keys = pd.DataFrame({"base_market_id": [4, 4, 4], "horizon": horizons, "at": [3, 1, 2]})
    assert find_span(keys, np.array([0, 1, 2])) == {
        "base_market_id": (4, 4), "horizon": ("30d", "7d"), "at": (1, 3)
    }  # fmt: skip


def write(engine: Engine, batch: list[Row]) -> tuple[int, WriteCounts]:
    """Write a batch as ingestion does, and return its version and counts."""
    with engine.begin() as connection:
        staged = stage_frame(connection, sample, build_frame(batch))
        version = take_dataset_version(connection)
        stamps = {"known_at": datetime.now(UTC), "dataset_version": version, "run_id": uuid4()}
        return version, merge_staged(connection, staged, stamps)


def empty(engine: Engine) -> None:
    """Take every row out of the sample tables."""
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE public.sample, public.sample_revision"))


def assert_holds(engine: Engine, model: Model) -> None:
    """Compare the tables with the model."""
    kept = [sample.c[name] for name in (*KEYS, *VALUES, "dataset_version")]
    replaced = [revision.c[name] for name in (*KEYS, *VALUES, "dataset_version")]
    with engine.connect() as connection:
        stored = {tuple(row[:3]): tuple(row[3:]) for row in connection.execute(select(*kept))}
        query = select(*replaced, revision.c.replaced_by_version)
        revised = [tuple(row) for row in connection.execute(query)]
    assert stored == model.stored
    assert sorted(revised, key=repr) == sorted(model.revised, key=repr)


@pytest.mark.owner
@pytest.mark.parametrize("path", PATHS)
@TABLES_STAY
@given(written=st.lists(batches, min_size=1, max_size=4))
def test_batches_one_after_another_leave_what_the_model_says(
    sampled: Engine, monkeypatch: pytest.MonkeyPatch, path: str, written: list[list[Row]]
) -> None:
    """Whatever the values, NULLs, duplicates and order: same rows, same counts, same revisions."""
    monkeypatch.setattr(staging, "INLINE_ROWS", PATHS[path])
    empty(sampled)
    model = Model()
    for batch in written:
        version, counts = write(sampled, batch)
        assert counts == model.write(batch, version)
    assert_holds(sampled, model)


@pytest.mark.owner
@pytest.mark.parametrize("writers", [2, 8])
@settings(TABLES_STAY, max_examples=10)
@given(written=st.lists(st.lists(rows, min_size=1, max_size=30), min_size=8, max_size=24))
def test_a7_concurrent_writers_are_as_good_as_one(
    sampled: Engine, monkeypatch: pytest.MonkeyPatch, writers: int, written: list[list[Row]]
) -> None:
    """In the order of their versions the batches explain every row and every count."""
    monkeypatch.setattr(staging, "INLINE_ROWS", 15)  # both ways at once
    empty(sampled)
    with ThreadPoolExecutor(writers) as pool:
        answers = list(pool.map(lambda batch: write(sampled, batch), written))
    model = Model()
    for (version, counts), batch in sorted(
        zip(answers, written, strict=True), key=lambda pair: pair[0][0]
    ):
        assert counts == model.write(batch, version)
    assert_holds(sampled, model)


def add_market(connection: Connection, symbol: str = "X-USD") -> int:
    """Add a market and return its key."""
    row = {"provider": "mock", "provider_market_id": symbol, "symbol": symbol, "name": "X"}
    row |= {"base": "X", "quote": "USD", "venue": "mock", "calendar": "24/7"}
    inserted = connection.execute(
        market.insert().values(**row, intervals=["1h"], price_basis="unadjusted")
    )
    return int(inserted.inserted_primary_key[0])  # type: ignore[index]


def build_bars(market_id: int, count: int) -> pd.DataFrame:
    """Return hourly bars."""
    opens = pd.date_range("2024-01-01", periods=count, freq="h", tz="UTC")
    prices = np.linspace(100, 200, count)
    bars = build_bar_frame(
        {
            "interval": "1h",
            "open_time": opens,
            "close_time": opens + pd.Timedelta(hours=1),
            "open": prices,
            "high": prices + 1,
            "low": prices - 1,
            "close": prices,
            "is_final": True,
        }
    )
    return bars.assign(market_id=market_id)


def write_bars(engine: Engine, bars: pd.DataFrame) -> WriteCounts:
    """Write bars in a transaction of their own."""
    stamps: dict[str, Any] = {"known_at": datetime.now(UTC), "run_id": uuid4()}
    with engine.begin() as connection:
        return upsert_frame(connection, market_aggregate, bars, {**stamps, "dataset_version": 1})


@pytest.mark.parametrize("count", [3, 3_000], ids=["in the statement", "by COPY"])
def test_the_same_data_again_rewrites_nothing(engine: Engine, count: int) -> None:
    """No row version, no dead row."""
    with engine.begin() as connection:
        bars = build_bars(add_market(connection), count)
    physical = text("SELECT open_time, xmin, ctid FROM market_data.market_aggregate ORDER BY 1")
    assert write_bars(engine, bars) == WriteCounts(inserted=count)
    with engine.connect() as connection:
        before = connection.execute(physical).all()
    assert write_bars(engine, bars.sample(frac=1, random_state=1)) == WriteCounts(unchanged=count)
    with engine.connect() as connection:
        assert connection.execute(physical).all() == before


@pytest.mark.parametrize(("count", "is_whole"), [(5, False), (300, False), (3_000, True)])
def test_a_table_is_read_as_a_whole_only_if_as_many_rows_come(
    engine: Engine, count: int, is_whole: bool
) -> None:
    """A few rows of many markets find theirs by the key, however many others there are."""
    with engine.begin() as connection:
        markets = [add_market(connection, symbol) for symbol in ("X-USD", "Y-USD")]
    write_bars(engine, pd.concat([build_bars(one, 3_000) for one in markets]))
    scans = (
        f"SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = '{market_aggregate.name}'"
    )
    stamps = {"known_at": datetime.now(UTC), "run_id": uuid4(), "dataset_version": 2}
    with engine.begin() as connection:
        before = connection.scalar(text(scans))
        bars = pd.concat([build_bars(one, count) for one in markets])
        upsert_frame(connection, market_aggregate, bars, stamps)
        assert (connection.scalar(text(scans)) > before) == is_whole


@pytest.mark.parametrize("count", [3, 3_000], ids=["in the statement", "by COPY"])
@pytest.mark.parametrize("price", [np.inf, -1.0])
def test_an_impossible_row_leaves_nothing_of_its_batch(
    engine: Engine, count: int, price: float
) -> None:
    """The table's CHECKs stand behind the checks, and a batch lands whole or not at all."""
    with engine.begin() as connection:
        bars = build_bars(add_market(connection), count)
    bars.loc[count - 1, ["low", "close"]] = price
    with pytest.raises(IntegrityError):
        write_bars(engine, bars)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT count(*) FROM market_data.market_aggregate"))
        assert rows.scalar_one() == 0


def test_nan_is_null_and_null_is_refused_where_a_price_must_be(engine: Engine) -> None:
    """NaN never enters a table: it would pass ``CHECK (close > 0)``."""
    with engine.begin() as connection:
        bars = build_bars(add_market(connection), 2)
    with pytest.raises(IntegrityError, match="null value"):
        write_bars(engine, bars.assign(close=np.nan))


def test_memory_is_bounded_by_chunks(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are encoded a chunk at a time: a batch ten times as long makes no longer piece."""
    monkeypatch.setattr(staging, "CHUNK_ROWS", 100)
    with engine.begin() as connection:
        bars = build_bars(add_market(connection), 1_000)
    order = staging.find_key_order(bars, list(KEYS))
    chunks = list(staging.iterate_chunks(bars, order, list(BAR_COLUMNS)))
    assert [len(chunk) for chunk in chunks] == [100] * 10
    assert write_bars(engine, bars) == WriteCounts(inserted=1_000)
