"""Further reads over HTTP: many markets, what is missing, wrong, changed, planned."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from market_pipeline.alerting.raising import acknowledge
from market_pipeline.api.launching import IngestCommand
from market_pipeline.readers import read_aggregates, read_changes
from market_pipeline_tests.alerting.test_raising import find, short
from market_pipeline_tests.ingestion.test_next_run import NOON, Pipeline
from market_pipeline_tests.readers.writing import write_price

BARS = "/api/markets/BTC-USD/aggregates"
SPAN = {"start": "2024-03-01T00:00Z", "end": "2024-03-20T00:00Z"}


def get(client: TestClient, path: str, **query: object) -> dict[str, Any]:
    """Return a JSON answer."""
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_the_latest_of_many_is_the_latest_of_each(stored: Engine, client: TestClient) -> None:
    """In one answer, of those that are named or of all active markets."""
    told = get(client, "/api/latest", symbols="ETH-USD,mock:BTC-USD")
    each = [get(client, f"/api/markets/{name}/latest") for name in ("BTC-USD", "ETH-USD")]
    assert told["data"] == each
    assert told["dataset_version"] == max(one["dataset_version"] for one in each)
    assert get(client, "/api/latest")["data"] == each
    unknown = client.get("/api/latest", params={"symbols": "BTC-USD,NO-USD,XX-USD"})
    assert unknown.status_code == 404
    assert "NO-USD, XX-USD" in unknown.json()["detail"]
    first = client.get("/api/latest")
    tag = {"If-None-Match": first.headers["etag"]}
    assert (first.headers["x-source"], client.get("/api/latest", headers=tag).status_code) == (
        "cache", 304,
    )  # fmt: skip
    write_price(stored, 61_000.0, observed_at=NOON + timedelta(minutes=1))
    client.app.state.services.cache.forget()  # type: ignore[attr-defined]
    assert client.get("/api/latest", headers=tag).status_code == 200


def test_provisional_bars_come_on_request(stored: Engine, client: TestClient) -> None:
    """Marked as such, and only of now: old provisional values are not kept."""
    del stored
    finals = get(client, BARS, **SPAN)["data"]
    assert {row.get("is_final") for row in finals} == {None}
    told = get(client, BARS, **SPAN, provisional=True)["data"]
    assert [row["is_final"] for row in told] == [True] * len(finals) + [False]
    assert [{**row, "is_final": None} for row in told[:-1]] == [
        {**row, "is_final": None} for row in finals
    ]
    pages, cursor = [], None
    while not pages or cursor:
        query = {"limit": 4, "provisional": True, **({"cursor": cursor} if cursor else {})}
        page = get(client, BARS, **SPAN, **query)
        pages, cursor = [*pages, *page["data"]], page["next_cursor"]
    assert pages == told
    refused = client.get(BARS, params={**SPAN, "provisional": True, "version": 1})
    assert (refused.status_code, "not kept" in refused.json()["detail"]) == (400, True)


def test_history_that_was_loaded_later_can_be_assumed(stored: Engine, client: TestClient) -> None:
    """As in the reader; the strict record refuses, and says how."""
    then = {**SPAN, "as_of": "2024-03-12T00:00Z"}
    refused = client.get(BARS, params=then)
    assert (refused.status_code, "basis=assumed" in refused.json()["detail"]) == (404, True)
    told = get(client, BARS, **then, basis="assumed")["data"]
    frame = read_aggregates(
        "BTC-USD", "1d", SPAN["start"], SPAN["end"], then["as_of"], basis="assumed", engine=stored
    )
    assert [row["close"] for row in told] == list(frame["close"])
    assert {row["is_assumed"] for row in told} == {True}
    whole = get(client, BARS, **{**then, "end": then["as_of"]}, basis="assumed", require="complete")
    assert whole["data"] == told
    alone = client.get(BARS, params={**SPAN, "basis": "assumed"})
    assert (alone.status_code, "as_of" in alone.json()["detail"]) == (400, True)


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_a_file_holds_the_whole_span(stored: Engine, client: TestClient, kind: str) -> None:
    """Nobody would see a cursor there; with a limit it is a page, as in JSON."""
    del stored
    wide = {"interval": "1h", "start": "2000-01-01", "end": "2024-04-01", "format": kind}
    assert len(client.get(BARS, params=wide).content) > 0
    assert "x-next-cursor" not in client.get(BARS, params=wide).headers
    assert "x-next-cursor" in client.get(BARS, params={**wide, "limit": 10}).headers


def test_holes_are_readable_by_market(engine: Engine, client: TestClient) -> None:
    """The same rows that coverage lists."""
    Pipeline(engine).run(NOON, "BTC-USD:skipped_page@2024-03-05..2024-03-06")
    told = get(client, "/api/holes", symbols="BTC-USD")["data"]
    assert told == get(client, "/api/coverage")["holes"]
    assert {row["reason"] for row in told} == {"provider_empty"}
    assert get(client, "/api/holes", provider="nobody")["data"] == []
    assert client.get("/api/holes", params={"symbols": "NO-USD"}).status_code == 404


def test_quarantined_rows_are_readable_with_what_came(engine: Engine, client: TestClient) -> None:
    """By market, rule and status; open ones unless others are asked for."""
    Pipeline(engine).run(NOON, "BTC-USD:duplicate=1.5@2024-03-05")
    told = get(client, "/api/quarantine", symbols="BTC-USD")["data"]
    row = told[0]
    assert {one["rule"] for one in told} == {"conflicting_duplicate"}
    assert (row["symbol"], row["status"], row["times_seen"]) == ("BTC-USD", "open", 1)
    assert row["payload"]["interval"] == row["interval"]
    assert get(client, "/api/quarantine", status="discarded")["data"] == []
    assert get(client, "/api/quarantine", rule=row["rule"], status="all")["data"]
    assert get(client, "/api/quarantine", rule="no_such_rule")["data"] == []
    assert client.get("/api/quarantine", params={"format": "csv"}).text.count("\r\n") > 1


def test_alerts_are_readable_with_their_state(engine: Engine, client: TestClient) -> None:
    """Open ones, or all; the state is the command's."""
    assert get(client, "/api/alerts")["data"] == []
    find(engine, short("mock:BTC-USD"))
    (row,) = get(client, "/api/alerts")["data"]
    assert row["state"] == "open"
    with engine.begin() as connection:
        acknowledge(connection, row["alert_id"], datetime.now(UTC))
    assert get(client, "/api/alerts")["data"][0]["state"] == "acknowledged"
    assert len(get(client, "/api/alerts", resolved=True)["data"]) == 1


