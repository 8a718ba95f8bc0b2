"""The dashboard's pages over HTTP: what they show is what the database has, and nothing runs."""

import html
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event

from market_pipeline.storage.alerts.outbox import insert_alert
from market_pipeline.storage.ledgers import coverage_hole, market_coverage
from market_pipeline.storage.runs.claims import hold_liveness_lock
from market_pipeline.storage.tables import (
    ingestion_run,
    ingestion_run_market,
    market,
    market_roi_statistic,
    market_snapshot,
)
from market_pipeline_tests.readers.bar_history import History, make_days

HOSTILE = "<SCRIPT>ALERT(1)</SCRIPT>"
RUN_ID = UUID("7d0fe1a5-2b1c-4c0e-9f6e-1f2a3b4c5d6e")
PRICE = 51_112.4712345


@pytest.fixture
def history(engine: Engine) -> History:
    """An empty history on this test's database."""
    return History(engine)


def add_market(history: History, symbol: str = "BTC-USD") -> int:
    """Store a market with ten closes, a price, and a statistic that is NULL."""
    key = history.add_market(symbol)
    history.commit(key, make_days(range(100, 110)))
    now = datetime.now(UTC)
    snapshot = {"market_id": key, "observed_at": now, "price": PRICE, "fetched_at": now}
    statistic = {
        "market_id": key, "interval": "1d", "horizon": "30d", "as_of": now, "method": "m",
        "roi": 0.125, "annualisation_factor": 365, "n_returns": 9, "n_missing": 0,
        "reason": "sharpe: insufficient_data",
    }  # fmt: skip
    with history.engine.begin() as connection:
        connection.execute(market_snapshot.insert().values(snapshot))
        connection.execute(market_roi_statistic.insert().values(statistic))
    return key


@pytest.mark.parametrize("path", ["/", "/compare", "/runs"])
def test_an_empty_database_has_pages(client: TestClient, path: str) -> None:
    """Every page without an argument answers before anything was stored."""
    answer = client.get(path)

    assert answer.status_code == 200, answer.text
    assert "<h1>" in answer.text


def test_pages_show_what_the_database_has(client: TestClient, history: History) -> None:
    """Price and statistics are exact in the page, what is NULL has its reason and a why link."""
    add_market(history)

    assert f'value="{PRICE!r}"' in client.get("/").text
    page = client.get("/markets/mock:BTC-USD").text

    assert f'value="{PRICE!r}"' in page
    assert 'value="0.125"' in page
    assert "too few returns in this span" in page
    assert "/why?market=mock%3ABTC-USD&amp;statistic=sharpe&amp;horizon=30d" in page
    assert 'value="109.0"' in page


