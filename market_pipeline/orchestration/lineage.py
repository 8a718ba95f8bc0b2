"""Static descriptions of the graph: columns, their sources, the providers.

Dagster's lineage and columns tabs show them. Not here: anything that a run found.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from sqlalchemy import Table

from market_pipeline.providers.registry import list_provider_names

OWNERS = ["team:market-data"]

COLUMN_SOURCES: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    "market_aggregate": ("markets", {"market_id": ("market_id",)}),
    "market_snapshot": (
        "market_aggregates",
        {
            "market_id": ("market_id",),
            "realised_volatility": ("close",),
            "roi": ("close",),
            "bars_as_of": ("close_time",),
        },
    ),
    "market_comparison": (
        "market_aggregates",
        {
            "base_market_id": ("market_id",),
            "quote_market_id": ("market_id",),
            "interval": ("interval",),
            "as_of": ("close_time",),
            "price_ratio": ("close",),
            "volume_ratio": ("volume",),
            "roi_spread": ("close",),
            "correlation": ("close", "open_time"),
            "close_skew_seconds": ("close_time",),
            "n_returns": ("close", "open_time"),
        },
    ),
    "market_roi_statistic": (
        "market_aggregates",
        {
            "market_id": ("market_id",),
            "interval": ("interval",),
            "as_of": ("close_time",),
            "roi": ("close",),
            "annualised_return": ("close",),
            "annualised_volatility": ("close",),
            "realised_volatility": ("close",),
            "sharpe": ("close",),
            "sortino": ("close",),
            "max_drawdown": ("close",),
            "calmar": ("close",),
            "drawdown_peak_at": ("close", "close_time"),
            "drawdown_trough_at": ("close", "close_time"),
            "drawdown_recovered_at": ("close", "close_time"),
            "n_returns": ("close", "open_time"),
            "n_missing": ("open_time",),
            "first_bar_at": ("close_time",),
        },
    ),
}
"""For each table, the asset upstream and the columns of it that a column is computed from."""

CACHE_COLUMNS: Sequence[tuple[str, str, str, tuple[tuple[str, str], ...]]] = (
    ("key", "text", "market:{provider}:{symbol}:latest", ()),
    (
        "version",
        "bigint",
        "Stamp of the market's newest change of any kind; an entry of another is not served",
        (),
    ),
    ("stored_at", "double", "When it was put, in seconds since 1970 (UTC)", ()),
    (
        "value.snapshot",
        "json",
        "Newest price, 24 h change and volume, market cap, realised volatility and ROI",
        tuple(
            ("market_snapshots", name)
            for name in (
                "observed_at",
                "price",
                "change_24h_ratio",
                "volume_24h",
                "market_cap",
                "realised_volatility",
                "roi",
            )
        ),
    ),
    (
        "value.bars",
        "json",
        "Newest final bar of each interval",
        tuple(
            ("market_aggregates", name)
            for name in ("interval", "open_time", "open", "high", "low", "close", "volume")
        ),
    ),
    (
        "value.roi",
        "json",
        "Newest statistic of each horizon, with the reason of what is NULL",
        tuple(
            ("market_roi_statistics", name)
            for name in ("horizon", "as_of", "roi", "sharpe", "sortino", "max_drawdown", "reason")
        ),
    ),
)
"""For each part of a cached entry: name, type, meaning, and the (asset, column) it comes from."""


def describe_cache() -> dict[str, Any]:
    """Return the cache's static metadata: the parts of an entry and where they come from."""
    columns = [
        dg.TableColumn(name=name, type=kind, description=meaning)
        for name, kind, meaning, _ in CACHE_COLUMNS
    ]
    lineage = {
        name: [dg.TableColumnDep(asset_key=dg.AssetKey(key), column_name=one) for key, one in deps]
        for name, _, _, deps in CACHE_COLUMNS
        if deps
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
        described["dagster/column_lineage"] = _build_lineage(*COLUMN_SOURCES[table.name])
    return described


def _build_lineage(upstream: str, sources: Mapping[str, tuple[str, ...]]) -> dg.TableColumnLineage:
    key = dg.AssetKey(upstream)
    return dg.TableColumnLineage(
        {
            column: [dg.TableColumnDep(asset_key=key, column_name=source) for source in columns]
            for column, columns in sources.items()
        }
    )


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
