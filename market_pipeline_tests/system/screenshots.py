"""Takes the pictures of the documents from the running UI.

Run it with ``python -m market_pipeline_tests.system.screenshots``, in an environment that has the
extra ``system``.

They show the example of docs/recorded-answers.md: the real series of 2018, as they stood on its
last day.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from market_pipeline_tests.system.browser import (
    find_graph,
    open_browser,
    open_events,
    open_lineage,
    open_picture,
)
from market_pipeline_tests.system.dagster_ui import choose_port, open_dagster_ui
from market_pipeline_tests.system.project import ROOT, Project, make_project

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect, Page

IMAGES = ROOT / "docs" / "images"
SETTINGS = {
    "FILE_PROVIDER_PATH": str(ROOT / "market_pipeline_tests" / "recordings" / "series"),
    "INGESTION_PROVIDER": "file",
    "INGESTION_MARKETS": "BTC-USD,SPX",
    "INGESTION_LOOKBACK_DAYS": "366",
}
MARGIN_PIXELS = 20


def main() -> None:
    """Ingest the real series into a database of its own, and picture what the UI shows of it."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with make_project(**SETTINGS) as project:
        ingested = project.run("market-pipeline", "ingest", "--window-end", "2019-01-01")
        assert ingested.returncode == 0, ingested.stderr
        take_pictures(project)


def take_pictures(project: Project) -> None:
    """Start the UI on a project, and write the pictures."""
    port = choose_port()
    command = project.make("dev", f"PORT={port}")
    with (
        open_dagster_ui(command, port, project.environment, project.folder) as ui,
        open_browser() as browser,
    ):
        page = browser.new_page()
        picture_lineage(page, ui.address, IMAGES / "lineage.png")
        picture_chart(page, ui.address, IMAGES / "price-chart.png")


def picture_lineage(page: Page, address: str, file: Path) -> None:
    """Write a picture of the graph as it opens, cropped to it."""
    open_lineage(page, address)
    page.get_by_text("fetching statuses").first.wait_for(state="detached")
    graph = find_graph(page)
    clip: FloatRect = {
        "x": graph["x"] - MARGIN_PIXELS,
        "y": graph["y"] - MARGIN_PIXELS,
        "width": graph["width"] + 2 * MARGIN_PIXELS,
        "height": graph["height"] + 2 * MARGIN_PIXELS,
    }
    page.screenshot(path=file, clip=clip)


def picture_chart(page: Page, address: str, file: Path) -> None:
    """Write a picture of the bars' last materialisation."""
    open_events(page, address, "market_aggregates")
    open_picture(page)
    page.get_by_role("dialog").screenshot(path=file)


if __name__ == "__main__":
    main()
