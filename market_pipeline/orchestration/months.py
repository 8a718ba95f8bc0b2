"""The months of history, which are the partitions of the job ``backfill_history``."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import dagster as dg

from market_pipeline.domain.errors import SettingError
from market_pipeline.settings import shorten

FIRST_MONTH = "1990-01-01"
_PARTITION_TAG = "dagster/partition"


@dg.monthly_partitioned_config(start_date=FIRST_MONTH, end_offset=1)
def fill_month(start: datetime, end: datetime) -> Mapping[str, Any]:
    """Return the request for one month; what is settled of it already is not asked for."""
    span = {"history_from": start.isoformat(), "history_to": end.isoformat()}
    return {"resources": {"request": {"config": span}}}


def read_month(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the span of the month that a run is for, by its tags; empty when it is for none.

    The UI and ``dagster job backfill`` configure the run as well, ``dg launch`` does not.

    Raises:
        SettingError: The tag names no month.
    """
    key = tags.get(_PARTITION_TAG)
    if key is None:
        return {}
    if not fill_month.partitions_def.has_partition_key(key):
        raise SettingError(
            f"{_PARTITION_TAG}={shorten(key)!r}: expected the first day of a month from "
            f"{FIRST_MONTH} to now, such as 2024-03-01"
        )
    config = fill_month.get_run_config_for_partition_key(key)
    return dict(config["resources"]["request"]["config"])
