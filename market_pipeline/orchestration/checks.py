"""Asset checks: evidence about what was written; rows were judged before the commit."""

from uuid import UUID

import dagster as dg

from market_pipeline.orchestration.assets import market_aggregates
from market_pipeline.orchestration.resources import Database
from market_pipeline.storage.queries import read_run_markets


@dg.asset_check(asset=market_aggregates, name="ingestion_complete")
def check_ingestion_complete(
    context: dg.AssetCheckExecutionContext, database: Database
) -> dg.AssetCheckResult:
    """Every market of the run gave all its bars; a short one makes the outcome partial."""
    with database.engine.connect() as connection:
        receipt = read_run_markets(connection, UUID(context.run.run_id))
    short = receipt[receipt["outcome"] != "ok"]
    reasons = {row.symbol: str(row.reason) for row in short.itertuples()}
    return dg.AssetCheckResult(
        passed=short.empty,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"markets": len(receipt), "short": len(short), "reasons": reasons},
    )
