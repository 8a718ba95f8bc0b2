"""Actions on pages: guarded, carried out as the command line does, and noted with who did them."""

import re
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from market_pipeline.domain.columns import read_frame_columns
from market_pipeline.domain.splits import Jump
from market_pipeline.domain.validation import RejectedBars
from market_pipeline.storage.alerts.outbox import insert_alert
from market_pipeline.storage.bars.events import open_suspicion
from market_pipeline.storage.bars.quarantine import record_rejected
from market_pipeline.storage.ledgers import coverage_hole
from market_pipeline_tests.api.conftest import MakeClient
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.readers.bar_history import Bar, History, build_frame, make_days
from market_pipeline_tests.system.processes import wait_for

HTML = {"Accept": "text/html"}
TOKEN = "a-token-of-the-test"  # noqa: S105 - the test's own
NOW = datetime(2024, 3, 1, tzinfo=UTC)


@pytest.fixture
def history(engine: Engine) -> History:
    """An empty history on this test's database."""
    return History(engine)


def read_form_token(client: TestClient, path: str = "/actions/ingest") -> str:
    """Return the mark that the forms of a page hold."""
    (token, *_) = re.findall(r'name="form_token" value="(\w+)"', client.get(path).text)
    return str(token)


def send(client: TestClient, action: str, **fields: object) -> tuple[int, str]:
    """Send a form as a page does; return the status and where its result is shown, or the words."""
    form = {"form_token": read_form_token(client), **fields}
    answer = client.post(f"/actions/{action}", data=form, headers=HTML, follow_redirects=False)
    return answer.status_code, answer.headers.get("location", answer.text)


def read_log(engine: Engine) -> list[object]:
    """Return who did what, and how it ended."""
    said = "actor || ' ' || action || ' ' || target || ' ' || coalesce(outcome, '')"
    return read_column(engine, f"SELECT {said} FROM market_data.action_log ORDER BY action_id")


def refuse_bar(history: History, close: float = -1.0) -> int:
    """Keep a bar out, and return the row."""
    key = history.add_market("BTC-USD")
    history.commit(key, make_days(range(100, 110)))
    bars = read_frame_columns(build_frame([Bar(NOW, close, volume=7.0)]))
    refused = RejectedBars(bars, ["price_not_positive"], ["close=-1"])
    with history.engine.begin() as connection:
        record_rejected(connection, uuid4(), key, refused, NOW)
    (row_id,) = read_column(history.engine, "SELECT row_id FROM market_data.quarantined_row")
    return int(str(row_id))


def read_status(engine: Engine) -> object:
    """Return the status of the only quarantined row."""
    (status,) = read_column(engine, "SELECT status FROM market_data.quarantined_row")
    return status


@pytest.mark.parametrize("form_token", ["", "made up", None])
def test_a_form_of_another_site_changes_nothing(
    client: TestClient, history: History, form_token: str | None
) -> None:
    """Without the mark of our own pages a form is refused, in words, and not logged."""
    row_id = refuse_bar(history)
    form = {"row_id": row_id, **({} if form_token is None else {"form_token": form_token})}
    answer = client.post("/actions/discard", data=form, headers=HTML)
    assert answer.status_code == 403
    assert "load the page again" in answer.text
    assert (read_status(history.engine), read_log(history.engine)) == ("open", [])
    mark = read_form_token(client)
    foreign = {"Origin": "https://elsewhere.example"}
    answer = client.post("/actions/discard", data={**form, "form_token": mark}, headers=foreign)
    assert answer.status_code == 403
    assert read_status(history.engine) == "open"


def test_a_stranger_and_a_get_change_nothing(make_client: MakeClient, history: History) -> None:
    """With a token an action needs it; another process with the same token knows the form."""
    row_id = refuse_bar(history)
    client, other = make_client(token=TOKEN), make_client(token=TOKEN)
    assert client.post("/actions/discard", data={"row_id": row_id}).status_code == 401
    assert client.get("/actions/discard").status_code in (401, 405)
    signed = client.post("/sign-in", data={"token": TOKEN, "name": "Ada L."})
    assert signed.status_code == 200, signed.text
    mark = read_form_token(client)
    other.cookies = client.cookies
    answer = other.post("/actions/discard", data={"row_id": row_id, "form_token": mark})
    assert answer.status_code == 200, answer.text
    assert read_log(history.engine) == [f"Ada L. discard row {row_id} done"]


