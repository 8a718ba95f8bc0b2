"""What a user does in Dagster's UI, in a real browser, on the server that ``make dev`` starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from shutil import copy
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
import yaml

from market_pipeline.api.dagster_client import LOCATION
from market_pipeline.definitions import defs
from market_pipeline.providers.registry import list_provider_names
from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.system.browser import (
    HEIGHT,
    LINEAGE_HEIGHT,
    WIDTH,
    count_partitions,
    expand_lineage,
    find_graph,
    find_materialize_button,
    find_node,
    launch_backfill,
    launch_partition,
    open_browser,
    open_events,
    open_job,
    open_lineage,
    open_picture,
)
from market_pipeline_tests.system.dagster_ui import DagsterUI, open_dagster_ui
from market_pipeline_tests.system.processes import wait_for
from market_pipeline_tests.system.project import ROOT, SCRIPTS, Project, make_project, read_query

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.system

ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
RUN_SECONDS = 300.0
FILL = "backfill_history"
LOCATION_NAMES = "{ workspaceOrError { ... on Workspace { locationEntries { name } } } }"
ASSETS = {
    "markets": "market",
    "market_aggregates": "market_aggregate",
    "market_snapshots": "market_snapshot",
    "market_comparisons": "market_comparison",
    "market_roi_statistics": "market_roi_statistic",
}


@dataclass(frozen=True, slots=True)
class Visit:
    """A browser's page on a running UI, after one click on *Materialize all*."""

    project: Project
    ui: DagsterUI
    page: Page
    address_after_click: str

    def wait_for_runs(self, job: str = "__ASSET_JOB", count: int = 1) -> list[dict[str, Any]]:
        """Return a job's runs, the newest first, once so many have ended."""

        def find_ended() -> list[dict[str, Any]]:
            runs = [run for run in self.ui.list_runs(job) if run["status"] in ENDED]
            return runs if len(runs) >= count else []

        return wait_for(find_ended, RUN_SECONDS, "the run to end", self.ui.services)


@pytest.fixture(scope="module")
def visit() -> Iterator[Visit]:
    """A fresh project whose user has clicked on *Materialize all*, and has waited."""
    with make_project() as project, open_browser() as browser:
        port = choose_port()
        command = project.make("dev", f"PORT={port}")
        with open_dagster_ui(command, port, project.environment, project.folder) as ui:
            page = browser.new_page()
            open_lineage(page, ui.address)
            find_materialize_button(page).click()
            page.get_by_text("View run").or_(page.get_by_text("View", exact=True)).first.wait_for()
            visit = Visit(project, ui, page, page.url)
            visit.wait_for_runs()
            yield visit


def test_one_click_materialises_everything_without_the_launchpad(visit: Visit) -> None:
    """The button starts one run with no configuration; the user stays where they are."""
    assert "/asset-groups" in visit.address_after_click
    run, *others = visit.wait_for_runs()
    assert not others
    assert not yaml.safe_load(run["runConfigYaml"])
    assert run["status"] == "SUCCESS", visit.ui.services.read_last_words()


def test_the_rows_of_every_asset_land_in_the_embedded_database(visit: Visit) -> None:
    """Each asset's table has rows, in the database that commands in the same folder use."""
    rows = visit.project.count_rows(*ASSETS.values())

    assert all(rows.values()), rows
    assert rows["market"] == 3


def test_the_lineage_opens_as_the_readme_shows_it(visit: Visit) -> None:
    """Its groups, from the providers to the cache, on one screen and with nothing to open."""
    visit.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    open_lineage(visit.page, visit.ui.address)
    groups = {find_group(asset) for asset in ASSETS} | {"providers", "serving"}
    for group in groups:
        find_node(visit.page, group).wait_for()
    assert not find_node(visit.page, "market_aggregates").count()
    graph = find_graph(visit.page)
    assert graph["width"] > 5 * graph["height"]
    assert graph["x"] >= 0
    assert graph["x"] + graph["width"] <= WIDTH


def find_group(asset: str) -> str:
    """Return the group of an asset."""
    return str(defs.resolve_asset_graph().get(dg.AssetKey(asset)).group_name)