def test_the_sources_of_a_symbol_are_compared(client: TestClient, history: History) -> None:
    """Only where there are several: figures, the cause, and the worst day with both closes."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    first = today - timedelta(days=30)
    history.commit(history.add_market("A-USD"), make_days(range(50, 60), first))
    assert 'id="sources"' not in client.get("/markets/A-USD").text
    other = history.add_market("A-USD", "alpha", is_primary=False)
    history.commit(other, make_days(range(5_000, 6_000, 100), first))
    page = client.get("/markets/A-USD").text
    table = page.partition('id="sources"')[2].partition("</table>")[0]
    assert "the first is 0.01 times the second" in table
    assert f"{first:%Y-%m-%d}: 50.0000 and 5,000.00" in table
    assert "differ" in table
    assert "A-USD of mock and alpha differ: the first is 0.01 times the second" in (
        client.get("/").text
    )


def open_alerts(engine: Engine, *told: Mapping[str, object]) -> None:
    """Open an alert for each, raised twice."""
    now = datetime.now(UTC)
    common = {"kind": "custom", "severity": "warning", "seen_at": now, "times": 2}
    with engine.begin() as connection:
        for number, one in enumerate(told):
            raised_at = now - timedelta(minutes=number)
            row = {"fingerprint": str(number), "raised_at": raised_at, **common, **one}
            insert_alert(connection, row)


def test_pairs_that_are_not_stored_are_shown_and_told(client: TestClient, history: History) -> None:
    """The page computes them; a pair without a common day has a dash and a reason."""
    for symbol, first in (("A-USD", 100), ("B-USD", 300)):
        closes = [first + (7 * day) % 5 for day in range(40)]
        history.commit(history.add_market(symbol), make_days(closes))
    history.add_market("C-USD")
    page = client.get("/compare?horizon=30d").text
    assert "1 of 1 pairs are not stored. They were computed for this page." in page
    assert page.count('title="computed for this page"') == 4  # two maps, both ways
    assert "the two markets have no day in common" in page
    assert all(f"<option>{days}d</option>" in page for days in (7, 90, 365))


def test_days_that_are_late_are_told_whatever_the_hours(
    client: TestClient, history: History
) -> None:
    """The worst of a market's series is its state on the overview."""
    key, now = add_market(history), datetime.now(UTC)
    row = {"market_id": key, "interval": "1h", "watermark": now, "settled": "{}"}
    late = {**row, "interval": "1d", "watermark": now - timedelta(days=10)}
    with history.engine.begin() as connection:
        connection.execute(market_coverage.insert(), [row, late])
    assert "1d bars are late by" in client.get("/").text


def test_open_alerts_stand_first(client: TestClient, history: History) -> None:
    """What nobody took on, the worst first; others are on the page of alerts."""
    now = datetime.now(UTC)
    assert "Needs attention" not in client.get("/").text
    open_alerts(
        history.engine,
        {"message": "over", "severity": "critical", "cleared_at": now},
        {"message": "taken on", "severity": "critical", "acknowledged_at": now},
        {"message": HOSTILE},
        {"message": "worst", "severity": "critical", "run_id": RUN_ID},
        {"message": "resolved", "severity": "critical", "resolved_at": now},
        {"message": "over as well", "cleared_at": now},
        {"message": "note", "severity": "info"},
    )
    page = client.get("/").text
    shown = re.findall(r"Alert: (.*?)<small>", page, re.DOTALL)
    assert shown == ["worst", html.escape(HOSTILE), "note"]
    listed = client.get("/alerts").text
    assert "taken on" in listed
    assert "resolved" in listed
    (alert_id,) = re.findall(r'/alerts/([0-9a-f-]{36})">worst', listed)
    whole = client.get(f"/alerts/{alert_id}").text
    assert f"/runs/{RUN_ID}" in whole
    assert "open, and nobody has taken it on" in whole


def test_a_hostile_name_is_text(client: TestClient, history: History) -> None:
    """A symbol made of markup is escaped on every page, also in the data of charts."""
    add_market(history, HOSTILE)
    add_market(history)

    linked = re.search(r'href="(/markets/mock:%3C[^"]*)"', client.get("/").text)
    assert linked is not None
    for path in ("/", "/compare", "/runs", linked[1]):
        answer = client.get(path)
        assert answer.status_code == 200
        assert HOSTILE not in answer.text
        assert "unsafe-eval" not in answer.headers["content-security-policy"]


