"""Reading stored data: frames for analysts, what changed, and the origin of a number.

Here: queries in the words of the field (symbols, versions, times), checked and answered. Not here:
SQL (``storage``), the network, Dagster.
"""

from market_pipeline.readers.aggregates import read_aggregates
from market_pipeline.readers.agreement import read_agreement
from market_pipeline.readers.changes import read_changes
from market_pipeline.readers.latest import fetch_latest, read_latest
from market_pipeline.readers.opening import open_database
from market_pipeline.readers.serving import open_serving_cache
from market_pipeline.readers.statistics import read_comparisons, read_roi_statistics
from market_pipeline.readers.why import explain_statistic

__all__ = [
    "explain_statistic",
    "fetch_latest",
    "open_database",
    "open_serving_cache",
    "read_aggregates",
    "read_agreement",
    "read_changes",
    "read_comparisons",
    "read_latest",
    "read_roi_statistics",
]
