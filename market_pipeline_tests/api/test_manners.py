"""What clients expect of an HTTP API: HEAD, gzip, CORS, plain errors, one spelling."""

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from market_pipeline.api.configuration import read_configuration
from market_pipeline.domain.errors import SettingError
from market_pipeline_tests.api.conftest import MakeClient

HOURS = "/api/markets/BTC-USD/aggregates?interval=1h&start=2024-02-01&end=2024-04-01"
DAYS = "/api/markets/BTC-USD/aggregates?start=2024-02-01&end=2024-04-01"
SITE = "https://charts.example.com"
READS = (
    "/api/markets",
    "/api/markets/BTC-USD/latest",
    "/api/markets/BTC-USD/latest?format=json",
    DAYS,
    "/api/markets/BTC-USD/roi",
    "/api/markets/BTC-USD/comparisons",
    "/api/markets/BTC-USD/why",
    "/api/agreement?symbol=BTC-USD",
    "/api/coverage",
    "/api/runs",
    "/api/metrics",
)


def test_an_unknown_parameter_is_refused_by_name(stored: Engine, client: TestClient) -> None:
    """On every described route; a misspelled one would silently not count."""
    del stored
    assert isinstance(client.app, FastAPI)
    for path, operations in client.app.openapi()["paths"].items():
        if path in {"/healthz", "/readyz"}:
            continue
        for method in operations:
            asked = path.format(symbol="BTC-USD", run_id=uuid4())
            answer = client.request(method, asked, params={"intreval": "1h"})
            assert (answer.status_code, path) == (400, path)
            assert "unknown parameter intreval: this path takes" in answer.json()["detail"]
    assert "limit" in client.get(DAYS + "&lmit=3").json()["detail"]


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        (DAYS + "&limit=0", "limit=0: expected at least 1"),
        (DAYS + "&limit=x", "limit=x: expected a whole number"),
        ("/api/markets/BTC-USD/roi?horizon=soon", "horizon=soon: expected days, such as 30d"),
        (DAYS + "&as_of=soon", "as_of=soon: expected an ISO 8601 time"),
        ("/api/runs/nonsense", "run_id=nonsense: expected the id of a run"),
        ("/api/agreement", "symbol: this is needed, and was not sent"),
        (
            "/api/markets/BTC-USD/roi?start=2024-03-02&end=2024-03-01",
            "start=2024-03-02T00:00:00Z is after end=2024-03-01T00:00:00Z",
        ),
        (DAYS + "&require=complete", "require=complete is not met"),
    ],
)
def test_a_refusal_is_in_the_words_of_http(
    stored: Engine, client: TestClient, path: str, detail: str
) -> None:
    """Without Python's or Pydantic's words for it."""
    del stored
    told = client.get(path).json()["detail"]
    assert told.startswith(detail)
    assert not re.search(r"datetime\.|Input should|pattern|'\w+'=|=\'", told)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("{", "body: this is not JSON"),
        ('{"symbols": "s3cret"}', "symbols: expected a list"),
        ('{"foo": 1}', "foo: there is no such field"),
        ("[1]", "body: expected an object of JSON"),
    ],
)
def test_a_wrong_body_is_told_without_its_values(
    client: TestClient, body: str, detail: str
) -> None:
    """They might be secrets."""
    sent = {"content": body, "headers": {"Content-Type": "application/json"}}
    assert client.post("/api/ingest", **sent).json()["detail"] == detail  # type: ignore[arg-type]


@pytest.mark.parametrize("path", READS)
def test_times_end_with_z(stored: Engine, client: TestClient, path: str) -> None:
    """One spelling everywhere, from every source of JSON."""
    del stored
    answer = client.get(path)
    times = re.findall(r'"(\d{4}-\d\d-\d\dT[^"]*)"', answer.text)
    assert times or path in {"/api/markets", "/api/agreement?symbol=BTC-USD"}
    assert [time for time in times if not re.fullmatch(r"[-\d]+T[\d:.]+Z", time)] == []