def test_a_former_symbol_names_the_new_one(client: TestClient, history: History) -> None:
    """On the page and in the problem that programs get."""
    key = add_market(history, "NEW-USD")
    with history.engine.begin() as connection:
        renamed = market.update().where(market.c.market_id == key)
        connection.execute(renamed.values(former_symbols=["OLD-USD"]))
    for path in ("/markets/mock:OLD-USD", "/markets/old-usd", "/api/markets/OLD-USD/aggregates"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "OLD-USD was renamed to mock:NEW-USD" in answer.text


def test_runs_lead_to_their_receipts(client: TestClient, history: History) -> None:
    """The list of runs links to a page of each, and that one into Dagster."""
    add_market(history)
    run_id = history.commits[0].run_id

    assert f"/runs/{run_id}" in client.get("/runs").text
    assert f"http://127.0.0.1:9/runs/{run_id}" in client.get(f"/runs/{run_id}").text


def add_receipt(history: History, key: int, **values: object) -> UUID:
    """Store the receipt of a run of two weeks that left a hole and came to one market of two."""
    run_id = uuid4()
    request = {
        "symbols": ["BTC-USD", "ETH-USD"], "assets": ["market_aggregates"],
        "window_start": "2024-03-01T00:00Z", "window_end": "2024-03-15T00:00Z",
    }  # fmt: skip
    run = {"trigger": "manual", "provider": "mock", "started_at": datetime.now(UTC)}
    counts = {"received": 5, "inserted": 5, "updated": 0, "unchanged": 0, "holes_left": 1}
    part = {"run_id": run_id, "market_id": key, "outcome": "partial", **counts}
    with history.engine.begin() as connection:
        told = {"run_id": run_id, "request": request, **run, **values}
        connection.execute(ingestion_run.insert().values(told))
        connection.execute(ingestion_run_market.insert().values(part))
    return run_id


def test_a_run_lists_the_holes_that_its_receipt_counts(
    client: TestClient, history: History
) -> None:
    """Those in its window that another run asked for last; not those before it."""
    key = add_market(history)
    page = f"/runs/{add_receipt(history, key)}"
    days = {"in": datetime(2024, 3, 5, tzinfo=UTC), "out": datetime(2024, 2, 5, tzinfo=UTC)}
    hole = {
        "market_id": key, "interval": "1d", "reason": "fetch_failed", "tries": 1,
        "first_seen_at": days["in"], "last_checked_at": days["in"], "run_id": uuid4(),
    }  # fmt: skip
    rows = [
        {**hole, "starts_at": day, "ends_at": day + timedelta(days=1), "detail": f"{name}side"}
        for name, day in days.items()
    ]
    with history.engine.begin() as connection:
        connection.execute(coverage_hole.insert(), rows)
    shown = client.get(page).text
    assert ("inside" in shown, "outside" in shown) == (True, False)
    with history.engine.begin() as connection:
        connection.execute(coverage_hole.delete())
    healed = client.get(page).text
    assert "Holes that the run left: 1. All of them have been filled or explained." in healed
    assert "No holes." not in healed


def test_a_market_says_that_its_own_last_run_came_short(
    client: TestClient, history: History
) -> None:
    """On its page and in the list, also when sixty runs of other markets came after it."""
    key = add_market(history)
    ended = {"outcome": "partial", "ended_at": datetime.now(UTC)}
    run_id = add_receipt(history, key, started_at=datetime(2024, 1, 1, tzinfo=UTC), **ended)
    row = {"market_id": key, "interval": "1h", "settled": "{}", "refreshed_by": run_id}
    with history.engine.begin() as connection:
        connection.execute(market_coverage.insert().values(row))
    other = history.add_market("ETH-USD")
    for _ in range(60):
        add_receipt(history, other, **ended)
    lines = client.get("/").text.partition("<tbody>")[2].split("</tr>")
    (line,) = (line for line in lines if "BTC-USD" in line)
    assert "! partial" in line
    told = client.get("/markets/BTC-USD").text.partition("Last run of this market")
    assert "! partial" in told[0]
    assert str(run_id) in told[0]


def test_a_receipt_of_many_markets_has_pages(client: TestClient, history: History) -> None:
    """The first fifty markets, those that came short before the others; the rest follow."""
    ended = {"ended_at": datetime.now(UTC), "outcome": "partial"}
    run_id = add_receipt(history, history.add_market("ZZZ-USD"), **ended)
    parts = [
        {
            "run_id": run_id, "market_id": history.add_market(f"M{at:03}-USD"), "outcome": "ok",
            "received": 1, "inserted": 1, "updated": 0, "unchanged": 0,
        }
        for at in range(120)
    ]  # fmt: skip
    with history.engine.begin() as connection:
        connection.execute(ingestion_run_market.insert(), parts)
    page = client.get(f"/runs/{run_id}").text
    assert "120 of 121 markets gave all their bars. ZZZ-USD:" in page
    table = page.partition('id="receipt"')[2].partition("</table>")[0]
    assert (table.count('scope="row"'), "ZZZ-USD" in table) == (50, True)
    last = client.get(f"/runs/{run_id}?page=3").text.partition('id="receipt"')[2]
    assert last.partition("</table>")[0].count('scope="row"') == 21


def test_a_run_without_an_end_is_shown_by_whether_it_lives(
    client: TestClient, history: History
) -> None:
    """On every page and in every answer, with the market that it did not come to."""
    run_id = add_receipt(history, add_market(history), outcome="ok")
    paths = ("/", "/runs", f"/runs/{run_id}")
    with hold_liveness_lock(history.engine, run_id):
        assert ["… running" in client.get(path).text for path in paths] == [True, True, True]
        assert client.get("/api/runs").json()["data"][0]["outcome"] == "running"
    assert ["✕ interrupted" in client.get(path).text for path in paths] == [True, True, True]
    told = client.get(f"/api/runs/{run_id}").json()
    assert told["outcome"] == "interrupted"
    assert [(row["symbol"], row["outcome"]) for row in told["markets"]] == [
        ("BTC-USD", "partial"),
        ("ETH-USD", "missing"),
    ]
    assert "1 of 2" not in client.get("/runs").text
    assert "✕ missing" in client.get(f"/runs/{run_id}").text
    metrics = client.get("/metrics").text
    assert 'ingestion_runs{outcome="interrupted",provider="mock",trigger="manual"}' in metrics


def test_the_error_of_a_failed_run_is_shown(client: TestClient, history: History) -> None:
    """On the overview, in the list and on its page."""
    now = datetime.now(UTC)
    ended = {"ended_at": now, "outcome": "failed", "error": f"markets: {HOSTILE}"}
    run_id = add_receipt(history, add_market(history), **ended)
    for path in ("/", "/runs", f"/runs/{run_id}"):
        assert html.escape(f"markets: {HOSTILE}") in client.get(path).text


def test_a_page_that_only_aged_is_not_sent_again(client: TestClient, history: History) -> None:
    """The ETag answers 304 until a value changes; a page knows its own."""
    key = add_market(history)
    first = client.get("/")
    tag = {"If-None-Match": first.headers["etag"]}
    (digest,) = re.findall(r'data-digest="(\w+)"', first.text)
    assert first.headers["etag"] == f'W/"{digest}"'
    assert client.get("/", headers=tag).status_code == 304

    now = datetime.now(UTC) + timedelta(seconds=1)
    row = {"market_id": key, "observed_at": now, "price": 7.0, "fetched_at": now}
    with history.engine.begin() as connection:
        connection.execute(market_snapshot.insert().values(row))

    assert 'value="7.0"' in client.get("/", headers=tag).text


def test_the_overview_asks_as_often_for_many_markets(client: TestClient, history: History) -> None:
    """A hundred markets more take no statement more."""
    statements: list[str] = []
    add_market(history)
    client.get("/")  # Sources are compared once for each dataset version.
    event.listen(history.engine, "after_cursor_execute", lambda *told: statements.append(told[2]))
    client.get("/")
    few = len(statements)
    statements.clear()
    for at in range(100):
        history.add_market(f"M{at}-USD")
    statements.clear()

    page = client.get("/").text

    assert "101 markets" in page
    assert len(statements) == few


def test_scripts_are_served_by_us_for_good(client: TestClient) -> None:
    """Every script and style sheet of a page is there, cacheable, and from this origin."""
    page = client.get("/").text
    assets = re.findall(r'(?:src|href)="(/assets/[^"]+)"', page)

    assert len(assets) >= 3
    for path in assets:
        answer = client.get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
