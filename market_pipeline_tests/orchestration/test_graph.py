"""What the graph says before anything runs."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from market_pipeline.definitions import build_definitions
from market_pipeline.orchestration.assets import _observe_providers
from market_pipeline.orchestration.io_manager import find_table
from market_pipeline.orchestration.lineage import COLUMN_SOURCES
from market_pipeline.providers.registry import list_provider_names, route_markets
from market_pipeline.storage.tables import SCHEMA, metadata
from market_pipeline_tests.commands import COMMAND_SECONDS

TABLES = {
    "markets",
    "market_aggregates",
    "market_snapshots",
    "market_comparisons",
    "market_roi_statistics",
}
CACHE = "latest_market_cache"


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    """The code location."""
    return build_definitions()


@pytest.fixture(scope="module")
def graph(definitions: dg.Definitions) -> Any:
    """Its assets."""
    return definitions.resolve_asset_graph()


def name_parents(graph: Any, asset: str) -> set[str]:
    """Return the direct upstreams of an asset."""
    return {key.to_user_string() for key in graph.get(dg.AssetKey(asset)).parent_keys}


def test_lineage_leads_from_the_providers_to_the_cache(graph: Any) -> None:
    """Each asset's direct upstreams are those of the design."""
    providers = {f"provider/{name}" for name in list_provider_names()}
    assert providers >= {"provider/mock", "provider/coingecko", "provider/yahoo", "provider/file"}
    assert name_parents(graph, "markets") == providers
    assert name_parents(graph, "market_aggregates") == {"markets"}
    for asset in ("market_snapshots", "market_comparisons", "market_roi_statistics"):
        assert name_parents(graph, asset) == {"market_aggregates"}
    statistics = {"market_snapshots", "market_comparisons", "market_roi_statistics"}
    assert name_parents(graph, CACHE) == statistics


def list_tables(graph: Any) -> list[dg.AssetKey]:
    """Return the assets that are stored in a table."""
    return [key for key in graph.materializable_asset_keys if key != dg.AssetKey(CACHE)]


def test_providers_are_external_and_everything_but_the_cache_is_a_table(graph: Any) -> None:
    """What has a table can be materialised, and beside it only the cache."""
    assert {key.to_user_string() for key in list_tables(graph)} == TABLES
    assert {key.to_user_string() for key in graph.materializable_asset_keys} == {*TABLES, CACHE}
    external = graph.external_asset_keys
    assert {key.path[-1] for key in external} == set(list_provider_names())
    assert all(find_table(key) is not None for key in list_tables(graph))


def test_an_exchange_of_a_family_is_observed_where_the_graph_shows_it(graph: Any) -> None:
    """As its family, which is the node that markets come from: a key of its own has no node."""
    (_, market) = route_markets(["BTC-USD"], ["mock"], {})[0]
    for name in ("ccxt-bitstamp", "mock"):
        provider: Any = SimpleNamespace(name=name, summary="", homepage="https://example.org")
        (seen,) = _observe_providers([(provider, market)])
        assert seen.asset_key in graph.external_asset_keys


def test_every_asset_says_what_it_is_and_whose(graph: Any) -> None:
    """Group, kinds, owners, tags and a description, on external assets too."""
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.group_name not in {None, "default"}, key
        assert node.kinds, key
        assert node.owners, key
        assert node.tags.get("layer"), key


def test_every_job_schedule_and_sensor_says_what_it_does(definitions: dg.Definitions) -> None:
    """Their lists in the UI are the first thing that an operator reads."""
    repository = definitions.get_repository_def()
    named = [*repository.schedule_defs, *repository.sensor_defs, *(definitions.jobs or ())]
    assert len(named) >= 11
    assert [one.name for one in named if not one.description] == []


