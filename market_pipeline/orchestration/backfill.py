"""Filling history: by month in Dagster, a whole span by ``market-pipeline backfill``."""

import dagster as dg

from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.triggers import ALIVE_TAGS, BACKFILL_TAGS
from market_pipeline.ingestion.drive import BarStream
from market_pipeline.orchestration.assets import POOL, stream_bars
from market_pipeline.orchestration.causes import told_plainly
from market_pipeline.orchestration.checks import BLOCKING, evaluate_checks
from market_pipeline.orchestration.dagster_internals import DagsterAssetCheckFailedError
from market_pipeline.orchestration.lineage import describe_table
from market_pipeline.orchestration.months import fill_month
from market_pipeline.orchestration.resources import (
    Database,
    IngestionRequest,
    Providers,
    describe_run,
)
from market_pipeline.storage.tables import market_aggregate

AGGREGATES = "market_aggregates"


@dg.op(
    pool=POOL,
    out=dg.Out(io_manager_key="io_manager", metadata=describe_table(market_aggregate)),
)
@told_plainly()
def fill_history(
    context: dg.OpExecutionContext,
    request: IngestionRequest,
    providers: Providers,
    database: Database,
) -> BarStream:
    """Fetch what is missing of the bars of a span, and store it as market_aggregates does."""
    run = describe_run(context, request)
    if run.request.filled_from is not None:
        raise SettingError(
            "backfill_history was given no span: choose a month on the job's page Partitions or in "
            "its launchpad, or set history_from of the resource request to a time"
        )
    return stream_bars(database, providers, run)


@dg.op(ins={"filled": dg.In(dg.Nothing)})
@told_plainly()
def check_history(
    context: dg.OpExecutionContext,
    request: IngestionRequest,
    providers: Providers,
    database: Database,
) -> None:
    """Check the bars that came, as after any run of market_aggregates."""
    failed = []
    for result in evaluate_checks(context, database, request, providers):
        # Dagster takes it, though its type hint does not name it.
        context.log_event(_record_check(result))  # type: ignore[arg-type]
        if not result.passed and result.check_name in BLOCKING:
            failed.append(str(result.check_name))
    if failed:
        raise DagsterAssetCheckFailedError(f"blocking checks failed: {', '.join(failed)}")


def _record_check(result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(AGGREGATES),
        check_name=str(result.check_name),
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        blocking=result.check_name in BLOCKING,
    )


# Ops and not assets: of an asset job Dagster's UI shows the partitions of its assets, and ours
# have none.
@dg.job(
    name="backfill_history",
    config=fill_month,
    tags=BACKFILL_TAGS,
    description="Fill history by month; statistics follow with the next ingest.",
)
def backfill_history_job() -> None:
    """Take the steps of the asset, under the names by which receipts and progress know them."""
    check_history.alias(f"{AGGREGATES}_checks")(fill_history.alias(AGGREGATES)())


statistics_job = dg.define_asset_job(
    "statistics",
    selection=dg.AssetSelection.assets("market_comparisons", "market_roi_statistics"),
    description="Compute comparisons and ROI statistics again from the stored bars.",
    tags=ALIVE_TAGS,
)
