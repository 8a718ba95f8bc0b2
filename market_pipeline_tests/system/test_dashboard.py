"""The dashboard in a real browser: values, charts, themes and sizes; nothing hostile runs."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, make_url, text

from market_pipeline_tests.api.conftest import NOWHERE, serve_api
from market_pipeline_tests.commands import run_command
from market_pipeline_tests.conftest import make_database, make_environment
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.system.browser import open_browser
from market_pipeline_tests.system.processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from playwright.sync_api import Page
    from sqlalchemy import Engine

pytestmark = pytest.mark.system
HOSTILE = "<img src=x onerror=document.title='owned'>"
PAGES = ("/", "/markets/mock:BTC-USD", "/compare", "/runs")
QUICK = {"INGESTION_LOOKBACK_DAYS": "60", "MOCK_FAULTS": "ETH-USD:skipped_page"}
_PRICE = """SELECT price FROM market_data.market_snapshot JOIN market_data.market USING (market_id)
    WHERE symbol = 'BTC-USD' ORDER BY observed_at DESC LIMIT 1"""
_ROI = """SELECT roi FROM market_data.market_roi_statistic JOIN market_data.market USING (market_id)
    WHERE symbol = 'BTC-USD' AND horizon = '30d' ORDER BY as_of DESC LIMIT 1"""
_MARKETS = """
    INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base, quote, venue,
        calendar, intervals, price_basis, is_primary)
    SELECT 'mock', 'x' || n, 'M' || n || '-USD', :name, 'M', 'USD', :name, '24/7', '{1d}',
        'unadjusted', true FROM generate_series(1, :count) n"""
_CONTRAST = """() => { const s = getComputedStyle(document.body);
    return [s.backgroundColor, s.color]; }"""


@dataclass(frozen=True, slots=True)
class Site:
    """A served dashboard, and its database."""

    address: str
    engine: Engine


@pytest.fixture(scope="module")
def ingested(
    server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The name of a database with three markets, of which one has a hole."""
    with make_database(server_url, template) as url:
        folder = tmp_path_factory.mktemp("ingested")
        environment = {**make_environment(url, folder), **QUICK}
        ran = run_command("market-pipeline", "ingest", environment=environment, folder=folder)
        assert ran.returncode in (0, 3), ran.stderr
        yield str(make_url(url).database)


