"""Planning a run for a thousand markets, by ledgers of a million to a hundred million bars.

Only the ledger is made: a plan must not look at bars, and so cannot tell that there are none.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median

from sqlalchemy import text

from benchmarks.bench import Bench, Measurement
from benchmarks.database import Database
from benchmarks.figures import Figure
from benchmarks.rounds import Way, compare
from market_pipeline.ingestion.estimate import estimate_request
from market_pipeline.ingestion.request import Request, Route, build_request
from market_pipeline.providers.registry import route_markets

MARKETS = 1_000
SIZES = {"1e6": 1_000_000, "1e7": 10_000_000, "1e8": 100_000_000}
_FIGURES = tuple(f"plan_seconds_{size}" for size in SIZES)
_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_EMPTY = "TRUNCATE market_data.market CASCADE"
_REGISTER = text("""
INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base, quote, venue,
  calendar, intervals, price_basis, is_active, is_primary)
SELECT 'mock', symbol, symbol, symbol, split_part(symbol, '-', 1), 'USD', 'mock', '24/7',
  '{1h,1d}', 'unadjusted', true, true
FROM unnest(CAST(:symbols AS text[])) symbol
""")
# A hole in the middle of each, so that there is something to plan besides the newest bars.
_SETTLE = text("""
INSERT INTO market_data.market_coverage
  (market_id, "interval", settled, watermark, first_bar_at, last_bar_at, bars)
SELECT market_id, "interval",
  tstzmultirange(tstzrange(:first, :gap), tstzrange(:gap + INTERVAL '2 days', :last)),
  :last, :first, :last, :bars
FROM market_data.market, (VALUES ('1h'), ('1d')) lengths ("interval")
""")


def measure_planning(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield the seconds of the plan of all markets, for each size of history."""
    sizes = {size: bars for size, bars in SIZES.items() if f"plan_seconds_{size}" in wanted}
    symbols = [f"P{number}-USD" for number in range(MARKETS)]
    with bench.open_database() as database:
        for size, bars in sizes.items():
            request = _settle(database, symbols, bars)
            routes = route_markets(symbols, ["mock"], os.environ)
            way = Way(size, partial(count_calls, database, routes, request))
            _refuse_nothing(count_calls(database, routes, request))
            seconds = compare([way], bench.rounds, bench.report).list_seconds(size)
            detail = {"runs": seconds, "markets": MARKETS, "bars": bars}
            yield Figure(f"plan_seconds_{size}", median(seconds), "s", len(seconds), detail)


def _settle(database: Database, symbols: list[str], bars: int) -> Request:
    """Bring about the ledger of so many bars, and return the request for their whole history."""
    first = _NOW - timedelta(hours=bars // MARKETS)
    times = {"first": first, "gap": first + (_NOW - first) / 2, "last": _NOW - timedelta(days=1)}
    with database.engine.begin() as connection:
        connection.execute(text(_EMPTY))
        connection.execute(_REGISTER, {"symbols": symbols})
        connection.execute(_SETTLE, {**times, "bars": bars // MARKETS})
    start = max(first, datetime(1970, 1, 2, tzinfo=UTC))
    return build_request(_NOW, symbols, "mock", history_from=start.isoformat())


def count_calls(database: Database, routes: list[Route], request: Request) -> int:
    """Return how many requests the plan has."""
    with database.engine.connect() as connection:
        plans = estimate_request(connection, routes, request, os.environ)
    return sum(plan.calls for plan in plans)


def _refuse_nothing(calls: int) -> None:
    if calls < MARKETS:
        raise RuntimeError(f"{calls} requests planned, expected one or more for each market")


MEASUREMENT = Measurement("planning", _FIGURES, measure_planning)