def test_a_row_is_discarded_and_that_is_taken_back(client: TestClient, history: History) -> None:
    """Its page shows the values and the rule, the buttons that fit, and what was done."""
    row_id = refuse_bar(history)
    page = client.get(f"/quarantine/{row_id}").text
    assert "a price is zero or negative" in page.lower()
    assert all(f"<span>{name}</span>" in page for name in ("Open", "High", "Low", "Close"))
    assert send(client, "discard", row_id=row_id) == (303, f"/quarantine/{row_id}")
    assert read_status(history.engine) == "discarded"
    assert "Undo: open it again" in client.get(f"/quarantine/{row_id}").text
    assert send(client, "undo-discard", row_id=row_id)[0] == 303
    assert read_status(history.engine) == "open"
    status, words = send(client, "undo-discard", row_id=row_id)
    assert (status, "is not discarded" in words) == (409, True)
    who = "somebody"
    assert read_log(history.engine) == [
        f"{who} discard row {row_id} done",
        f"{who} undo discard row {row_id} done",
        f"{who} undo discard row {row_id} refused",
    ]
    assert "undo discard row" in client.get("/log").text


def test_a_row_is_replayed_or_refused_again(client: TestClient, history: History) -> None:
    """A bar that is good by today's rules is stored; one that is not says why."""
    row_id = refuse_bar(history)
    status, words = send(client, "replay", row_id=row_id)
    assert (status, "still bad" in words) == (409, True)
    good = read_frame_columns(build_frame([Bar(NOW + timedelta(days=1), 50.0)]))
    with history.engine.begin() as connection:
        key = int(str(read_column(history.engine, "SELECT market_id FROM market_data.market")[0]))
        record_rejected(connection, uuid4(), key, RejectedBars(good, ["off_grid"], ["was"]), NOW)
    assert send(client, "replay", row_id=row_id + 1)[0] == 303
    assert "Replayed: the bar is stored" in client.get(f"/quarantine/{row_id + 1}").text
    closes = read_column(
        history.engine,
        "SELECT close FROM market_data.market_aggregate WHERE open_time = '2024-03-02Z'",
    )
    assert closes == [50.0]


def test_an_alert_is_acknowledged_once(client: TestClient, history: History) -> None:
    """From the first page or its own; the second time there is nothing to take on."""
    now = datetime.now(UTC)
    row = {"fingerprint": "a", "kind": "custom", "severity": "warning", "message": "disk at 91 %"}
    with history.engine.begin() as connection:
        alert_id = insert_alert(connection, {**row, "raised_at": now, "seen_at": now, "times": 1})
    assert "disk at 91 %" in client.get("/").text
    assert send(client, "acknowledge", alert_id=alert_id) == (303, f"/alerts/{alert_id}")
    assert "Acknowledged: no more reminders" in client.get(f"/alerts/{alert_id}").text
    assert "disk at 91 %" not in client.get("/").text
    assert send(client, "acknowledge", alert_id=uuid4())[0] == 409


@pytest.mark.parametrize(("action", "closes"), [("confirm", [50.0]), ("dismiss", [100.0])])
def test_a_suspected_split_is_decided_on(
    client: TestClient, history: History, action: str, closes: list[float]
) -> None:
    """The page says what confirming would change; then it is done, and cannot be done again."""
    key = history.add_market("BTC-USD")
    history.commit(key, make_days([100.0, 50.0]))
    start = datetime(2024, 1, 2, tzinfo=UTC)
    jump = Jump(start, start + timedelta(days=1), 0.5, 0.5)
    with history.engine.begin() as connection:
        open_suspicion(connection, key, jump, uuid4())
    (event_id,) = read_column(history.engine, "SELECT event_id FROM market_data.market_event")
    assert "BTC-USD" in client.get("/").text
    page = client.get(f"/events/{event_id}").text
    assert "Confirming multiplies 1 final bar before it by 0.500000." in page
    assert send(client, action, event_id=event_id) == (303, f"/events/{event_id}")
    where = "open_time = '2024-01-01Z' AND interval = '1d'"
    first = f"SELECT close FROM market_data.market_aggregate WHERE {where}"
    assert read_column(history.engine, first) == closes
    assert send(client, action, event_id=event_id)[0] == 409