def list_numbers(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every number of an answer under its name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from list_numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from list_numbers(inner, name)
    elif isinstance(value, int | float):
        yield name, value


def test_counts_are_integers_beside_markets_that_no_run_reached(
    stored: Engine, client: TestClient
) -> None:
    """A null in the column makes no floating-point number of the others."""
    run_id = client.get("/api/runs").json()["data"][0]["run_id"]
    with stored.begin() as connection:
        connection.execute(
            text("""UPDATE market_data.ingestion_run
                SET request = request || '{"symbols": ["NO-USD"], "unserved": {"NO-USD": "nobody"}}'
                WHERE run_id = :run_id"""),
            {"run_id": run_id},
        )
    receipt = client.get(f"/api/runs/{run_id}").json()
    assert [part["requested"] for part in receipt["markets"]][-1] is None
    numbers = [*list_numbers(receipt), *list_numbers(client.get("/api/coverage").json())]
    assert [name for name, number in numbers if isinstance(number, float)] == ["seconds"]
    counters = [
        figure for figure in client.get("/api/metrics").json() if figure["type"] == "counter"
    ]
    assert {type(figure["value"]) for figure in counters} == {int}


def test_holes_are_a_list_and_their_count_has_a_name_of_its_own(
    stored: Engine, client: TestClient
) -> None:
    """A name means one thing."""
    del stored
    told = client.get("/api/coverage").json()
    assert isinstance(told["holes"], list)
    assert "holes" not in told["data"][0]
    assert (told["data"][0]["n_holes"], told["data"][0]["n_never_asked"]) == (0, 0)


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/nothing", *READS[:4]])
def test_head_gives_the_headers_of_get(stored: Engine, client: TestClient, path: str) -> None:
    """And no body; a copied address can be checked before it is loaded."""
    del stored
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    told = set(got.headers) - {"age", "x-source"}
    assert {name: head.headers.get(name) for name in told if name != "content-length"} == {
        name: got.headers[name] for name in told if name != "content-length"
    }
    assert head.headers["content-length"].isdigit()


def test_head_starts_no_run(client: TestClient) -> None:
    """GET of cron does; link checkers must not."""
    assert client.head("/api/cron").status_code == 405


def test_head_is_counted_by_its_route(stored: Engine, client: TestClient) -> None:
    """As its own method."""
    del stored
    client.head("/api/markets")
    labels = [
        figure["labels"]
        for figure in client.get("/api/metrics").json()
        if figure["name"] == "http_requests_total"
    ]
    assert {"method": "HEAD", "route": "/api/markets", "status": "200"} in labels


def test_long_answers_are_compressed_under_the_same_tag(stored: Engine, client: TestClient) -> None:
    """For those who accept it; a tag from either form is answered with 304 in both."""
    del stored
    plain = client.get(HOURS, headers={"Accept-Encoding": "identity"})
    packed = client.send(client.build_request("GET", HOURS, headers={"Accept-Encoding": "gzip"}))
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json() == plain.json()
    assert int(packed.headers["content-length"]) * 5 < len(plain.content)
    assert packed.headers["etag"] == plain.headers["etag"]
    assert "Accept-Encoding" in packed.headers["vary"]
    for coding in ("gzip", "identity"):
        asked = {"Accept-Encoding": coding, "If-None-Match": packed.headers["etag"]}
        assert client.get(HOURS, headers=asked).status_code == 304


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_what_is_compressed_already_is_sent_as_it_is(
    stored: Engine, client: TestClient, kind: str
) -> None:
    """A second time would only cost time."""
    del stored
    answer = client.get(f"{HOURS}&format={kind}")
    assert len(answer.content) > 4_096
    assert "content-encoding" not in answer.headers


def test_pages_of_a_named_site_may_ask(stored: Engine, make_client: MakeClient) -> None:
    """With the token; others may not, and no setting means no site."""
    del stored
    api = make_client(token="t" * 32, cors_origins=frozenset({SITE}))
    asks = {
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "Authorization",
    }
    allowed = api.options("/api/markets", headers={"Origin": SITE, **asks})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, SITE)
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    bearer = {"Authorization": f"Bearer {'t' * 32}", "Origin": SITE, "Sec-Fetch-Site": "cross-site"}
    told = api.get("/api/markets", headers=bearer)
    assert told.headers["access-control-allow-origin"] == SITE
    assert "etag" in told.headers["access-control-expose-headers"].lower()
    assert "access-control-allow-credentials" not in told.headers
    assert api.post("/api/ingest", json={"foo": 1}, headers=bearer).status_code == 400
    assert api.get("/api/markets", headers={"Origin": SITE}).status_code == 401
    other = {**bearer, "Origin": "https://evil.example"}
    assert "access-control-allow-origin" not in api.get("/api/markets", headers=other).headers
    assert api.post("/api/ingest", json={"foo": 1}, headers=other).status_code == 403
    closed = make_client().options("/api/markets", headers={"Origin": SITE, **asks})
    assert "access-control-allow-origin" not in closed.headers


@pytest.mark.parametrize("value", ["*", "charts.example.com", "https://a.example/page", "ftp://a"])
def test_a_site_is_named_as_browsers_do(value: str) -> None:
    """Everybody's pages are never let in."""
    with pytest.raises(SettingError, match=r"API_CORS_ORIGINS: .* is no site"):
        read_configuration({"API_CORS_ORIGINS": value})
    found = read_configuration({"API_CORS_ORIGINS": "https://A.example, http://127.0.0.1:8080"})
    assert found.cors_origins == {"https://a.example", "http://127.0.0.1:8080"}


def test_a_packed_body_is_plain_gzip(stored: Engine, client: TestClient) -> None:
    """What any client unpacks."""
    del stored
    with client.stream("GET", HOURS, headers={"Accept-Encoding": "gzip"}) as answer:
        assert json.loads(gzip.decompress(b"".join(answer.iter_raw())))["symbol"] == "BTC-USD"