@pytest.fixture(scope="module")
def site(
    server_url: str, ingested: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The API over a copy that nobody changes."""
    with serve_copy(server_url, ingested, tmp_path_factory.mktemp("site")) as served:
        yield served


@pytest.fixture
def own_site(server_url: str, ingested: str, tmp_path: Path) -> Iterator[Site]:
    """The API over a copy of the test's own."""
    with serve_copy(server_url, ingested, tmp_path) as served:
        yield served


@contextmanager
def serve_copy(server_url: str, ingested: str, folder: Path) -> Iterator[Site]:
    """Serve the API over a copy of the database."""
    with make_database(server_url, ingested) as url:
        environment = {**make_environment(url, folder), "DAGSTER_UI_URL": NOWHERE}
        engine = create_engine(url)
        with serve_api(environment, folder) as (client, _):
            yield Site(str(client.base_url), engine)
        engine.dispose()


@pytest.fixture
def errors() -> list[str]:
    """What the browser's console complained of."""
    return []


@pytest.fixture
def page(errors: list[str]) -> Iterator[Page]:
    """A page that has never been anywhere."""
    with open_browser() as browser:
        page = browser.new_page()
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page


def change(engine: Engine, statement: str, **values: object) -> None:
    """Change rows."""
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def test_values_are_the_databases_and_charts_are_drawn(
    site: Site, page: Page, errors: list[str]
) -> None:
    """Every page without a complaint; a price, a statistic, four panes of a chart."""
    for path in PAGES:
        page.goto(site.address + path)
        page.locator("h1").wait_for()
    page.goto(site.address + "/markets/mock:BTC-USD")
    price = page.locator("[data-key=price]").get_attribute("value")
    assert float(price or "nan") == read_column(site.engine, _PRICE)[0]
    roi = page.locator("#roi data").first.get_attribute("value")
    assert float(roi or "nan") in (*read_column(site.engine, _ROI), *_read_rois(site.engine))
    page.locator(".chart.drawn .main-svg").first.wait_for()
    assert page.locator(".chart .cartesianlayer .subplot").count() >= 3
    page.goto(site.address + "/compare")
    page.locator(".chart.drawn .main-svg").first.wait_for()
    box = page.locator(".chart").bounding_box()
    assert box is not None
    assert box["height"] < 400
    assert errors == []


def _read_rois(engine: Engine) -> list[object]:
    query = "SELECT roi FROM market_data.market_roi_statistic WHERE roi IS NOT NULL"
    return read_column(engine, query)


def test_a_number_leads_to_why_and_a_run_to_its_receipt(
    site: Site, page: Page, errors: list[str]
) -> None:
    """By click, as a person would."""
    page.goto(site.address + "/markets/mock:BTC-USD")
    page.locator("#roi a.why").first.click()
    page.get_by_role("heading", name="Runs that wrote its bars").wait_for()
    (run_id,) = read_column(site.engine, "SELECT run_id::text FROM market_data.ingestion_run")
    page.get_by_role("link", name=str(run_id)).first.click()
    page.wait_for_url(f"**/runs/{run_id}")
    assert page.get_by_text("ETH-USD").first.is_visible()
    assert errors == []


def test_a_new_price_appears_without_a_reload(
    own_site: Site, page: Page, errors: list[str]
) -> None:
    """Within two refreshes, and what was typed or opened meanwhile stays."""
    page.goto(own_site.address + "/")
    page.locator("input[type=search]").fill("half a wor")
    change(
        own_site.engine,
        """UPDATE market_data.market_snapshot SET price = 123456.75
        WHERE market_id = (SELECT market_id FROM market_data.market WHERE symbol = 'BTC-USD')""",
    )
    row = page.get_by_role("row").filter(has_text="BTC-USD")
    wait_for(
        lambda: row.locator("data").first.get_attribute("value") == "123456.75", 30, "the price"
    )
    assert page.locator("input[type=search]").input_value() == "half a wor"
    assert errors == []


def test_hostile_names_and_texts_are_inert(own_site: Site, page: Page, errors: list[str]) -> None:
    """In lists, pages, charts and receipts: shown as text, never run."""
    change(
        own_site.engine, "UPDATE market_data.market SET name = :name, venue = :name", name=HOSTILE
    )
    change(
        own_site.engine,
        "UPDATE market_data.ingestion_run_market SET outcome = 'failed', reason = :reason",
        reason=f"provider said {HOSTILE}",
    )  # fmt: skip
    (run_id,) = read_column(own_site.engine, "SELECT run_id::text FROM market_data.ingestion_run")
    for path in (*PAGES, f"/runs/{run_id}", f"/?q={HOSTILE}"):
        page.goto(own_site.address + path)
        page.locator("h1").wait_for()
        assert page.title() != "owned"
        assert page.locator("img").count() == 0
    page.goto(own_site.address + f"/runs/{run_id}")
    assert page.get_by_text(f"provider said {HOSTILE}").first.is_visible()
    assert errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_theme_has_its_colours_and_the_button_changes_it(
    site: Site, page: Page, scheme: str, errors: list[str]
) -> None:
    """Ink and ground differ, and charts follow."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(site.address + "/markets/mock:BTC-USD")
    ground, ink = page.evaluate(_CONTRAST)
    assert (sum(_read_rgb(ground)) > sum(_read_rgb(ink))) == (scheme == "light")
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.evaluate(_CONTRAST) != [ground, ink] or page.locator("#theme").is_visible()
    assert errors == []


def _read_rgb(colour: str) -> list[int]:
    return [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]


def test_a_phone_scrolls_down_only_and_a_keyboard_reaches_all(
    site: Site, page: Page, errors: list[str]
) -> None:
    """No page is wider than the screen; the first tab stop skips to the content."""
    page.set_viewport_size({"width": 390, "height": 844})
    for path in PAGES:
        page.goto(site.address + path)
        page.locator("h1").wait_for()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, path
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    assert errors == []


def test_without_scripts_everything_is_there(site: Site, page: Page) -> None:
    """Values, a drawn line, tables."""
    page.route("**/*.js", lambda route: route.abort())
    page.goto(site.address + "/markets/mock:BTC-USD")
    assert page.locator("[data-key=price]").inner_text()
    assert page.locator(".chart svg.wide polyline").is_visible()
    assert page.locator("#roi tbody tr").count() >= 1


def test_a_thousand_markets_are_a_page_of_a_hundred(
    own_site: Site, page: Page, errors: list[str]
) -> None:
    """The page does not grow with the list, and a name is found among all of them."""
    change(own_site.engine, _MARKETS, count=1_000, name="Many")
    page.goto(own_site.address + "/")
    assert page.locator("tbody tr").count() == 100
    assert "1,003" in page.locator("caption").inner_text()
    page.goto(own_site.address + "/?q=M777-USD")
    assert page.locator("tbody tr").count() == 1
    assert errors == []


def test_what_is_not_there_is_a_page_too(site: Site, page: Page) -> None:
    """404 in a browser is told in words; a program gets the problem."""
    answer = page.goto(site.address + "/markets/NO-USD")
    assert answer is not None
    assert (answer.status, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "NO-USD" in page.locator("main").inner_text()
    told: Mapping[str, object] = json.loads(
        page.request.get(site.address + "/markets/NO-USD", headers={"Accept": "*/*"}).body()
    )
    assert told["status"] == 404
