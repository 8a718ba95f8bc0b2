"""The read side over HTTP: the database's values in every format, with age, source and version."""

import io
from collections.abc import Mapping
from datetime import timedelta
from functools import partial

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from market_pipeline.api.media import MAX_ROWS, Origin, answer_table
from market_pipeline.readers import read_aggregates, read_comparisons, read_roi_statistics
from market_pipeline_tests.ingestion.test_known_missing import fill_a_month_of_old
from market_pipeline_tests.ingestion.test_next_run import NOON, Pipeline
from market_pipeline_tests.readers.bar_history import History, make_days
from market_pipeline_tests.readers.writing import write_price
from market_pipeline_tests.system.processes import wait_for

BARS = "/api/markets/BTC-USD/aggregates"
SPAN = {"start": "2024-03-01T00:00Z", "end": "2024-03-15T00:00Z"}
ROUTES = (
    "/api/markets",
    "/api/markets/BTC-USD/latest",
    BARS,
    "/api/markets/BTC-USD/roi",
    "/api/markets/BTC-USD/comparisons",
    "/api/coverage",
    "/api/runs",
)


def get(client: TestClient, path: str, **query: object) -> Mapping[str, object]:
    """Return a JSON answer."""
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_bars_are_those_of_the_reader_page_by_page(stored: Engine, client: TestClient) -> None:
    """Whatever the page's size, the pages together are the frame."""
    expected = read_aggregates("BTC-USD", "1d", SPAN["start"], SPAN["end"], engine=stored)
    assert len(expected) > 8
    for limit in (1, 3, len(expected), 1_000):
        rows, cursor = [], None
        while True:
            query = {"limit": limit, **({"cursor": cursor} if cursor else {})}
            page = get(client, BARS, **SPAN, **query)
            rows += page["data"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert [row["close"] for row in rows] == list(expected["close"])
        assert [pd.Timestamp(row["open_time"]) for row in rows] == list(expected.index)


def test_a_cursor_goes_on_in_its_own_version(stored: Engine, client: TestClient) -> None:
    """What is corrected between two pages does not show in the second."""
    first = get(client, BARS, **SPAN, limit=3)
    before = read_aggregates("BTC-USD", "1d", SPAN["start"], SPAN["end"], engine=stored)
    with stored.begin() as connection:
        connection.execute(
            text("""UPDATE market_data.market_aggregate SET close = close * 1.01, high = high * 1.02
                WHERE interval = '1d' AND open_time >= '2024-03-10T00:00Z'""")
        )
    Pipeline(stored).run(NOON + timedelta(hours=1))  # reads them again, and restores them
    second = get(client, BARS, **SPAN, limit=1_000, cursor=first["next_cursor"])
    assert second["dataset_version"] == first["dataset_version"]
    assert len(second["data"]) == len(before) - 3


@pytest.mark.parametrize("path", ROUTES)
def test_every_table_comes_in_every_format_with_its_headers(
    stored: Engine, client: TestClient, path: str
) -> None:
    """By name or by Accept; the same rows in each."""
    del stored
    query = SPAN if path == BARS else {}
    data = get(client, path, **query)
    count = len(data["data"]) if "data" in data else 1
    for kind, media_type in (
        ("csv", "text/csv"),
        ("parquet", "application/vnd.apache.parquet"),
        ("arrow", "application/vnd.apache.arrow.stream"),
    ):
        named = client.get(path, params={**query, "format": kind})
        accepted = client.get(path, params=query, headers={"Accept": f"{media_type}, */*;q=0.1"})
        assert named.content == accepted.content
        assert named.headers["content-type"].startswith(media_type)
        assert count_rows(kind, named.content) == count
        assert named.headers["content-length"] == str(len(named.content))
        assert named.headers["x-source"] in {"cache", "database"}
        assert named.headers["x-dataset-version"].isdigit()
        assert named.headers["age"].isdigit()


def test_what_is_longer_than_a_page_is_streamed() -> None:
    """A page is not: its length is told."""
    for rows, is_told in ((MAX_ROWS, True), (MAX_ROWS + 1, False)):
        answer = answer_table("csv", pd.DataFrame({"n": range(rows)}), Origin(), "rows")
        assert ("content-length" in answer.headers) == is_told


def count_rows(kind: str, content: bytes) -> int:
    """Return how many rows a body has."""
    if kind == "csv":
        return len(pd.read_csv(io.BytesIO(content)))
    if kind == "parquet":
        return int(pq.read_table(io.BytesIO(content)).num_rows)
    return int(pa.ipc.open_stream(content).read_all().num_rows)


def test_a_tag_answers_until_the_data_changes(stored: Engine, client: TestClient) -> None:
    """304 without a body while nothing changed; the whole answer after a commit."""
    for path in (BARS, "/api/markets/BTC-USD/latest", "/api/markets/BTC-USD/roi"):
        first = client.get(path)
        tag = {"If-None-Match": first.headers["etag"]}
        again = client.get(path, headers=tag)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        write_price(stored, 61_000.0 + len(path), observed_at=NOON + timedelta(minutes=len(path)))
        # What is in memory hears of a commit within a second, not before it has returned.
        wait_for(partial(is_sent, client, path, tag), 60.0, f"the new {path}")
        assert client.get(path, headers=tag).headers["etag"] != first.headers["etag"]


def test_a_pair_that_no_run_stored_is_computed(stored: Engine, client: TestClient) -> None:
    """The answer is the reader's and says so; it has no tag, for it is of two markets."""
    answer = client.get("/api/markets/ETH-USD/comparisons", params={"horizon": "7d"})
    (row,) = answer.json()["data"]
    expected = read_comparisons("ETH-USD", horizon="7d", engine=stored)
    assert (row["base_symbol"], row["quote_symbol"]) == ("BTC-USD", "ETH-USD")
    assert row["correlation"] == expected["correlation"].iloc[0]
    assert (row["is_stored"], row["is_outdated"], row["reason"]) == (False, False, None)
    assert row["method"] == "simple;skew=21600;min=0.8/5"
    assert answer.json()["pairs_left_out"] == 0
    assert "etag" not in answer.headers
    assert client.get("/api/markets/BTC-USD/roi").json()["data"][0]["is_outdated"] is False


def is_sent(client: TestClient, path: str, headers: Mapping[str, str]) -> bool:
    """Tell whether the whole answer comes, and not 304."""
    return client.get(path, headers=headers).status_code == 200


def test_the_latest_values_name_their_source(stored: Engine, client: TestClient) -> None:
    """The second reader is served from the cache, with the price that the database has."""
    del stored
    path = "/api/markets/BTC-USD/latest"
    first, second = client.get(path), client.get(path)
    assert first.json() == second.json()
    assert first.json()["snapshot"]["price"] == 60_000.0
    assert first.json()["provider"] == "mock"


def test_statistics_and_comparisons_are_the_readers(stored: Engine, client: TestClient) -> None:
    """Null has a reason; the provider is named."""
    roi = read_roi_statistics("BTC-USD", engine=stored)
    rows = get(client, "/api/markets/mock:BTC-USD/roi")["data"]
    assert [row["sharpe"] for row in rows] == [
        None if pd.isna(value) else value for value in roi["sharpe"]
    ]
    assert all(row["sharpe"] is not None or row["reason"] for row in rows)
    compared = get(client, "/api/markets/BTC-USD/comparisons", provider="mock")
    assert len(compared["data"]) == len(read_comparisons("BTC-USD", engine=stored))


def test_why_traces_a_statistic(stored: Engine, client: TestClient) -> None:
    """The command's answer as JSON."""
    del stored
    told = get(client, "/api/markets/BTC-USD/why", statistic="roi", horizon="7d")
    assert (told["symbol"], told["statistic"]) == ("BTC-USD", "roi")
    assert told["value"] == told["recomputed"]
    assert told["runs"]


def test_runs_and_coverage_tell_what_was_done(stored: Engine, client: TestClient) -> None:
    """A run's page has its markets; coverage has one row a market and interval."""
    del stored
    runs = get(client, "/api/runs", limit=2)["data"]
    assert len(runs) == 2
    receipt = get(client, f"/api/runs/{runs[-1]['run_id']}")
    assert receipt["link"].endswith(f"/runs/{runs[-1]['run_id']}")
    assert get(client, "/api/coverage", symbols="ETH-USD")["data"]
    assert get(client, "/api/coverage", provider="nobody")["data"] == []


def test_sources_of_a_symbol_are_compared(stored: Engine, client: TestClient) -> None:
    """Figures and the bars that differ most, with both closes; one source is compared with none."""
    assert get(client, "/api/agreement", symbol="BTC-USD") == {"data": []}
    history = History(stored)
    key = history.add_market("BTC-USD", "alpha", is_primary=False)
    bars = read_aggregates("BTC-USD", "1d", SPAN["start"], SPAN["end"], engine=stored)
    history.commit(key, make_days(bars["close"] * 100, first=bars.index[0].to_pydatetime()))
    (pair,) = get(client, "/api/agreement", symbol="BTC-USD", **SPAN)["data"]
    found = pair["agreement"]
    assert (pair["provider"], pair["other_provider"], found["bars"]) == ("mock", "alpha", len(bars))
    assert (found["verdict"], found["missing"]) == ("differ", 0)
    assert "another unit" in found["hint"]
    assert found["worst"][0]["difference_bp"] == pytest.approx(990_000)


@pytest.mark.parametrize(
    ("path", "query", "status", "words"),
    [
        ("/api/markets/NO-USD/latest", {}, 404, "NO-USD"),
        ("/api/markets/BTC-USD/latest", {"provider": "yahoo"}, 404, "YAHOO:BTC-USD"),
        (BARS, {"interval": "2d"}, 400, "interval"),
        (BARS, {"limit": 0}, 400, "limit"),
        (BARS, {"limit": 1_000_000}, 400, "limit"),
        (BARS, {"cursor": "nonsense"}, 400, "cursor"),
        (BARS, {"start": "2024-03-02", "end": "2024-03-01"}, 400, "after"),
        (BARS, {"start": "1800-01-01", "end": "2024-03-01"}, 400, "days apart"),
        (BARS, {"version": 9_999}, 400, "9999"),
        (BARS, {"version": 1, "as_of": "2024-03-01"}, 400, "exclude"),
        (BARS, {"as_of": "2999-01-01"}, 400, "future"),
        (BARS, {"format": "xml"}, 400, "format"),
        ("/api/markets/BTC-USD/why", {"statistic": "luck"}, 400, "luck"),
        ("/api/markets/BTC-USD/roi", {"horizon": "soon"}, 400, "horizon"),
        ("/api/runs/nonsense", {}, 400, "run_id"),
        ("/api/runs/00000000-0000-0000-0000-000000000000", {}, 404, "receipt"),
        ("/api/agreement", {}, 400, "symbol"),
        ("/api/agreement", {"symbol": "NO-USD"}, 404, "NO-USD"),
        ("/api/nothing", {}, 404, "docs"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_that_says_why(
    stored: Engine,
    client: TestClient,
    path: str,
    query: Mapping[str, object],
    status: int,
    words: str,
) -> None:
    """One shape on every route."""
    del stored
    answer = client.get(path, params=dict(query))
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert words in problem["detail"] + str(problem.get("errors", ""))


def test_nothing_acceptable_is_406(stored: Engine, client: TestClient) -> None:
    """What can be had is listed."""
    del stored
    answer = client.get("/api/markets", headers={"Accept": "image/png"})
    assert answer.status_code == 406
    assert "text/csv" in answer.json()["detail"]


def test_no_exported_text_is_a_formula(stored: Engine, client: TestClient) -> None:
    """A name that begins like one is quoted; numbers stay numbers."""
    with stored.begin() as connection:
        connection.execute(text("UPDATE market_data.market SET name = '=HYPERLINK(\"x\")'"))
    table = pd.read_csv(io.BytesIO(client.get("/api/markets?format=csv").content))
    assert set(table["name"]) == {'\'=HYPERLINK("x")'}
    correlations = client.get("/api/markets/BTC-USD/roi?format=csv").text
    assert "'-" not in correlations


def test_complete_history_can_be_demanded(engine: Engine, client: TestClient) -> None:
    """A refusal is a problem that lists what is missing and what brings it; else rows as ever."""
    Pipeline(engine).run(NOON, "BTC-USD:skipped_page@2024-03-05..2024-03-06")
    whole = {"start": "2024-03-08T00:00Z", "end": "2024-03-15T00:00Z"}
    assert get(client, BARS, **whole, require="complete") == get(client, BARS, **whole)
    early = {**SPAN, "start": "2024-02-20T00:00Z"}
    refused = client.get(BARS, params={**early, "require": "explained"})
    assert refused.status_code == 409
    assert refused.headers["content-type"] == "application/problem+json"
    problem = refused.json()
    assert {gap["reason"] for gap in problem["missing"]} == {"never_asked", "provider_empty"}
    (command,) = problem["commands"]
    assert command.startswith("market-pipeline backfill --from 2024-02-20")
    assert command in problem["detail"]
    tagged = client.get(BARS, params=SPAN).headers["etag"]
    again = client.get(
        BARS, params={**SPAN, "require": "complete"}, headers={"If-None-Match": tagged}
    )
    assert again.status_code == 409
    assert client.get(BARS, params={**SPAN, "require": "all"}).status_code == 400
    beyond = {**whole, "require": "complete", "version": 999}
    assert client.get(BARS, params=beyond).status_code == 400


def test_statistics_can_be_demanded_of_complete_history_alone(
    stored: Engine, client: TestClient
) -> None:
    """Ten days hold the bars of a week, and not those of thirty days."""
    del stored
    roi = "/api/markets/BTC-USD/roi"
    assert len(get(client, roi, horizon="7d", require="complete")["data"]) == 1
    refused = client.get(roi, params={"horizon": "30d", "require": "complete"})
    assert (refused.status_code, refused.json()["missing"][0]["reason"]) == (409, "never_asked")


def test_coverage_tells_what_was_never_asked_for(engine: Engine, client: TestClient) -> None:
    """Beside the holes, and counted by series."""
    fill_a_month_of_old(Pipeline(engine), 90)
    told = get(client, "/api/coverage", symbols="BTC-USD")
    assert {row["n_never_asked"] for row in told["data"]} == {1}
    assert {(gap["interval"], gap["bars"] > 0) for gap in told["never_asked"]} == {
        ("1h", True), ("1d", True),
    }  # fmt: skip
    assert get(client, "/api/coverage", provider="nobody")["never_asked"] == []


@pytest.mark.parametrize("name", ["start", "end", "as_of"])
@pytest.mark.parametrize("path", ["aggregates", "roi", "comparisons"])
@pytest.mark.parametrize(
    "moment",
    ["0001-01-01", "0001-01-01T00:00+14:00", "1699-12-31", "9999-12-31T23:59-14:00"],
)
def test_a_time_that_no_bar_can_have_is_a_problem(
    client: TestClient, stored: Engine, path: str, name: str, moment: str
) -> None:
    """Sums of times and spans would overflow; it is said which years there are."""
    assert stored
    query = {"start": "2024-03-01", "end": "2024-03-15"} if name != "as_of" else {}
    answer = client.get(f"/api/markets/BTC-USD/{path}", params={**query, name: moment})
    assert answer.status_code == 400, answer.text
    assert name in answer.json()["detail"]
    assert "expected a time in the years 1700 to 9000" in answer.json()["detail"]


@pytest.mark.parametrize("interval", ["1h", "1d", "1w"])
@pytest.mark.parametrize("end", ["0001-01-01", "1700-01-01", "8999-12-31T23:59"])
def test_an_end_alone_never_overflows(
    client: TestClient, stored: Engine, interval: str, end: str
) -> None:
    """Without a start the span before it is looked at."""
    assert stored
    query = {"interval": interval, "end": end}
    answer = client.get("/api/markets/BTC-USD/aggregates", params=query)
    assert answer.status_code in {200, 400}, answer.text
