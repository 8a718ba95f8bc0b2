"""Static descriptions of the graph: columns, their sources, the providers.

Dagster's lineage and columns tabs show them. Not here: anything that a run found.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from sqlalchemy import Table

from market_pipeline.providers.registry import list_provider_names

OWNERS = ["team:market-data"]

_CLOSES, _TIMES, _BOTH = ("close",), ("close_time",), ("close", "close_time")
COLUMN_SOURCES: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    "market_aggregate": ("markets", {"market_id": ("market_id",)}),
    "market_snapshot": (
        "market_aggregates",
        {
            "market_id": ("market_id",),
            **dict.fromkeys(("realised_volatility", "roi"), _CLOSES),
            "bars_as_of": _TIMES,
        },
    ),
    "market_comparison": (
        "market_aggregates",
        {
            **dict.fromkeys(("base_market_id", "quote_market_id"), ("market_id",)),
            "interval": ("interval",),
            **dict.fromkeys(("as_of", "close_skew_seconds"), _TIMES),
            **dict.fromkeys(("price_ratio", "roi_spread"), _CLOSES),
            "volume_ratio": ("volume",),
            **dict.fromkeys(("correlation", "n_returns"), ("close", "open_time")),
        },
    ),
    "market_roi_statistic": (
        "market_aggregates",
        {
            **{name: (name,) for name in ("market_id", "interval")},
            **dict.fromkeys(("as_of", "first_bar_at"), _TIMES),
            **dict.fromkeys(("roi", "annualised_return", "annualised_volatility"), _CLOSES),
            **dict.fromkeys(("realised_volatility", "sharpe", "sortino"), _CLOSES),
            **dict.fromkeys(("max_drawdown", "calmar"), _CLOSES),
            **dict.fromkeys(("drawdown_peak_at", "drawdown_trough_at"), _BOTH),
            "drawdown_recovered_at": _BOTH,
            "n_returns": ("close", "open_time"),
            "n_missing": ("open_time",),
        },
    ),
}
"""For each table, the asset upstream and the columns of it that a column is computed from."""

CACHE_COLUMNS: Sequence[tuple[str, str, str, str, str]] = (
    ("key", "text", "market:{provider}:{symbol}:latest", "", ""),
    (
        "version",
        "bigint",
        "Stamp of the market's newest change of any kind; an entry of another is not served",
        "",
        "",
    ),
    ("stored_at", "double", "When it was put, in seconds since 1970 (UTC)", "", ""),
    (
        "value.snapshot",
        "json",
        "Newest price, 24 h change and volume, market cap, realised volatility and ROI",
        "market_snapshots",
        "observed_at price change_24h_ratio volume_24h market_cap realised_volatility roi",
    ),
    (
        "value.bars",
        "json",
        "Newest final bar of each interval",
        "market_aggregates",
        "interval open_time open high low close volume",
    ),
    (
        "value.roi",
        "json",
        "Newest statistic of each horizon, with the reason of what is NULL",
        "market_roi_statistics",
        "horizon as_of roi sharpe sortino max_drawdown reason",
    ),
)
"""For each part of a cached entry: name, type, meaning, the asset and the columns it comes from."""


def describe_cache() -> dict[str, Any]:
    """Return the cache's static metadata: the parts of an entry and where they come from."""
    columns = [
        dg.TableColumn(name=name, type=kind, description=meaning)
        for name, kind, meaning, _, _ in CACHE_COLUMNS
    ]
    lineage = {
        name: _list_sources(asset, sources.split())
        for name, _, _, asset, sources in CACHE_COLUMNS
        if asset
    }
    return {
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "dagster/column_lineage": dg.TableColumnLineage(lineage),
    }


def describe_table(table: Table) -> dict[str, Any]:
    """Return an asset's static metadata: the relation, its columns and where they come from."""
    columns = [
        dg.TableColumn(
            name=column.name,
            type=str(column.type).lower(),
            description=column.comment,
            constraints=dg.TableColumnConstraints(nullable=bool(column.nullable)),
        )
        for column in table.columns
    ]
    described: dict[str, Any] = {
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "dagster/table_name": f"{table.schema}.{table.name}",
    }
    if table.name in COLUMN_SOURCES:
        upstream, sources = COLUMN_SOURCES[table.name]
        lineage = {column: _list_sources(upstream, names) for column, names in sources.items()}
        described["dagster/column_lineage"] = dg.TableColumnLineage(lineage)
    return described


def _list_sources(asset: str, columns: Sequence[str]) -> list[dg.TableColumnDep]:
    return [dg.TableColumnDep(asset_key=dg.AssetKey(asset), column_name=name) for name in columns]


def build_provider_specs() -> list[dg.AssetSpec]:
    """Return one external asset for each installed provider; none of them is loaded."""
    return [_describe_provider(name) for name in list_provider_names()]


def name_provider_asset(provider: str) -> dg.AssetKey:
    """Return the key of a provider's external asset."""
    return dg.AssetKey(["provider", provider])


def _describe_provider(name: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        name_provider_asset(name),
        group_name="providers",
        description=f"The source of markets that `INGESTION_PROVIDER` calls `{name}`. "
        "Every run that routes markets to it observes it: what it serves, how many markets. "
        "`market-pipeline providers` lists all, and the settings that each still needs.",
        kinds={"source"},
        owners=OWNERS,
        tags={"layer": "source"},
    )
