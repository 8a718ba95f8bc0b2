"""Filling history, by month: Dagster's backfill page, and ``market-pipeline backfill``."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import dagster as dg

from market_pipeline.domain.triggers import BACKFILL_TAGS

FIRST_MONTH = "1990-01-01"


@dg.monthly_partitioned_config(start_date=FIRST_MONTH, end_offset=1)
def fill_month(start: datetime, end: datetime) -> Mapping[str, Any]:
    """Return the request for one month; what is settled of it already is not asked for."""
    span = {"history_from": start.isoformat(), "history_to": end.isoformat()}
    return {"resources": {"request": {"config": span}}}


backfill_history_job = dg.define_asset_job(
    "backfill_history",
    selection=dg.AssetSelection.assets("market_aggregates"),
    config=fill_month,
    tags=BACKFILL_TAGS,
    description="Fill history by month; statistics follow with the next ingest.",
)
statistics_job = dg.define_asset_job(
    "statistics",
    selection=dg.AssetSelection.assets("market_comparisons", "market_roi_statistics"),
    description="Compute comparisons and ROI statistics again from the stored bars.",
)
