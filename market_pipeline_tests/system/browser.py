"""A real browser: Debian's Chromium, driven by Playwright, and the pages that it opens."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from typing import TYPE_CHECKING

from market_pipeline.api.dagster_client import LOCATION

# `make test` collects these modules as well, without the browser's driver.
if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import BrowserContext, FloatRect, Locator, Page

CHROMIUM = "/usr/bin/chromium"
WIDTH, HEIGHT = 1920, 1000
LINEAGE_HEIGHT = 2_000
"""Of the whole graph, which begins at a node for each provider."""
PAGE_SECONDS = 60
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextlib.contextmanager
def open_browser() -> Iterator[BrowserContext]:
    """Open a browser that has never been anywhere; closed, and its profile gone, at the end."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="mp-browser-") as profile, sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            args=ARGUMENTS,
            viewport={"width": WIDTH, "height": HEIGHT},
        )
        context.set_default_timeout(PAGE_SECONDS * 1_000)
        try:
            yield context
        finally:
            context.close()


def open_lineage(page: Page, address: str) -> None:
    """Open the graph of all assets, its groups still closed."""
    page.goto(f"{address}/asset-groups")
    find_materialize_button(page).wait_for()
    page.get_by_text("ingestion").last.wait_for()


def expand_lineage(page: Page) -> None:
    """Give the graph all the width, where names are written in full, and open its groups."""
    page.get_by_text("Hide navigation").click()
    page.get_by_role("button").filter(has=page.get_by_label("panel_show_right")).click()
    page.keyboard.press("Alt+e")
    page.wait_for_url("**/asset-groups?expanded=*")


def find_graph(page: Page) -> FloatRect:
    """Return the place of the whole graph on the page, once it has stopped moving."""
    before, place = None, _measure_graph(page)
    deadline = time.monotonic() + PAGE_SECONDS
    while place != before:
        assert time.monotonic() < deadline, "the graph still moves"
        page.wait_for_timeout(500)
        before, place = place, _measure_graph(page)
    return place


def _measure_graph(page: Page) -> FloatRect:
    boxes = [one.bounding_box() for one in page.locator("svg foreignObject").all()]
    shown = [box for box in boxes if box is not None]
    left, top = min(box["x"] for box in shown), min(box["y"] for box in shown)
    right = max(box["x"] + box["width"] for box in shown)
    bottom = max(box["y"] + box["height"] for box in shown)
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def find_node(page: Page, asset: str) -> Locator:
    """Find an asset's node in the opened graph."""
    return page.locator("svg foreignObject").get_by_text(asset, exact=True).last


def find_materialize_button(page: Page) -> Locator:
    """Find the button that materialises every asset."""
    return page.get_by_role("button").filter(has_text=re.compile("Materialize all"))


def open_job(page: Page, address: str, job: str, tab: str) -> None:
    """Open a tab of a job's page: ``partitions`` or ``playground``, which is the launchpad."""
    page.goto(f"{address}/locations/{LOCATION}/jobs/{job}/{tab}")


def launch_backfill(page: Page, partitions: str) -> None:
    """Start a backfill of partitions in the dialog of a job's opened page of partitions."""
    page.get_by_role("button").filter(has_text="Launch backfill").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox").first.fill(partitions)
    dialog.get_by_role("textbox").first.press("Enter")
    dialog.get_by_role("button").filter(has_text="Submit").click()
    dialog.wait_for(state="hidden")


def launch_partition(page: Page, partition: str) -> None:
    """Choose a partition in a job's opened launchpad, and launch its run."""
    choice = page.get_by_placeholder("Partition")
    choice.click()
    choice.fill(partition)
    page.get_by_text(partition, exact=True).click()
    page.get_by_text(f"partition: {partition}").wait_for()
    page.get_by_role("button").filter(has_text="Launch Run").click()
    page.wait_for_url("**/runs/*")


def count_partitions(page: Page, status: str) -> int:
    """Return how many partitions a job's opened page of partitions counts under a heading."""
    return int(page.get_by_text(status, exact=True).locator("xpath=..").inner_text().split()[0])


def open_events(page: Page, address: str, asset: str) -> None:
    """Open what the catalog knows of an asset's last materialisation."""
    page.goto(f"{address}/assets/{asset}?view=events")
    page.get_by_text("dagster/row_count").wait_for()


def open_picture(page: Page) -> Locator:
    """Open the picture of the materialisation that is shown, and wait until it is drawn."""
    row = page.get_by_role("row").filter(has_text="picture")
    row.get_by_text("Show Markdown").click()
    picture = page.get_by_role("dialog").locator("img")
    picture.wait_for()
    page.wait_for_function("document.querySelector('[role=dialog] img').complete")
    return picture
