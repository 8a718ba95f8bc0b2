"""The dashboard in a real browser: values, charts, themes and sizes; nothing hostile runs."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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

    from playwright.sync_api import Page
    from sqlalchemy import Engine

pytestmark = pytest.mark.system
HOSTILE = "<img src=x onerror=document.title='owned'>"
BTC = "/markets/mock:BTC-USD"
# Each way of laying a page out, with the theme that it is looked at in.
KINDS = ("hole", "revised", "provisional", "adjusted", "quarantined")
SIZES = ((1400, 900, "light"), (390, 844, "dark"))
PAGES = (
    "/", BTC, "/markets/mock:ETH-USD?interval=1h&range=1m", "/coverage", "/compare", "/runs",
    "/alerts", "/log", "/actions/ingest", "/actions/fill?market=mock:ETH-USD&start=2024-01-01",
    "/why?market=mock:BTC-USD&statistic=sharpe&horizon=30d",
)  # fmt: skip
AXE = Path(__file__).parent / "axe" / "axe.min.js"
QUICK = {"INGESTION_LOOKBACK_DAYS": "60", "MOCK_FAULTS": "ETH-USD:skipped_page, SPX:duplicate=1.2"}
_PRICE = """SELECT price FROM market_data.market_snapshot JOIN market_data.market USING (market_id)
    WHERE symbol = 'BTC-USD' ORDER BY observed_at DESC LIMIT 1"""
_ROI = """SELECT roi FROM market_data.market_roi_statistic JOIN market_data.market USING (market_id)
    WHERE symbol = 'BTC-USD' AND horizon = '30d' ORDER BY as_of DESC LIMIT 1"""
_MARKETS = """
    INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base, quote, venue,
        calendar, intervals, price_basis, is_primary)
    SELECT 'mock', 'x' || n, 'M' || n || '-USD', :name, 'M', 'USD', :name, '24/7', '{1d}',
        'unadjusted', true FROM generate_series(1, :count) n"""
_SUSPICION = """
    INSERT INTO market_data.market_event (market_id, kind, starts_at, ends_at, ratio, spread,
        detail, detected_at, run_id)
    SELECT market_id, 'suspected_split', now() - interval '9 days', now() - interval '8 days', 0.5,
        0, 'the close fell to half', now(), gen_random_uuid()
    FROM market_data.market WHERE symbol = 'BTC-USD'"""
# Two thousand days of one market; every hundredth day has something to note.
_DAYS = """
    INSERT INTO market_data.market_aggregate (market_id, interval, open_time, close_time, open,
        high, low, close, volume, volume_kind, source_kind, is_final, known_at, dataset_version)
    SELECT market_id, '1d', day, day + interval '1 day', 100, 110, 99, 100 + n % 7, 5, 'base',
        CASE WHEN n % 500 = 100 THEN 'rescaled' ELSE 'traded' END, n % 500 <> 200, now(), 1
    FROM market_data.market, generate_series(1, 2000) n, LATERAL (SELECT
        date_trunc('day', now(), 'UTC') - interval '3000 days' + n * interval '1 day' AS day) at
    WHERE symbol = 'MARKS-USD' AND n % 500 <> 300"""
_NOTES = """
    INSERT INTO market_data.coverage_hole (market_id, interval, starts_at, ends_at, reason, tries,
        first_seen_at, last_checked_at)
    SELECT market_id, '1d', open_time + interval '1 day', open_time + interval '2 days',
        'fetch_failed', 1, now(), now()
    FROM market_data.market_aggregate bar JOIN market_data.market USING (market_id)
    WHERE symbol = 'MARKS-USD' AND bar.interval = '1d' AND NOT EXISTS (
        SELECT FROM market_data.market_aggregate next WHERE next.market_id = bar.market_id
        AND next.interval = '1d' AND next.open_time = bar.open_time + interval '1 day')
        AND open_time < (SELECT max(open_time) FROM market_data.market_aggregate
            WHERE market_id = bar.market_id)"""
_LEDGER = """
    INSERT INTO market_data.market_coverage (market_id, interval, settled)
    SELECT market_id, '1d', tstzmultirange(tstzrange(min(open_time), max(close_time)))
    FROM market_data.market_aggregate JOIN market_data.market USING (market_id)
    WHERE symbol = 'MARKS-USD' GROUP BY market_id"""
_REVISED = """
    INSERT INTO market_data.market_aggregate_revision (market_id, interval, open_time, close_time,
        open, high, low, close, volume, volume_kind, source_kind, is_final, known_at,
        dataset_version, known_until, replaced_by_version)
    SELECT market_id, interval, open_time, close_time, open, high, low, close - 0.5, volume,
        volume_kind, source_kind, true, known_at, 0, known_at, 1
    FROM (SELECT *, row_number() OVER (ORDER BY open_time) AS n FROM market_data.market_aggregate
        JOIN market_data.market USING (market_id) WHERE symbol = 'MARKS-USD') bar
    WHERE n % 500 = 400"""
_REFUSED = """
    INSERT INTO market_data.quarantined_row (market_id, interval, open_time, rule, detail, payload,
        payload_hash, run_id, first_seen_at, last_seen_at, times_seen)
    SELECT market_id, '1d', open_time, 'low_above_body', 'low=7', '{}', n::text, gen_random_uuid(),
        now(), now(), 1
    FROM (SELECT *, row_number() OVER (ORDER BY open_time) AS n FROM market_data.market_aggregate
        JOIN market_data.market USING (market_id) WHERE symbol = 'MARKS-USD') bar
    WHERE n % 500 = 450"""
# What of an element's content lies beyond a side that does not scroll with the page.
_CUT_OFF = """() => [...document.querySelectorAll("main *")].filter((one) =>
    one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== "inline"
    && getComputedStyle(one).overflowX !== "visible" && !one.closest("[data-chart], .swagger-ui"))
    .map((one) => `${one.tagName}.${one.className}: ${one.scrollWidth} > ${one.clientWidth}`)"""
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
    """The name of a database with three markets: a hole, an impossible bar, a suspected split."""
    with make_database(server_url, template) as url:
        folder = tmp_path_factory.mktemp("ingested")
        environment = {**make_environment(url, folder), **QUICK}
        ran = run_command("market-pipeline", "ingest", environment=environment, folder=folder)
        assert ran.returncode in (0, 3), ran.stderr
        engine = create_engine(url)
        change(engine, _SUSPICION)
        engine.dispose()
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
def serve_copy(server_url: str, ingested: str, folder: Path, **settings: str) -> Iterator[Site]:
    """Serve the API over a copy of the database."""
    with make_database(server_url, ingested) as url:
        environment = {**make_environment(url, folder), "DAGSTER_UI_URL": NOWHERE, **settings}
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


def test_authorize_in_the_docs_gives_cron_its_secret(
    server_url: str, ingested: str, tmp_path: Path, page: Page
) -> None:
    """Refused before; with the secret typed in, the same click is let in."""
    secret = "a-secret-for-cron-of-a-test"  # noqa: S105
    operation = page.locator("#operations-runs-cron, [id*='cron']").first
    with serve_copy(
        server_url, ingested, tmp_path, CRON_SECRET=secret, INGEST_WAIT_SECONDS="5"
    ) as site:
        page.goto(f"{site.address}/docs")
        operation.click()
        page.get_by_role("button", name="Try it out").click()
        assert _execute(page) == 401
        page.get_by_role("button", name="Authorize", exact=True).first.click()
        asked = page.locator(".modal-ux")
        asked.locator(".auth-container", has_text="cronSecret").locator("input").fill(secret)
        asked.locator("button.authorize").last.click()
        asked.locator("button.btn-done").last.click()
        assert _execute(page) not in (401, 403)


def _execute(page: Page) -> int:
    """Click Execute, and return the status of the answer."""
    with page.expect_response("**/api/cron*") as answered:
        page.get_by_role("button", name="Execute").click()
    return answered.value.status


def change(engine: Engine, statement: str, **values: object) -> None:
    """Change rows."""
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def list_pages(site: Site) -> list[str]:
    """Return every page, also those of one alert, hole, row, event, version and run."""
    found = {
        "/alerts/": "SELECT alert_id::text FROM market_data.alert",
        "/quarantine/": "SELECT row_id::text FROM market_data.quarantined_row",
        "/events/": "SELECT event_id::text FROM market_data.market_event",
        "/versions/": "SELECT max(version)::text FROM market_data.dataset_version",
        "/runs/": "SELECT run_id::text FROM market_data.ingestion_run",
        "/hole?market=mock:ETH-USD&": """SELECT format('interval=%s&start=%s', interval,
            to_char(starts_at, 'YYYY-MM-DD"T"HH24:MI"Z"')) FROM market_data.coverage_hole""",
    }
    ones = [f"{path}{read_column(site.engine, query)[0]}" for path, query in found.items()]
    return [*PAGES, *ones, "/docs", "/sign-in"]


def test_values_are_the_databases_and_charts_are_drawn(
    site: Site, page: Page, errors: list[str]
) -> None:
    """Every page without a complaint; a price, a statistic, four panes of a chart."""
    for path in list_pages(site):
        answer = page.goto(site.address + path)
        assert answer is not None
        assert answer.status == 200, path
        page.locator("h1").first.wait_for()
    page.goto(site.address + BTC)
    price = page.locator("[data-key=price]").get_attribute("value")
    assert float(price or "nan") == read_column(site.engine, _PRICE)[0]
    roi = page.locator("#roi data").first.get_attribute("value")
    assert float(roi or "nan") in (*read_column(site.engine, _ROI), *_read_rois(site.engine))
    page.locator(".chart.drawn canvas").first.wait_for()
    assert page.locator(".chart .pane").all_inner_texts() == [
        "Price (USD)", "Volume", "Drawdown", "Volatility, 30 days",
    ]  # fmt: skip
    page.goto(site.address + "/compare")
    page.locator(".chart.drawn canvas").first.wait_for()
    box = page.locator(".chart").bounding_box()
    assert box is not None
    assert box["height"] < 400
    assert errors == []


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
def test_every_page_fits_and_is_accessible(
    site: Site, page: Page, width: int, height: int, scheme: str
) -> None:
    """Nothing is wider than the screen or hidden at a side, and axe finds nothing serious."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": height})
    found: dict[str, object] = {}
    for path in list_pages(site):
        page.goto(site.address + path)
        page.locator("h1").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate(_CUT_OFF) == [], path
        if path != "/docs":  # Swagger UI's own page; its colours are ours, its form is not.
            found[path] = find_serious(page)
    assert {path: faults for path, faults in found.items() if faults} == {}