def test_changed_bars_are_the_readers(engine: Engine, client: TestClient) -> None:
    """The first of them, and how many there are in all."""
    Pipeline(engine).run(NOON)
    newest = get(client, "/api/markets")["dataset_version"]
    told = get(client, "/api/diff", older=0, newer=newest, limit=5)
    found = read_changes(0, newest, limit=5, engine=engine)
    assert told["n_changes"] == found.total > 5
    assert [(row["changed"], row["close"]) for row in told["data"]] == [
        (row["changed"], row["close"]) for row in found.rows
    ]
    assert client.get("/api/diff", params={"older": 3, "newer": 1}).status_code == 400
    assert client.get("/api/diff", params={"older": 0, "newer": 99}).status_code == 400


def test_a_plan_has_its_price(engine: Engine, client: TestClient) -> None:
    """Calls and bars by series; what nobody serves is said; nobody is asked."""
    del engine  # Its tables are needed, not its connections.
    now = datetime.now(UTC)
    start = (now - timedelta(days=10)).date()
    told = get(client, "/api/plan", symbols="BTC-USD", start=start.isoformat())
    (price,) = told["providers"]
    assert price["calls"] == sum(row["calls"] for row in told["data"]) > 0
    assert {row["interval"] for row in told["data"]} == {"1h", "1d"}
    assert all(pd.Timestamp(row["starts_at"]).tzinfo for row in told["data"])
    assert (told["cuts"], told["unserved"]) == ([], {})
    assert get(client, "/api/runs")["data"] == []
    wrong: Mapping[str, Mapping[str, object]] = {
        "provider": {"provider": "nobody"},
        "history_to": {"end": "2024-01-01"},
        "symbol": {"symbols": "bad symbol"},
    }
    for word, query in wrong.items():
        answer = client.get("/api/plan", params=dict(query))
        assert (answer.status_code, word in answer.json()["detail"]) == (400, True), answer.text


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("ingest", {"provider": "nobody"}, "nobody"),
        ("ingest", {"lookback_days": 0}, "lookback_days"),
        ("ingest", {"window_end": "2999-01-01"}, "window_end"),
        ("ingest", {"window_end": "soon"}, "window_end"),
        ("backfill", {}, "start"),
        ("backfill", {"start": "2024-02-01", "end": "2024-01-01"}, "not before"),
        ("backfill", {"start": "2024-02-01", "symbols": ["bad symbol"]}, "malformed"),
    ],
)
def test_a_run_that_cannot_be_is_refused_at_once(
    client: TestClient, path: str, body: Mapping[str, object], word: str
) -> None:
    """And not by the run, minutes later."""
    answer = client.post(f"/api/{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert word in answer.json()["detail"]


def test_requests_with_other_options_are_other_requests() -> None:
    """They share no run; one without options has the hash that it always had."""
    plain = IngestCommand(("BTC-USD",), "manual")
    other = IngestCommand(("BTC-USD",), "manual", None, {"lookback_days": 90})
    assert plain.request_hash != other.request_hash
    assert plain.request_hash == IngestCommand(("BTC-USD",), "manual", "key", {}).request_hash
