"""The front door: everything Dagster loads. Needs no server, no password, an empty environment."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg

from market_pipeline.observability.logs import configure_logs
from market_pipeline.orchestration import assets
from market_pipeline.orchestration.automation import (
    build_freshness_policy,
    build_prune_schedule,
    build_schedule,
    ingest_job,
    prune_history,
)
from market_pipeline.orchestration.backfill import backfill_history_job, statistics_job
from market_pipeline.orchestration.checks import check_market_aggregates
from market_pipeline.orchestration.executor import choose_executor
from market_pipeline.orchestration.io_manager import PostgresIOManager
from market_pipeline.orchestration.latest_cache import latest_market_cache
from market_pipeline.orchestration.output_checks import check_outputs
from market_pipeline.orchestration.resources import Database, IngestionRequest, Providers
from market_pipeline.orchestration.sensors import build_watches
from market_pipeline.settings import read_cache_ttl_seconds, read_redis_url

ASSETS: list[dg.AssetsDefinition] = [
    assets.markets,
    assets.market_aggregates,
    assets.market_snapshots,
    assets.market_comparisons,
    assets.market_roi_statistics,
    latest_market_cache,
]


def build_definitions(resources: Mapping[str, object] | None = None) -> dg.Definitions:
    """Return the code location.

    Args:
        resources: Replacements by name: ``database``, ``request``, ``providers``, ``io_manager``.

    Raises:
        SettingError: A setting that shapes the definitions is wrong; names it.
    """
    configure_logs()
    read_redis_url()
    read_cache_ttl_seconds()
    return dg.Definitions(
        assets=[*assets.PROVIDERS, *_expect_fresh(ASSETS)],
        asset_checks=[check_market_aggregates, check_outputs],
        jobs=[ingest_job, backfill_history_job, statistics_job, prune_history],
        schedules=[build_schedule(), build_prune_schedule()],
        sensors=build_watches(),
        executor=choose_executor(),
        resources={**_build_resources(), **(resources or {})},
    )


def _expect_fresh(stored: Sequence[dg.AssetsDefinition]) -> Iterable[dg.AssetsDefinition]:
    policy = build_freshness_policy(datetime.now(UTC))
    return dg.map_asset_specs(lambda spec: spec.replace_attributes(freshness_policy=policy), stored)


def _build_resources() -> dict[str, object]:
    database, request, providers = Database(), IngestionRequest.configure_at_launch(), Providers()
    io_manager = PostgresIOManager(database=database, request=request, providers=providers)
    return {
        "database": database,
        "request": request,
        "providers": providers,
        "io_manager": io_manager,
    }


defs = build_definitions()
