"""What a materialisation does and tells: one click, again, each asset alone."""

import base64
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import create_engine, text

from market_pipeline.orchestration.pictures import MAX_BYTES
from market_pipeline_tests.commands import COMMAND_SECONDS
from market_pipeline_tests.orchestration.conftest import Materialise

TABLES = (
    "markets",
    "market_aggregates",
    "market_snapshots",
    "market_comparisons",
    "market_roi_statistics",
)
CACHE = "latest_market_cache"
COMPUTED = {"market_comparisons", "market_roi_statistics"}
ILLUSTRATED = {"market_aggregates", "market_comparisons", "market_roi_statistics"}
MORNING, AN_HOUR_LATER, NEXT_DAY = "2024-03-15T10:00Z", "2024-03-15T11:00Z", "2024-03-16T01:00Z"


def read_metadata(result: dg.ExecuteInProcessResult) -> dict[str, Mapping[str, Any]]:
    """Return each asset's materialisation metadata as plain values."""
    return {
        event.asset_key.to_user_string(): {
            name: entry.value for name, entry in event.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
    }


def find_illustrated(result: dg.ExecuteInProcessResult) -> set[str]:
    """Return the assets that show a picture."""
    return {asset for asset, shown in read_metadata(result).items() if "picture" in shown}


def count_rows(database_url: str, asset: str) -> int:
    """Return how many rows an asset's table has."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        query = text(f"SELECT count(*) FROM market_data.{asset[:-1]}")
        counted = int(connection.execute(query).scalar_one())
    engine.dispose()
    return counted


def test_one_click_materialises_every_asset(materialise: Materialise) -> None:
    """The UI's button, without any config, on an empty database."""
    result = materialise()
    assert result.success
    assert set(read_metadata(result)) == {*TABLES, CACHE}


def test_a_run_reports_the_relation_its_rows_and_where_columns_come_from(
    materialise: Materialise, database_url: str
) -> None:
    """What the UI shows agrees with what the database holds."""
    shown = read_metadata(materialise(window_end=MORNING))
    assert shown.pop(CACHE) == {"store": "memory", "outcome": "ok"}
    for asset, metadata in shown.items():
        database = database_url.partition("?")[0].rsplit("/", 1)[-1]
        assert metadata["dagster/table_name"] == f"{database}.market_data.{asset[:-1]}"
        assert metadata["dagster/row_count"] == count_rows(database_url, asset) > 0
        assert metadata["rows_inserted"] == metadata["dagster/row_count"]
        assert metadata["markets"] == 3
        assert metadata["dagster/column_schema"].columns
        assert ("dagster/column_lineage" in metadata) == (asset != "markets")
        assert len(metadata["rows"].records) >= 3
    assert [record.data["market"] for record in shown["market_aggregates"]["rows"].records] == [
        "BTC-USD", "ETH-USD", "SPX",
    ]  # fmt: skip


def test_pictures_are_small_pngs_inside_the_event(materialise: Materialise) -> None:
    """The UI needs no other address to show them, and the event log stays small."""
    result = materialise(window_end=MORNING)
    assert find_illustrated(result) == ILLUSTRATED
    for asset in ILLUSTRATED:
        markdown = read_metadata(result)[asset]["picture"]
        png = base64.b64decode(markdown.partition("base64,")[2].removesuffix(")"))
        assert png.startswith(b"\x89PNG")
        assert len(png) < MAX_BYTES


def test_a_second_run_tells_no_news(materialise: Materialise, database_url: str) -> None:
    """Unchanged rows leave no picture and no table in the event log; numbers and columns stay."""
    materialise(window_end=MORNING)
    second = read_metadata(materialise(window_end=MORNING))
    assert second.pop(CACHE) == {"store": "memory", "outcome": "ok"}
    for asset, metadata in second.items():
        assert (metadata["rows_inserted"], metadata["rows_updated"]) == (0, 0)
        assert metadata["dagster/row_count"] == count_rows(database_url, asset)
        if asset in COMPUTED:
            assert metadata["rows_unchanged"] == 0
            assert metadata["not_computed"].endswith("so nothing was computed")
        elif asset != "market_aggregates":  # of them only the newest are asked for again
            assert metadata["rows_unchanged"] == metadata["dagster/row_count"]
        assert not {"picture", "rows"} & set(metadata)
        assert "dagster/column_schema" in metadata


def test_the_row_count_is_the_tables(materialise: Materialise, database_url: str) -> None:
    """A run about one market reports what it wrote, and the rows of all of them."""
    materialise(window_end=MORNING)
    metadata = read_metadata(materialise(symbols=["SPX"], window_end=MORNING))["market_aggregates"]
    rows = count_rows(database_url, "market_aggregates")
    assert metadata["dagster/row_count"] == rows > metadata["rows_unchanged"]


def test_pictures_follow_final_days_only(materialise: Materialise) -> None:
    """An hour more changes bars but no picture; a day that became final draws them all again."""
    materialise(window_end=MORNING)
    hour = materialise(window_end=AN_HOUR_LATER)
    assert read_metadata(hour)["market_aggregates"]["rows_updated"] > 0
    assert find_illustrated(hour) == set()
    assert find_illustrated(materialise(window_end=NEXT_DAY)) == ILLUSTRATED


def test_a_run_with_only_newest_bars_never_loads_matplotlib(
    materialise: Materialise, tmp_path: Path
) -> None:
    """What every scheduled run would pay for is not even imported."""
    materialise(window_end=MORNING)
    code = (
        "import sys, dagster\n"
        "from market_pipeline.definitions import defs\n"
        "job = defs.resolve_job_def('ingest')\n"
        f"request = {{'config': {{'window_end': '{AN_HOUR_LATER}'}}}}\n"
        "job.execute_in_process(run_config={'resources': {'request': request}})\n"
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"DATABASE_URL": os.environ["DATABASE_URL"], "HOME": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("asset", TABLES)
def test_each_asset_can_be_materialised_alone(asset: str, materialise: Materialise) -> None:
    """After a first run any asset takes its input from the tables; at one clock nothing changes."""
    materialise(window_end=MORNING)
    alone = materialise(asset, window_end=MORNING)
    assert alone.success
    assert set(read_metadata(alone)) == {asset}
    assert read_metadata(alone)[asset]["rows_inserted"] == 0
    assert (read_metadata(alone)[asset]["rows_unchanged"] > 0) is (asset not in COMPUTED)


def test_a_run_observes_the_providers_it_used(
    materialise: Materialise, instance: dg.DagsterInstance
) -> None:
    """The external asset tells what was routed to it; the others stay silent."""
    materialise(symbols=["BTC-USD", "SPX"])

    def read_observations(name: str) -> list[Mapping[str, Any]]:
        key = dg.AssetKey(["provider", name])
        records = instance.fetch_observations(key, limit=5).records
        return [record.asset_observation.metadata for record in records if record.asset_observation]

    (observed,) = read_observations("mock")
    assert observed["markets"].value == 2
    assert str(observed["homepage"].value).startswith("https://")
    assert read_observations("yahoo") == []


def test_bad_config_fails_in_the_first_step_and_writes_nothing(
    materialise: Materialise, instance: dg.DagsterInstance
) -> None:
    """Dagster checks no bounds at launch, so the request does, before anything is written."""
    result = materialise(lookback_days=-3)
    assert not result.success
    assert read_metadata(result) == {}
    failures = [event.step_key for event in result.all_events if event.is_step_failure]
    assert failures == ["markets"]
    assert instance.get_run_by_id(result.run_id).status is dg.DagsterRunStatus.FAILURE  # type: ignore[union-attr]


def test_a_run_over_fewer_markets_lets_no_total_fall(materialise: Materialise) -> None:
    """What the UI plots of all markets is the same; what is of the run says so in its name."""
    asked = {"window_end": MORNING, "lookback_days": 7}
    whole = read_metadata(materialise(symbols=["BTC-USD", "ETH-USD", "SPX"], **asked))
    part = read_metadata(materialise(symbols=["BTC-USD", "ETH-USD"], **asked))
    for asset in TABLES:
        for total in ("markets", "dagster/row_count", "holes_left"):
            assert part[asset].get(total) == whole[asset].get(total), (asset, total)
        assert whole[asset]["markets"] == whole[asset]["run_markets"] == 3
        assert part[asset]["run_markets"] == 2
    assert whole["market_aggregates"]["holes_left"] == 0