def test_the_button_and_the_job_run_the_same_assets(definitions: dg.Definitions) -> None:
    """Neither tries to materialise an external asset."""
    for job in (
        definitions.resolve_job_def("ingest"),
        definitions.resolve_implicit_global_asset_job_def(),
    ):
        names = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
        assert names == {*TABLES, CACHE}


def test_nothing_has_to_be_configured(definitions: dg.Definitions) -> None:
    """One click runs: an empty run config is complete for the job and for the buttons."""
    dg.validate_run_config(definitions.resolve_job_def("ingest"), {})
    dg.validate_run_config(definitions.resolve_implicit_global_asset_job_def(), {})


def test_column_schema_is_the_tables(graph: Any) -> None:
    """Every column is shown with its type, its comment and whether it may be NULL."""
    for key in list_tables(graph):
        shown = graph.get(key).metadata["dagster/column_schema"].columns
        table = find_table(key)
        assert [column.name for column in shown] == [column.name for column in table.columns]
        assert all(column.description for column in shown)
        assert [one.constraints.nullable for one in shown] == [c.nullable for c in table.columns]


def test_column_lineage_names_columns_that_exist(graph: Any) -> None:
    """Each column and its sources are columns, and the sources belong to a direct upstream."""
    for table_name, (upstream, sources) in COLUMN_SOURCES.items():
        table = metadata.tables[f"{SCHEMA}.{table_name}"]
        above = find_table(dg.AssetKey(upstream))
        assert set(sources) <= set(table.columns.keys())
        assert {name for names in sources.values() for name in names} <= set(above.columns.keys())
        assert upstream in name_parents(graph, f"{table_name}s")


def test_an_entry_of_the_cache_is_described_like_a_row(graph: Any) -> None:
    """Each part has a meaning, and comes from columns that exist upstream."""
    metadata = graph.get(dg.AssetKey(CACHE)).metadata
    assert all(column.description for column in metadata["dagster/column_schema"].columns)
    sources = metadata["dagster/column_lineage"].deps_by_column
    assert set(sources) == {"value.snapshot", "value.bars", "value.roi"}
    for dependency in (one for deps in sources.values() for one in deps):
        assert dependency.column_name in find_table(dependency.asset_key).columns


def test_lineage_of_sharpe_leads_to_the_closes(graph: Any) -> None:
    """The declarative table reaches Dagster in its own terms."""
    lineage = graph.get(dg.AssetKey("market_roi_statistics")).metadata["dagster/column_lineage"]
    assert lineage.deps_by_column["sharpe"] == [
        dg.TableColumnDep(asset_key=dg.AssetKey("market_aggregates"), column_name="close")
    ]


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own, with an empty environment."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={}, cwd=folder, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip


def test_loading_definitions_warns_of_nothing(tmp_path: Path) -> None:
    """No preview, beta, superseded or deprecated part of a library is in use."""
    code = (
        "import warnings, dagster, pandas, sqlalchemy; warnings.simplefilter('error')\n"
        # Dagster's own, for every resource without config fields.
        "warnings.filterwarnings('ignore', 'The `__fields__` attribute')\n"
        "from market_pipeline.definitions import defs\n"
        "defs.resolve_job_def('ingest'); defs.resolve_implicit_global_asset_job_def()\n"
        "dagster.Definitions.validate_loadable(defs)"
    )
    loaded = run_python(code, tmp_path)
    assert loaded.returncode == 0, loaded.stderr


def test_loading_definitions_loads_nothing_heavy(tmp_path: Path) -> None:
    """Providers, matplotlib, calendars and the network wait until something needs them."""
    heavy = ("matplotlib", "PIL", "exchange_calendars", "httpx", "alembic", "redis")
    clients = [
        f"market_pipeline.providers.{name}" for name in ("mock", "coingecko", "yahoo", "file")
    ]
    code = (
        "import sys, market_pipeline.definitions\n"
        f"print([name for name in {[*heavy, *clients]} if name in sys.modules])"
    )
    assert run_python(code, tmp_path).stdout.strip() == "[]"
