"""The newest values of every market among ten million bars, as readers ask for them."""

import json
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from sqlalchemy import Connection, text

from benchmarks.bar_table import TABLE
from benchmarks.bars import MARKETS
from benchmarks.bench import Bench, Measurement
from benchmarks.database import Database
from benchmarks.figures import Figure
from market_pipeline.storage.latest.values import (
    build_latest_query,
    read_latest_rows,
)
from market_pipeline.storage.markets.lookup import read_active_markets

BARS = 10_000_000
_FIGURES = ("latest_10m", "latest_10m_scans")
_GENERATE = f"""
INSERT INTO {TABLE} (market_id, interval, open_time, close_time, open, high, low, close, volume,
  volume_kind, trades, source_kind, is_final, known_at, dataset_version)
SELECT market_id, '1h', opened, opened + interval '1 hour', 100, 101, 99, 100 + hour % 2, hour,
  'base', hour, 'traded', true, now(), 1
FROM generate_series(1, {MARKETS}) market_id, generate_series(0, :hours - 1) hour,
  LATERAL (SELECT timestamptz '2010-01-01 00:00Z' + hour * interval '1 hour') AS t (opened)
"""  # noqa: S608 - constants


def measure_latest(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield the milliseconds of the query, and how many scans of the bars its plan has."""
    bars = BARS * bench.rows // 1_000_000
    with bench.open_database() as database:
        bench.report(f"making {bars:,} bars in the server")
        _generate(database, bars)
        with database.engine.connect() as connection:
            nodes = _explain(connection)
            runs = [_time_query(connection) for _ in range(bench.rounds)]
    detail = {"runs": runs, "bars": bars, "markets": MARKETS, "plan": nodes}
    scans = sum(node == "Seq Scan on market_aggregate" for node in nodes)
    figures = (
        Figure("latest_10m", median(runs), "ms", len(runs), detail),
        Figure("latest_10m_scans", scans, "scans", 1, {"plan": nodes}),
    )
    yield from (figure for figure in figures if figure.name in wanted)


def _generate(database: Database, bars: int) -> None:
    keys = database.list_foreign_keys(TABLE)
    # Checking ten million references one by one would be most of the time, and no part of this.
    database.execute(*(f'ALTER TABLE {TABLE} DROP CONSTRAINT "{key}"' for key in keys))
    with database.engine.begin() as connection:
        connection.execute(text(_GENERATE), {"hours": bars // MARKETS})
    database.execute(f"VACUUM (ANALYZE) {TABLE}")


def _explain(connection: Connection) -> list[str]:
    """Return the plan's nodes, outermost first, with the relation or index they read."""
    query, parameters = build_latest_query(_list_pairs(connection))
    answer = connection.execute(text(f"EXPLAIN (FORMAT json) {query}"), parameters)
    plan = answer.scalar_one()
    return list(_walk((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]))


def _walk(node: dict[str, Any]) -> Iterator[str]:
    relation = node.get("Relation Name")
    yield f"{node['Node Type']} on {relation}" if relation else str(node["Node Type"])
    for child in node.get("Plans", []):
        yield from _walk(child)


def _list_pairs(connection: Connection) -> list[tuple[str, str]]:
    return [(row["provider"], row["symbol"]) for row in read_active_markets(connection)]


def _time_query(connection: Connection) -> float:
    pairs = _list_pairs(connection)
    began = time.perf_counter()
    rows = read_latest_rows(connection, pairs)
    taken = time.perf_counter() - began
    if len(rows) != MARKETS or b'"open_time"' not in rows[-1].body:
        raise RuntimeError(f"{len(rows)} markets have a newest bar, expected {MARKETS}")
    return round(taken * 1e3, 2)


MEASUREMENT = Measurement("the newest bars", _FIGURES, measure_latest)
