"""The asset graph: one asset for each table, its computation elsewhere.

Each docstring's first line is the grain of the table; it is what Dagster's UI shows.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
from sqlalchemy import Table

from market_pipeline.ingestion.drive import BarStream, make_limiter
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import Route
from market_pipeline.ingestion.snapshots import collect_snapshots
from market_pipeline.orchestration.causes import told_plainly
from market_pipeline.orchestration.check_results import (
    PRICES_COMPLETE,
    SYMBOLS_SERVED,
    check_prices,
    check_served,
)
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
    find_routing,
)
from market_pipeline.providers.rate_limiter import use_limiter
from market_pipeline.providers.registry import find_offered_name
from market_pipeline.readers.comparing import Pairs
from market_pipeline.settings import read_statistics_settings
from market_pipeline.storage import tables

MAX_MARKETS_ALL_PAIRS = 50
# dagster.yaml says how many runs may fetch at once; the budget, how often a provider is asked.
POOL = "providers"
PROVIDERS = build_provider_specs()
_PRICES = ("price", "volume_24h", "change_24h_ratio", "market_cap")


def _asset_of(
    table: Table,
    group: str,
    layer: str,
    kind: str,
    deps: Sequence[Any] = (),
    pool: str | None = None,
    check: dg.AssetCheckSpec | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Return the decorator of the asset that a table has."""
    decorate = dg.asset(
        group_name=group,
        kinds={kind, "postgres"},
        owners=OWNERS,
        tags={"layer": layer},
        metadata=describe_table(table),
        code_version="1",
        deps=deps,
        pool=pool,
        check_specs=[check] if check else None,
        # Beside the result of a check, Dagster takes no type of the value from the annotation.
        dagster_type=dg.Any if check else None,
    )
    return lambda compute: decorate(told_plainly()(compute))


@_asset_of(tables.market, "markets", "reference", "python", deps=PROVIDERS, check=SYMBOLS_SERVED)
def markets(
    context: dg.AssetExecutionContext,
    request: IngestionRequest,
    providers: Providers,
    database: Database,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One row per market: each symbol as the first provider in the list that has it.

    Shift-click Materialize to change symbols, provider, look-back or window end for one run.
    """
    run = describe_run(context, request)
    routes, unserved = find_routing(providers, database, run)
    for observation in _observe_providers(routes):
        context.log_event(observation)
    return dg.MaterializeResult(
        value=[market for _, market in routes],
        check_results=[check_served(run.request.symbols, unserved)],
    )


@_asset_of(tables.market_aggregate, "ingestion", "observed", "python", deps=[markets], pool=POOL)
def market_aggregates(
    context: dg.AssetExecutionContext,
    request: IngestionRequest,
    providers: Providers,
    database: Database,
) -> BarStream:
    """One row per market, interval and open_time: hourly, daily and weekly bars in UTC.

    Bars are final by their provider's own rule; weeks are rebuilt from stored days.
    """
    return stream_bars(database, providers, describe_run(context, request))


@_asset_of(tables.market_snapshot, "ingestion", "observed", "python", check=PRICES_COMPLETE)
def market_snapshots(
    market_aggregates: MarketReader,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One row per market and observed_at: live prices with volatility and ROI from final bars."""
    reader = market_aggregates
    with use_limiter(make_limiter(reader.engine, reader.routes)):
        batch = collect_snapshots(reader.routes, reader.request)
    stored = reader.markets
    ids = {(row.provider, row.symbol): row.market_id for row in stored.itertuples()}
    rows = [
        {
            "market_id": ids[snapshot.market.provider, snapshot.market.symbol],
            "observed_at": snapshot.observed_at,
            **{name: getattr(snapshot, name) for name in _PRICES},
        }
        for snapshot in batch.snapshots
    ]
    prices = pd.DataFrame(rows, columns=["market_id", "observed_at", *_PRICES])
    prices = prices.astype(dict.fromkeys(_PRICES, "float64"))
    return dg.MaterializeResult(
        value=Snapshots(compute_prices(reader.engine, reader.calendars, prices), batch),
        check_results=[check_prices(reader.routes, batch.failures)],
    )


@_asset_of(tables.market_comparison, "analytics", "derived", "numpy")
def market_comparisons(market_aggregates: MarketReader) -> Computed:
    """One row per pair of markets, interval, horizon, as_of and method: ratios, correlation."""
    settings, stored = read_statistics_settings(), market_aggregates.markets
    pairs = choose_pairs(stored, settings.benchmarks)
    return compute_pairs(market_aggregates.engine, stored, pairs, settings)


@_asset_of(tables.market_roi_statistic, "analytics", "derived", "numpy")
def market_roi_statistics(market_aggregates: MarketReader) -> Computed:
    """One row per market, interval, horizon, as_of and method: ROI, Sharpe, Sortino, drawdown."""
    reader = market_aggregates
    return compute_roi(reader.engine, reader.calendars, read_statistics_settings())


def stream_bars(database: Database, providers: Providers, run: Run) -> BarStream:
    """Return the bars that a run asks for, to be fetched while they are stored."""
    return BarStream(database.engine, run, find_routes(providers, database, run))


def _observe_providers(routes: Sequence[Route]) -> list[dg.AssetObservation]:
    """Return what the external assets of the providers in use tell in the UI."""
    counts = Counter(provider.name for provider, _ in routes)
    return [
        dg.AssetObservation(
            name_provider_asset(find_offered_name(name)),
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