def test_a_hole_says_what_it_means_and_when_it_is_asked_for(
    client: TestClient, history: History
) -> None:
    """Its page, the price of a fill, and the overview that leads there."""
    key = history.add_market("BTC-USD")
    start, now = datetime(2024, 1, 5, tzinfo=UTC), datetime.now(UTC)
    hole = {
        "market_id": key, "interval": "1h", "reason": "fetch_failed", "tries": 1, "detail": "503",
        "first_seen_at": now, "last_checked_at": now, "next_check_at": now,
        "starts_at": start, "ends_at": start + timedelta(hours=6),
    }  # fmt: skip
    with history.engine.begin() as connection:
        connection.execute(coverage_hole.insert().values(hole))
    overview = client.get("/").text
    assert "6 h of 1h bars missing, from 2024-01-05 00:00 UTC: the request failed" in overview
    (path,) = re.findall(r'href="(/hole[^"]+)"', overview)
    page = client.get(path.replace("&amp;", "&")).text
    assert "6 h of 1h bars missing" in page
    assert "The next run asks for it again." in page
    assert re.search(r"Fill: \d+ requests?…", page)
    plan = client.get("/actions/fill?market=mock:BTC-USD&start=2024-01-05&end=2024-01-06").text
    assert "Nobody has been asked yet." in plan
    assert client.get("/hole?market=BTC-USD&interval=1h&start=2020-01-01").status_code == 404


def test_a_run_is_started_once_its_plan_was_shown(client: TestClient, history: History) -> None:
    """Its page says how it ended; a start that is refused names the reason."""
    history.add_market("BTC-USD")
    plan = client.get("/actions/ingest?market=mock:BTC-USD").text
    assert "requests, about" in plan
    status, where = send(client, "ingest", market="mock:BTC-USD")
    assert (status, where.startswith("/runs/")) == (303, True)
    assert read_log(history.engine) == ["somebody ingest mock:BTC-USD started"]
    # In this test a run's process ends at once, without a receipt.
    wait_for(lambda: "before it wrote a receipt" in client.get(where).text, 60, "its end")
    assert client.get(f"/runs/{uuid4()}").status_code == 404
    status, words = send(client, "ingest", market="mock:BTC-USD", start="tomorrow")
    assert (status, "expected an ISO 8601 time" in words) == (409, True)
    assert send(client, "ingest", market="mock:NO-USD")[0] == 404


def test_a_dataset_version_shows_all_that_it_changed(client: TestClient, history: History) -> None:
    """Every field that differs, and no other; a version without bars is none."""
    key = history.add_market("BTC-USD")
    history.commit(key, [Bar(NOW, 100.0, volume=7.0)])
    history.commit(key, [Bar(NOW, 110.0, volume=7.0)])
    page = client.get(f"/versions/{history.commits[-1].version}").text
    assert "open 100.000 → 110.000, high 101.000 → 111.000" in page
    assert "close 100.000 → 110.000" in page
    assert "volume 7" not in page
    assert client.get("/versions/999").status_code == 404


@pytest.mark.parametrize("path", ["/quarantine", "/events", "/versions"])
@pytest.mark.parametrize("number", ["0", "-1", "9" * 30])
def test_a_number_that_nothing_can_have_is_not_found_or_refused(
    make_client: MakeClient, engine: Engine, path: str, number: str
) -> None:
    """However large it is: the database is not asked for what it cannot hold."""
    del engine
    answer = make_client().get(f"{path}/{number}", headers=HTML)
    assert answer.status_code in (400, 404)
