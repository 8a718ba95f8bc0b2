"""Checks of what is computed from bars: rows that are withheld, and entries of the cache.

They read what is stored, as a run computes nothing again whose inputs did not change.
"""

from collections.abc import Iterator, Sequence

import dagster as dg
import pandas as pd

from market_pipeline.ingestion.request import Route
from market_pipeline.orchestration.assets import (
    choose_pairs,
    market_comparisons,
    market_roi_statistics,
)
from market_pipeline.orchestration.causes import told_plainly
from market_pipeline.orchestration.check_results import CheckResult
from market_pipeline.orchestration.latest_cache import latest_market_cache
from market_pipeline.orchestration.report import ReportRow
from market_pipeline.orchestration.resources import (
    Database,
    IngestionRequest,
    Providers,
    keep_routes,
)
from market_pipeline.readers.refreshing import inspect_latest
from market_pipeline.settings import read_statistics_settings
from market_pipeline.storage.markets.lookup import read_active_markets
from market_pipeline.storage.statistics.masked import (
    MaskedRows,
    count_masked_comparisons,
    count_masked_statistics,
)

Names = Sequence[tuple[str, str]]


def check_statistics(database: Database, _: Names) -> CheckResult:
    """No newest statistic of an active market is NULL because its bars cannot be trusted."""
    with database.engine.connect() as connection:
        market_ids = [row["market_id"] for row in read_active_markets(connection)]
        return _describe_masked(count_masked_statistics(connection, market_ids, _list_horizons()))


def check_comparisons(database: Database, _: Names) -> CheckResult:
    """No newest comparison of active markets is NULL because its bars cannot be trusted."""
    with database.engine.connect() as connection:
        markets = pd.DataFrame(read_active_markets(connection), columns=["market_id", "symbol"])
        pairs = choose_pairs(markets, read_statistics_settings().benchmarks).tolist()
        return _describe_masked(count_masked_comparisons(connection, pairs, _list_horizons()))


def _list_horizons() -> list[str]:
    return [f"{days}d" for days in read_statistics_settings().horizons_days]


def check_cache(database: Database, names: Names) -> CheckResult:
    """Redis, where there is one, has a current entry of each of the run's markets."""
    state = inspect_latest(database.engine, names)
    lines: list[ReportRow] = [{"market": name, "trouble": "not current"} for name in state.behind]
    if state.trouble:
        lines = [{"market": "all", "trouble": state.trouble}]
    numbers = {"entries": state.entries, "behind": len(state.behind)}
    return CheckResult({**numbers, "oldest_seconds": round(state.oldest_seconds, 1)}, lines)


def _describe_masked(found: MaskedRows) -> CheckResult:
    lines = [
        {"of": row["names"], "horizon": row["horizon"], "reason": row["reason"]}
        for row in found.examples
    ]
    return CheckResult({"rows": found.rows, "masked": found.masked}, lines)


_CHECKS = {
    "statistics_unmasked": (market_roi_statistics, check_statistics),
    "comparisons_unmasked": (market_comparisons, check_comparisons),
    "cache_current": (latest_market_cache, check_cache),
}


_SPECS = {
    name: dg.AssetCheckSpec(name, asset=asset, description=check.__doc__)
    for name, (asset, check) in _CHECKS.items()
}


@dg.multi_asset_check(name="output_checks", specs=list(_SPECS.values()), can_subset=True)
def check_outputs(
    context: dg.AssetCheckExecutionContext,
    database: Database,
    request: IngestionRequest,
    providers: Providers,
) -> Iterator[dg.AssetCheckResult]:
    """Check all rows and the run's entries, whatever it has computed."""
    with told_plainly():
        asked = request.describe_run(context.instance, context.run.run_id).request
        routes: list[Route] = keep_routes(database, providers.route(asked).routes)
        names = [(market.provider, market.symbol) for _, market in routes]
        for key in sorted(context.selected_asset_check_keys):
            _, check = _CHECKS[key.name]
            yield check(database, names).build(_SPECS[key.name])
