"""Takes the pictures of the documents from the running UI.

Run it with ``python -m market_pipeline_tests.system.screenshots``, in an environment that has the
extra ``system``.

They show the examples of docs/recorded-answers.md: the real series of 2018, as they stood on its
last day, and on the dashboard the recorded answers of January 2015, with a hole.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.system.browser import (
    find_graph,
    open_browser,
    open_events,
    open_lineage,
    open_picture,
)
from market_pipeline_tests.system.dagster_ui import open_dagster_ui
from market_pipeline_tests.system.processes import run_in_background, wait_for
from market_pipeline_tests.system.project import ROOT, SCRIPTS, Project, make_project

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect, Page

IMAGES = ROOT / "docs" / "images"
SETTINGS = {
    "FILE_PROVIDER_PATH": str(ROOT / "market_pipeline_tests" / "recordings" / "series"),
    "INGESTION_PROVIDER": "file",
    "INGESTION_MARKETS": "BTC-USD,SPX",
    "INGESTION_LOOKBACK_DAYS": "366",
}
DASHBOARD = {
    "/": "overview-page.png",
    "/markets/coingecko:BTC-USD?range=3m": "market-page.png",
}
WAIT_SECONDS = 120.0
MARGIN_PIXELS = 20


def main() -> None:
    """Ingest the real series into a database of its own, and picture what the UI shows of it."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with make_project(**SETTINGS) as project:
        ingested = project.run("market-pipeline", "ingest", "--window-end", "2019-01-01")
        assert ingested.returncode == 0, ingested.stderr
        take_pictures(project)
        picture_dashboard(project)


def picture_dashboard(project: Project) -> None:
    """Ingest recorded answers with a hole too, and picture the dashboard's first pages."""
    replay, serving = choose_port(), choose_port()
    command = [sys.executable, "-m", "market_pipeline_tests.replay", "--port", str(replay)]
    answers = f"http://127.0.0.1:{replay}"
    recorded = project.with_settings(
        COINGECKO_BASE_URL=f"{answers}/coingecko", YAHOO_BASE_URL=f"{answers}/yahoo",
        COINGECKO_PLAN="pro", INGESTION_PROVIDER="coingecko,yahoo", API_PORT=str(serving),
        INGESTION_LOOKBACK_DAYS="100", PYTHONPATH=str(ROOT),
    )  # fmt: skip
    serve = [str(SCRIPTS / "market-pipeline"), "serve"]
    with run_in_background(command, recorded.environment, project.folder) as replaying:
        wait_for(lambda: _answers(answers), WAIT_SECONDS, "the recorded answers", replaying)
        recorded.run("market-pipeline", "ingest", "--window-end", "2015-01-30")
        with (
            run_in_background(serve, recorded.environment, project.folder) as server,
            open_browser() as browser,
        ):
            address = f"http://127.0.0.1:{serving}"
            wait_for(lambda: _answers(f"{address}/healthz"), WAIT_SECONDS, "the API", server)
            page = browser.new_page()
            page.emulate_media(color_scheme="light")
            page.set_viewport_size({"width": 1400, "height": 800})
            for path, name in DASHBOARD.items():
                page.goto(address + path)
                page.wait_for_timeout(1_000)
                page.screenshot(path=IMAGES / name, full_page=True)


def _answers(address: str) -> bool:
    try:
        httpx.get(address, trust_env=False)
    except httpx.TransportError:
        return False
    return True


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
