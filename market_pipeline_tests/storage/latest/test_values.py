"""The newest values of many markets: found by index, as the planner itself chooses."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text

from market_pipeline.storage.latest.values import (
    build_latest_query,
    read_latest_rows,
)
from market_pipeline.storage.markets.lookup import read_active_markets

MARKETS, BARS = 10_000, 40
FILL = f"""
    INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base, quote, venue,
        calendar, intervals, price_basis)
    SELECT 'mock', 'm' || n, 'M' || n || '-USD', 'M', 'M' || n, 'USD', 'mock', '24/7', '{{1d}}',
        'unadjusted' FROM generate_series(1, {MARKETS}) n;
    ALTER TABLE market_data.market_aggregate DROP CONSTRAINT market_aggregate_market_id_fkey;
    INSERT INTO market_data.market_aggregate (market_id, interval, open_time, close_time, open,
        high, low, close, volume_kind, source_kind, is_final, known_at, dataset_version)
    SELECT market_id, '1d', opened, opened + interval '1 day', 1, 2, 1, 1 + day / 100.0, 'none',
        'traded', day < {BARS}, opened, 1
    FROM market_data.market, generate_series(1, {BARS}) day,
        LATERAL (SELECT timestamptz '2024-01-01 00:00Z' + day * interval '1 day') AS t (opened)
"""  # noqa: S608 - constants


@pytest.mark.owner
def test_the_newest_bar_of_ten_thousand_markets_is_found_by_index(engine: Engine) -> None:
    """Bars are read by their primary key, one a market and interval: no scan, no sort, no count."""
    with engine.begin() as connection:
        for statement in FILL.split(";"):
            connection.execute(text(statement))
        connection.execute(text("ANALYZE market_data.market, market_data.market_aggregate"))
    with engine.connect() as connection:
        pairs = [(row["provider"], row["symbol"]) for row in read_active_markets(connection)]
        assert len(pairs) == MARKETS
        query, parameters = build_latest_query(pairs)
        told = connection.execute(text(f"EXPLAIN (FORMAT json) {query}"), parameters)
        nodes = list(walk(told.scalar_one()[0]["Plan"]))
        rows = read_latest_rows(connection, pairs)
    bars = [node for node in nodes if node.get("Relation Name") == "market_aggregate"]
    assert bars
    assert {node["Index Name"] for node in bars} == {"market_aggregate_pkey"}
    assert {node["Scan Direction"] for node in bars} == {"Backward"}
    newest = json.loads(rows[-1].body)["bars"]
    assert [bar["open_time"][:10] for bar in newest] == ["2024-02-09"]  # the 40th runs still


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a plan's nodes."""
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)