def test_lineage_begins_at_the_providers(visit: Visit) -> None:
    """With its groups opened, the graph shows each provider, and each asset downstream of them."""
    # Dagster draws only the nodes that are on the screen.
    visit.page.set_viewport_size({"width": WIDTH, "height": LINEAGE_HEIGHT})
    open_lineage(visit.page, visit.ui.address)
    expand_lineage(visit.page)

    for name in (*list_provider_names(), *ASSETS, "latest_market_cache"):
        find_node(visit.page, name).wait_for()


def test_the_catalog_shows_counts_and_the_picture_of_the_bars(visit: Visit) -> None:
    """The last materialisation of market_aggregates has its numbers and a drawn chart."""
    open_events(visit.page, visit.ui.address, "market_aggregates")
    stored = visit.project.count_rows("market_aggregate")["market_aggregate"]
    shown = {
        row.get_by_role("cell").first.inner_text(): row.get_by_role("cell").nth(1).inner_text()
        for row in visit.page.get_by_role("row").filter(has_text="row").all()
    }
    assert shown["rows_inserted"].strip() == shown["dagster/row_count"].strip() == str(stored)

    picture = open_picture(visit.page)

    assert picture.evaluate("image => image.naturalWidth") >= 600
    assert picture.evaluate("image => image.src").startswith("data:image/png;base64,")


def list_months(visit: Visit) -> list[str]:
    """Return the months of 2024 of which there are bars; runs by the clock ask for none."""
    query = """SELECT DISTINCT to_char(open_time, 'YYYY-MM') FROM market_data.market_aggregate
        WHERE open_time >= '2024-01-01' AND open_time < '2025-01-01' ORDER BY 1"""
    return [month for (month,) in read_query(visit.project.find_database(), query)]


def test_months_are_filled_from_the_dialog_one_after_the_other(visit: Visit) -> None:
    """The page of partitions shows them as done; two months at once would hold up the schedule."""
    open_job(visit.page, visit.ui.address, FILL, "partitions")
    launch_backfill(visit.page, "[2024-01-01...2024-02-01]")

    later, sooner = sorted(visit.wait_for_runs(FILL, 2), key=lambda run: -run["startTime"])

    assert {later["status"], sooner["status"]} == {"SUCCESS"}, visit.ui.services.read_last_words()
    assert sooner["endTime"] <= later["startTime"]
    assert list_months(visit) == ["2024-01", "2024-02"]
    open_job(visit.page, visit.ui.address, FILL, "partitions")
    visit.page.get_by_text("Missing partitions").wait_for()
    total, missing, failed = (
        count_partitions(visit.page, f"{status} partitions")
        for status in ("Total", "Missing", "Failed")
    )
    assert (total - missing, failed) == (2, 0)


def test_a_month_is_filled_from_the_launchpad(visit: Visit) -> None:
    """Choosing a partition there writes the span into the configuration."""
    open_job(visit.page, visit.ui.address, FILL, "playground")
    before = len(visit.ui.list_runs(FILL))
    launch_partition(visit.page, "2024-04-01")

    run = visit.wait_for_runs(FILL, before + 1)[0]

    assert run["status"] == "SUCCESS", visit.ui.services.read_last_words()
    assert "2024-04" in list_months(visit)


def test_a_month_is_filled_by_a_command_that_names_the_module(visit: Visit) -> None:
    """The running daemon, which has the workspace, takes what ``-m`` has queued."""
    before = len(visit.ui.list_runs(FILL))
    module = ("-m", "market_pipeline.definitions", "-j", FILL)
    done = visit.project.run(
        "dagster", "job", "backfill", *module, "--partitions", "2024-07-01", "--noprompt"
    )
    assert done.returncode == 0, done.stderr

    run = visit.wait_for_runs(FILL, before + 1)[0]

    assert run["status"] == "SUCCESS", visit.ui.services.read_last_words()
    assert "2024-07" in list_months(visit)


def test_dg_dev_serves_the_same_location() -> None:
    """What is switched or queued there is known to a daemon that reads workspace.yaml."""
    with make_project() as project:
        copy(ROOT / "pyproject.toml", project.folder)
        (project.folder / "market_pipeline").symlink_to(ROOT / "market_pipeline")
        port = choose_port()
        command = [str(SCRIPTS / "dg"), "dev", "--port", str(port)]
        with open_dagster_ui(command, port, project.environment, project.folder) as ui:
            workspace = ui.query(LOCATION_NAMES)["workspaceOrError"]
    assert [entry["name"] for entry in workspace["locationEntries"]] == [LOCATION]