def find_serious(page: Page) -> list[str]:
    """Return what axe calls serious or critical on a page."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    return page.evaluate("""async () => (await axe.run()).violations
        .filter((one) => ["serious", "critical"].includes(one.impact))
        .map((one) => `${one.id}: ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 160))}`)
    """)  # type: ignore[no-any-return]


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
    page.locator("input[type=search]").fill("btc")
    change(
        own_site.engine,
        """UPDATE market_data.market_snapshot SET price = 123456.75
        WHERE market_id = (SELECT market_id FROM market_data.market WHERE symbol = 'BTC-USD')""",
    )
    row = page.get_by_role("row").filter(has_text="BTC-USD")
    wait_for(
        lambda: row.locator("data").first.get_attribute("value") == "123456.75", 30, "the price"
    )
    assert page.locator("input[type=search]").input_value() == "btc"
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


def test_a_keyboard_skips_to_the_content(site: Site, page: Page, errors: list[str]) -> None:
    """The first tab stop."""
    page.goto(site.address + "/")
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


def test_a_thousand_markets_are_pages_of_a_hundred(
    own_site: Site, page: Page, errors: list[str]
) -> None:
    """The page does not grow with the list; names are found among all while one types."""
    change(own_site.engine, _MARKETS, count=1_000, name="Many")
    page.goto(own_site.address + "/")
    rows = page.locator("#markets tbody tr")
    assert rows.count() == 100
    assert "1,003" in page.locator("#markets caption").inner_text()
    page.get_by_role("link", name="11", exact=True).click()
    page.wait_for_url("**page=11**")
    assert rows.count() == 3
    page.locator("input[type=search]").press_sequentially("m777-u")
    wait_for(lambda: rows.count() == 1, 30, "the filter")
    assert page.url.endswith("?q=m777-u&sort=symbol")
    page.locator("input[type=search]").fill("-USD")
    wait_for(lambda: rows.count() == 100, 30, "the filter")
    page.get_by_role("link", name="Price").click()
    page.wait_for_url("**sort=price**")
    assert "BTC-USD" in rows.first.inner_text()
    page.get_by_role("link", name="Price").click()
    page.wait_for_url("**sort=-price**")
    assert "ETH-USD" in rows.first.inner_text()
    assert errors == []


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
def test_twenty_of_twenty_marks_are_seen_over_their_spans(
    own_site: Site, page: Page, width: int, height: int, scheme: str, errors: list[str]
) -> None:
    """Of two thousand days: holes, revised, provisional, multiplied and quarantined bars."""
    change(
        own_site.engine, _MARKETS.replace("'M' || n || '-USD'", "'MARKS-USD'"), count=1, name="M"
    )
    for statement in (_DAYS, _LEDGER, _NOTES, _REVISED, _REFUSED):
        change(own_site.engine, statement)
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": height})
    page.goto(own_site.address + "/markets/mock:MARKS-USD?range=all")
    page.locator(".mark.hole").first.wait_for(state="attached")
    page.wait_for_timeout(300)
    spec = json.loads(page.locator("#chart-data").inner_text())
    marks = {kind: page.locator(f"[data-chart] .mark.{kind}") for kind in KINDS}
    assert {kind: found.count() for kind, found in marks.items()} == dict.fromkeys(KINDS, 4)
    canvas = page.locator("#chart canvas").first.bounding_box()
    assert canvas is not None
    step = canvas["width"] / len(spec["times"])
    for mark in page.locator("[data-chart] .mark").all():
        box, text = mark.bounding_box(), mark.get_attribute("data-text")
        assert box is not None, text
        assert box["width"] >= 4, text
        kind = (mark.get_attribute("class") or "").split()[-1]
        starts = [one["start"] for one in spec["marks"] if one["kind"] == kind]
        places = [canvas["x"] + spec["times"].index(start) * step for start in starts]
        assert any(
            box["x"] <= at + 1 and at + step - 1 <= box["x"] + box["width"] <= at + step + 5
            for at in places
        ), (text, box, places)
    assert errors == []


def test_a_chart_zooms_follows_the_pointer_and_changes_its_scale(
    site: Site, page: Page, errors: list[str]
) -> None:
    """By the wheel, with OHLCV and change of the bar at the pointer, and by its ranges."""
    page.goto(site.address + BTC)
    page.locator(".chart.drawn canvas").first.wait_for()
    legend = page.locator("#chart-legend")
    last = legend.inner_text()
    assert all(word in last for word in ("O ", "H ", "L ", "C ", "V ", " %", "provisional: "))
    box = page.locator("#chart").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 100)
    wait_for(lambda: legend.inner_text() != last, 30, "the legend")
    running = page.locator("[data-chart] .mark.provisional")
    assert running.is_visible()
    page.mouse.wheel(0, -600)
    wait_for(running.is_hidden, 30, "the zoom")
    page.get_by_role("button", name="Log").click()
    assert page.locator("#chart-log").get_attribute("aria-pressed") == "true"
    page.get_by_role("link", name="1W", exact=True).click()
    page.wait_for_url("**range=1w**")
    assert len(json.loads(page.locator("#chart-data").inner_text())["times"]) <= 8
    page.get_by_role("link", name="1h", exact=True).click()
    page.wait_for_url("**interval=1h**")
    assert len(json.loads(page.locator("#chart-data").inner_text())["times"]) > 100
    assert errors == []


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
def test_every_action_is_a_click_and_shows_what_came_of_it(
    own_site: Site, page: Page, width: int, height: int, scheme: str, errors: list[str]
) -> None:
    """Acknowledge, discard and undo, replay, dismiss; each is in the log afterwards."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": height})
    page.goto(own_site.address + "/")
    page.get_by_role("button", name="Acknowledge").first.click()
    page.get_by_text("Acknowledged: no more reminders").wait_for()
    (row_id, *_) = read_column(own_site.engine, "SELECT row_id FROM market_data.quarantined_row")
    page.goto(f"{own_site.address}/quarantine/{row_id}")
    page.get_by_role("button", name="Discard").click()
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Replay").click()
    page.get_by_text(f"row {row_id} is still bad").wait_for()
    page.goto(own_site.address + "/alerts")
    page.get_by_role("link", name="Decide…").click()
    page.get_by_text("Confirming multiplies").wait_for()
    page.get_by_role("button", name="Dismiss").click()
    page.get_by_text("Dismissed: statistics go on").wait_for()
    page.goto(own_site.address + "/log")
    assert page.locator(".list li").count() == 5
    assert page.get_by_text("somebody on this machine").count() == 5
    # The refusal was a page of its own, with the status of one.
    assert [text for text in errors if "409" not in text] == []


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
def test_a_run_is_started_from_a_page_and_shown_while_it_runs(
    own_site: Site, page: Page, width: int, height: int, scheme: str, errors: list[str]
) -> None:
    """From a hole to the plan with its price, to the run, to its receipt, without a reload."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": height})
    page.goto(own_site.address + "/")
    page.get_by_role("link", name="Fill…").first.click()
    page.get_by_role("heading", name="Fill a range of mock:ETH-USD").wait_for()
    page.goto(own_site.address + "/markets/mock:BTC-USD")
    page.get_by_role("link", name="Ingest BTC-USD").click()
    page.get_by_text("Of a day's calls").first.wait_for()
    page.get_by_role("button", name="Ingest now").click()
    page.wait_for_url("**/runs/*")
    page.get_by_text("✓ ok").first.wait_for(timeout=180_000)
    page.get_by_text("1 of 1 market gave all their bars").wait_for()
    done = "SELECT action || ' ' || outcome FROM market_data.action_log"
    assert read_column(own_site.engine, done) == ["ingest started"]
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
