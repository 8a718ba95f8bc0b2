"""What is refused before Dagster is asked, and what is said when Dagster is not there."""

import re

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from market_pipeline.api.routes.ingest import choose_wait
from market_pipeline_tests.api.conftest import MakeClient
from market_pipeline_tests.databases import read_column

SECRET = "only-cron-knows-this-one"  # noqa: S105 - the test's own


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"symbols": ["B TC"]}', 400),
        ('{"symbols": ["\\u0000"]}', 400),
        ('{"symbols": ["\'; drop table market"]}', 400),
        ('{"symbols": "BTC-USD"}', 400),
        ('{"markets": ["BTC-USD"]}', 400),
        ("[" * 20_000, 400),
        ('{"symbols": [' + '"A",' * 1_000 + '"A"]}', 400),
        ('{"symbols": ["' + "A" * 70_000 + '"]}', 413),
    ],
)
def test_malformed_requests_are_problems(client: TestClient, body: str, status: int) -> None:
    """Every refusal has the one shape, and none of them is a fault."""
    answer = client.post("/api/ingest", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("key", ["", "k" * 256, "two words"])
def test_keys_are_short_and_printable(client: TestClient, key: str) -> None:
    """A key that could not be stored or compared is refused."""
    assert client.post("/api/ingest", headers={"Idempotency-Key": key}).status_code == 400


def test_s6_a_key_is_a_value_in_every_statement(client: TestClient, engine: Engine) -> None:
    """Whatever it would mean to SQL, it stands for its request alone."""
    key = "it's"
    asked = client.post("/api/ingest", headers={"Idempotency-Key": key})
    assert asked.status_code == 502
    query = "SELECT key FROM market_data.idempotency_key WHERE key LIKE 'key:%'"
    assert read_column(engine, query) == [f"key:{key}"]


@pytest.mark.owner
def test_s18_a_fault_tells_nothing_of_the_inside(client: TestClient, engine: Engine) -> None:
    """Of an error that nobody foresaw, an id is told; the words stand in the log."""
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE market_data.market RENAME COLUMN venue TO s3cret"))
    broken = client.get("/api/markets")
    assert broken.status_code == 500
    told = broken.json()
    assert told["detail"] == f"an error in the API: its log has details under {told['fault_id']}"
    assert not re.search(r"Traceback|psycopg|SELECT|venue|s3cret", broken.text)


@pytest.mark.parametrize(
    "authorization",
    [
        [],
        ["Bearer"],
        ["Bearer "],
        ["Bearer wrong-but-long-enough"],
        [SECRET],
        [f"Basic {SECRET}"],
        [f"Bearer {SECRET}x"],
        [f"Bearer {SECRET}", f"Bearer {SECRET}"],
        ["Bearer " + "x" * 20_000],
        [f"Bearer {SECRET}".replace("o", "\u00f6")],
    ],
)
def test_g6_cron_wants_its_secret(make_client: MakeClient, authorization: list[str]) -> None:
    """Everything but the secret, once, is 401; API_TOKEN opens other doors."""
    api = make_client(cron_secret=SECRET, token="t" * 32)
    headers = [(b"Authorization", value.encode("latin-1")) for value in authorization]
    answer = api.get("/api/cron", headers=headers)
    assert (answer.status_code, answer.headers["cache-control"]) == (401, "no-store")


def test_cron_takes_the_secret_in_any_case_of_the_scheme(make_client: MakeClient) -> None:
    """`bearer` is `Bearer`; what answers then is a run, which comes to nothing here."""
    api = make_client(cron_secret=SECRET)
    answer = api.get("/api/cron", headers={"Authorization": f"bearer {SECRET}"})
    assert answer.status_code == 502


def test_without_a_secret_cron_lets_nobody_in(client: TestClient) -> None:
    """An unset secret is no open door, not even for an empty one."""
    for value in ("", "Bearer ", "Bearer x"):
        assert client.get("/api/cron", headers={"Authorization": value}).status_code == 401


def test_g5_head_and_post_start_nothing(make_client: MakeClient) -> None:
    """Only GET runs; a prefetching HEAD does not."""
    api = make_client(cron_secret=SECRET)
    headers = {"Authorization": f"Bearer {SECRET}"}
    assert api.head("/api/cron", headers=headers).status_code == 405
    assert api.post("/api/cron", headers=headers).status_code == 405


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [("", 60), ("respond-async", 0), ("wait=5", 5), ("respond-async, wait=5", 0), ("wait=999", 60)],
)
def test_prefer_shortens_the_wait(prefer: str, seconds: float) -> None:
    """A client may wait less than the setting says, never more."""
    assert choose_wait(prefer, 60) == seconds
