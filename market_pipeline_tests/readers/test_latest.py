"""The latest values: what they are, where they come from, and what they cost."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pandas as pd
import pytest
from sqlalchemy import Engine, event, text

from market_pipeline.domain.errors import SettingError, UnknownMarketError
from market_pipeline.readers import fetch_latest, open_serving_cache, read_latest
from market_pipeline.readers.encoding import format_time
from market_pipeline.readers.serving import ServingCache
from market_pipeline.storage.latest.values import build_latest_query
from market_pipeline_tests.readers.writing import (
    find_market_id,
)


@pytest.fixture
def cache(stored: Engine) -> Iterator[ServingCache]:
    """The cache of this process on that database."""
    opened = open_serving_cache(stored, {})
    yield opened
    opened.close()


def test_the_latest_values_are_the_tables_newest_rows(stored: Engine) -> None:
    """Snapshot, final bar of each interval and statistic of each horizon equal what SQL finds."""
    (latest,) = fetch_latest("BTC-USD", stored)
    value = latest.value
    assert (latest.source, value["symbol"], value["provider"]) == ("database", "BTC-USD", "mock")
    assert (value["quote"], value["is_primary"]) == ("USD", True)
    assert value["snapshot"]["price"] == 60_000
    assert value["snapshot"]["observed_at"] == "2024-03-15T12:00:00Z"
    assert (value["snapshot"]["roi"], value["snapshot"]["reason"]) == (None, "insufficient_data")
    key = find_market_id(stored, "BTC-USD")
    with stored.connect() as connection:
        newest = connection.execute(
            text("""SELECT DISTINCT ON (interval) interval, open_time, close, dataset_version
            FROM market_data.market_aggregate WHERE is_final AND market_id = :key
            ORDER BY interval, open_time DESC"""),
            {"key": key},
        ).all()
        version = connection.execute(
            text("SELECT max(version) FROM market_data.dataset_version WHERE market_id = :key"),
            {"key": key},
        ).scalar_one()
    assert [
        (bar["interval"], bar["open_time"], bar["close"], bar["dataset_version"])
        for bar in sorted(value["bars"], key=lambda bar: bar["interval"])
    ] == [(row[0], format_time(row[1]), row[2], row[3]) for row in newest]
    assert latest.dataset_version == value["dataset_version"] == version
    assert [row["horizon"] for row in value["roi"]] == ["7d", "30d"]
    week, month = value["roi"]
    assert week["sharpe"] is not None
    assert (month["roi"], month["reason"]) == (None, "insufficient_data")


def test_an_older_row_of_a_horizon_is_not_the_latest(stored: Engine) -> None:
    """However many days and methods there are, each horizon has one row: of the last as_of."""
    with stored.begin() as connection:
        connection.execute(
            text("""
            INSERT INTO market_data.market_roi_statistic (market_id, interval, horizon, as_of,
                method, roi, annualisation_factor, n_returns, n_missing, dataset_version)
            SELECT market_id, interval, horizon, as_of - day * interval '1 day', method || day % 2,
                day, annualisation_factor, 7, 0, 1
            FROM market_data.market_roi_statistic, generate_series(1, 400) day""")
        )
    (latest,) = fetch_latest("BTC-USD", stored)
    assert [row["horizon"] for row in latest.value["roi"]] == ["7d", "30d"]
    assert all(row["roi"] is None or row["roi"] < 1 for row in latest.value["roi"])


def test_a_second_read_comes_from_the_cache_and_asks_nobody(
    stored: Engine, cache: ServingCache
) -> None:
    """Byte for byte what the database gave, with its age; one market or all."""
    first = fetch_latest("mock:BTC-USD", stored, cache)[0]
    everything = fetch_latest(None, stored, cache)
    statements: list[str] = []
    event.listen(stored, "before_cursor_execute", lambda *args: statements.append(args[2]))
    again = fetch_latest("mock:BTC-USD", stored, cache)[0]
    assert (first.source, again.source) == ("database", "cache")
    assert (again.body, again.version) == (first.body, first.version)
    assert 0 <= again.age_seconds < 60
    recalled = fetch_latest(None, stored, cache)
    assert [one.symbol for one in recalled] == ["BTC-USD", "ETH-USD"]
    assert {one.source for one in recalled} == {"cache"}
    assert [one.body for one in recalled] == [one.body for one in everything]
    assert statements == []


def test_names_mean_markets_with_or_without_a_provider(stored: Engine, cache: ServingCache) -> None:
    """Each market once, by symbol; also from the cache."""
    for _ in range(2):
        found = fetch_latest(["mock:ETH-USD", "BTC-USD", "mock:BTC-USD"], stored, cache)
        assert [one.symbol for one in found] == ["BTC-USD", "ETH-USD"]


def test_an_unknown_market_is_refused_with_or_without_a_cache(
    stored: Engine, cache: ServingCache
) -> None:
    """It says what there is; nothing is remembered of it."""
    for one in (None, cache):
        with pytest.raises(UnknownMarketError, match=r"DOGE-USD.*BTC-USD, ETH-USD"):
            fetch_latest(["BTC-USD", "DOGE-USD"], stored, one)
        with pytest.raises(SettingError):
            fetch_latest([], stored, one)


def test_a_market_without_values_has_empty_ones(engine: Engine) -> None:
    """A market that was only registered is no error, in JSON and as a frame."""
    with engine.begin() as connection:
        connection.execute(
            text("""INSERT INTO market_data.market (provider, provider_market_id, symbol, name,
            base, quote, venue, calendar, intervals, price_basis, is_primary) VALUES ('mock', 'x',
            'X-USD', 'X', 'X', 'USD', 'v', '24/7', '{1d}', 'unadjusted', true)""")
        )
    (latest,) = fetch_latest(None, engine)
    assert latest.value["snapshot"] is latest.dataset_version is None
    assert latest.value["bars"] == latest.value["roi"] == []
    frame = read_latest(engine=engine)
    assert (len(frame), frame.attrs["dataset_version"]) == (1, None)
    assert frame["price"].isna().all()


def test_read_latest_is_a_tidy_frame(stored: Engine, cache: ServingCache) -> None:
    """One row a market, UTC index, numbers as numbers; the same from cache and database."""
    for source in ("database", "cache"):
        frame = read_latest(engine=stored, cache=cache)
        assert set(frame["source"]) == {source}
        assert str(frame.index.dtype) == "datetime64[us, UTC]"
        assert frame["symbol"].tolist() == ["BTC-USD", "ETH-USD"]
        assert frame["price"].tolist() == [60_000.0, 3_000.0]
        assert {str(frame[name].dtype) for name in ("price", "roi", "close_1d", "sharpe_7d")} == {
            "float64"
        }
        assert str(frame["closed_at_1h"].dtype) == "datetime64[us, UTC]"
        assert frame["sharpe_7d"].notna().tolist() == [True, False]
        assert frame["reason_30d"].iloc[0] == "insufficient_data"
        assert frame.attrs["dataset_version"] == frame["dataset_version"].max()
    empty = read_latest(engine=stored).iloc[:0]
    pd.testing.assert_series_equal(frame.dtypes, empty.dtypes)


def test_every_part_is_found_by_index(stored: Engine) -> None:
    """No table of bars, snapshots or statistics is scanned, whatever their size."""
    with stored.connect() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        query, parameters = build_latest_query([("mock", "BTC-USD")])
        plan = connection.execute(text(f"EXPLAIN (FORMAT json) {query}"), parameters).scalar_one()
    nodes = list(walk(plan[0]["Plan"]))
    for table in ("market_aggregate", "market_snapshot", "market_roi_statistic"):
        kinds = {node["Node Type"] for node in nodes if node.get("Relation Name") == table}
        assert kinds
        assert kinds <= {"Index Scan", "Index Only Scan"}, json.dumps(plan)
    assert not any(
        node["Node Type"] == "Sort" and "open_time" in str(node.get("Sort Key")) for node in nodes
    )


def walk(node: dict[str, object]) -> Iterator[dict[str, object]]:
    """Yield a plan's nodes."""
    yield node
    for child in node.get("Plans", ()):  # type: ignore[attr-defined]
        yield from walk(child)


def test_readers_are_exported_and_importing_the_package_stays_light() -> None:
    """The package itself loads no pandas and no SQLAlchemy."""
    code = """
import sys, market_pipeline
assert not {"pandas", "sqlalchemy", "redis"} & sys.modules.keys()
assert "read_latest" in dir(market_pipeline)
from market_pipeline import read_aggregates, read_latest
from market_pipeline.readers import read_latest as same
assert read_latest is same and callable(read_aggregates)
try:
    market_pipeline.no_such_name
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "module 'market_pipeline' has no attribute 'no_such_name'"
