"""The end of the graph: the cache for readers.

It is an asset without a table. ``readers.refreshing`` decides what is stored in the cache.
"""

from typing import Any

import dagster as dg

from market_pipeline.observability.tracing import span
from market_pipeline.orchestration.causes import told_plainly
from market_pipeline.orchestration.lineage import OWNERS, describe_cache
from market_pipeline.orchestration.resources import (
    Database,
    IngestionRequest,
    Providers,
    describe_run,
    find_routes,
)
from market_pipeline.settings import read_redis_url


@dg.asset(
    deps=["market_snapshots", "market_comparisons", "market_roi_statistics"],
    group_name="serving",
    kinds={"python", "redis"},
    owners=OWNERS,
    tags={"layer": "serving"},
    metadata=describe_cache(),
    code_version="1",
)
@told_plainly()
def latest_market_cache(
    context: dg.AssetExecutionContext,
    request: IngestionRequest,
    providers: Providers,
    database: Database,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One entry per market: its latest price, final bars and statistics, for readers to be quick.

    In Redis, where REDIS_URL names one; else each serving process keeps its own, and is told of
    every commit. Trouble with Redis is told here and never fails a run: readers compare an entry's
    version with the database's, so an entry that was left behind is never served.
    """
    if not read_redis_url():
        return dg.MaterializeResult(metadata={"store": "memory", "outcome": "ok"})
    from market_pipeline.readers.refreshing import refresh_latest

    routes = find_routes(providers, database, describe_run(context, request))
    markets = [(market.provider, market.symbol) for _, market in routes]
    with span("cache", store="redis", markets=len(markets)) as handle:
        done = refresh_latest(database.engine, markets)
        handle.set_attributes(written=done.written, dropped=done.dropped)
    if done.trouble:
        context.log.warning("the cache was not refreshed: Redis is in trouble (%s)", done.trouble)
    metadata: dict[str, Any] = {
        "store": done.store,
        "outcome": "cache_degraded" if done.trouble else "ok",
        "entries_written": done.written,
        "entries_dropped": done.dropped,
        "run_markets": len(markets),
    }
    metadata |= {"trouble": done.trouble} if done.trouble else {}
    metadata |= {"newest_version": done.newest_version} if done.newest_version else {}
    return dg.MaterializeResult(metadata=metadata)
