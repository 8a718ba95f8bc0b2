"""The asset graph: one asset for each table, its computation elsewhere.

Each docstring's first line is the grain of the table; it is what Dagster's UI shows.
"""

from collections import Counter
from collections.abc import Sequence

import dagster as dg
import numpy as np
import pandas as pd

from market_pipeline.ingestion.drive import BarStream, make_limiter
from market_pipeline.ingestion.request import Route
from market_pipeline.ingestion.snapshots import collect_snapshots
from market_pipeline.orchestration.computing import (
    Computed,
    compute_pairs,
    compute_prices,
    compute_roi,
)
from market_pipeline.orchestration.io_manager import Snapshots
from market_pipeline.orchestration.lineage import (
    OWNERS,
    build_provider_specs,
    describe_table,
    name_provider_asset,
)
from market_pipeline.orchestration.market_reader import MarketReader
from market_pipeline.orchestration.resources import (
    Database,
    IngestionRequest,
    Providers,
    describe_run,
    find_routes,
)
from market_pipeline.providers.rate_limiter import use_limiter
from market_pipeline.readers.comparing import Pairs
from market_pipeline.settings import read_statistics_settings
from market_pipeline.storage import tables

MAX_MARKETS_ALL_PAIRS = 50
# dagster.yaml says how many runs may fetch at once; the budget, how often a provider is asked.
POOL = "providers"
PROVIDERS = build_provider_specs()


@dg.asset(
    deps=PROVIDERS,
    group_name="markets",
    kinds={"python", "postgres"},
    owners=OWNERS,
    tags={"layer": "reference"},
    metadata=describe_table(tables.market),
    code_version="1",
)
def markets(
    context: dg.AssetExecutionContext,
    request: IngestionRequest,
    providers: Providers,
    database: Database,
) -> list:  # type: ignore[type-arg]
    """One row per market: each symbol as the first provider in the list that has it.

    Shift-click Materialize to change symbols, provider, look-back or window end for one run.
    """
    routes = find_routes(providers, database, describe_run(context, request))
    for observation in _observe_providers(routes):
        context.log_event(observation)
    return [market for _, market in routes]


@dg.asset(
    deps=[markets],
    pool=POOL,
    group_name="ingestion",
    kinds={"python", "postgres"},
    owners=OWNERS,
    tags={"layer": "observed"},
    metadata=describe_table(tables.market_aggregate),
    code_version="1",
)
def market_aggregates(
    context: dg.AssetExecutionContext,
    request: IngestionRequest,
    providers: Providers,
    database: Database,
) -> BarStream:
    """One row per market, interval and open_time: hourly, daily and weekly bars in UTC.

    Bars are final by their provider's own rule; weeks are rebuilt from stored days.
    """
    run = describe_run(context, request)
    routes = find_routes(providers, database, run)
    return BarStream(database.engine, run, routes)


@dg.asset(
    group_name="ingestion",
    kinds={"python", "postgres"},
    owners=OWNERS,
    tags={"layer": "observed"},
    metadata=describe_table(tables.market_snapshot),
    code_version="1",
)
def market_snapshots(market_aggregates: MarketReader) -> Snapshots:
    """One row per market and observed_at: live prices with volatility and ROI from final bars."""
    reader = market_aggregates
    with use_limiter(make_limiter(reader.engine, reader.routes)):
        batch = collect_snapshots(reader.routes, reader.request)
    stored = reader.markets
    ids = {(row.provider, row.symbol): row.market_id for row in stored.itertuples()}
    prices = pd.DataFrame(
        {
            "market_id": [
                ids[snapshot.market.provider, snapshot.market.symbol]
                for snapshot in batch.snapshots
            ],
            "observed_at": [snapshot.observed_at for snapshot in batch.snapshots],
            "price": [snapshot.price for snapshot in batch.snapshots],
            "volume_24h": [snapshot.volume_24h for snapshot in batch.snapshots],
            "change_24h_ratio": [snapshot.change_24h_ratio for snapshot in batch.snapshots],
            "market_cap": [snapshot.market_cap for snapshot in batch.snapshots],
        }
    ).astype(dict.fromkeys(("price", "volume_24h", "change_24h_ratio", "market_cap"), "float64"))
    return Snapshots(compute_prices(reader.engine, reader.calendars, prices), batch)


@dg.asset(
    group_name="analytics",
    kinds={"numpy", "postgres"},
    owners=OWNERS,
    tags={"layer": "derived"},
    metadata=describe_table(tables.market_comparison),
    code_version="1",
)
def market_comparisons(market_aggregates: MarketReader) -> Computed:
    """One row per pair of markets, interval, horizon, as_of and method: ratios, correlation."""
    settings, stored = read_statistics_settings(), market_aggregates.markets
    pairs = choose_pairs(stored, settings.benchmarks)
    return compute_pairs(market_aggregates.engine, stored, pairs, settings)


@dg.asset(
    group_name="analytics",
    kinds={"numpy", "postgres"},
    owners=OWNERS,
    tags={"layer": "derived"},
    metadata=describe_table(tables.market_roi_statistic),
    code_version="1",
)
def market_roi_statistics(market_aggregates: MarketReader) -> Computed:
    """One row per market, interval, horizon, as_of and method: ROI, Sharpe, Sortino, drawdown."""
    reader = market_aggregates
    return compute_roi(reader.engine, reader.calendars, read_statistics_settings())


def _observe_providers(routes: Sequence[Route]) -> list[dg.AssetObservation]:
    """Return what the external assets of the providers in use tell in the UI."""
    counts = Counter(provider.name for provider, _ in routes)
    return [
        dg.AssetObservation(
            name_provider_asset(name),
            metadata={
                "markets": counts[name],
                "serves": provider.summary,
                "homepage": dg.MetadataValue.url(provider.homepage),
            },
        )
        for name, provider in {provider.name: provider for provider, _ in routes}.items()
    ]


def choose_pairs(stored: pd.DataFrame, benchmarks: tuple[str, ...]) -> Pairs:
    """Return the pairs that are stored: all of few markets, of many those with a benchmark."""
    ids = sorted(stored["market_id"].tolist())
    known = stored["symbol"].isin(benchmarks)
    references = ids if len(ids) <= MAX_MARKETS_ALL_PAIRS else stored.loc[known, "market_id"]
    pairs = {
        (min(key, other), max(key, other)) for other in references for key in ids if key != other
    }
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
