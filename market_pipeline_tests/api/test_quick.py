"""The quick way gives what the route gives, and only what may be served."""

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from market_pipeline.api import quick
from market_pipeline.readers.latest import fetch_latest
from market_pipeline_tests.api.conftest import MakeClient
from market_pipeline_tests.readers.writing import write_price
from market_pipeline_tests.system.processes import wait_for

PATH = "/api/markets/BTC-USD/latest"


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request was answered quickly, in order."""
    seen: list[bool] = []
    find: Callable[..., object] = quick.LatestFastPath._find_entry

    def watch(self: quick.LatestFastPath, scope: object) -> object:
        found = find(self, scope)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(quick.LatestFastPath, "_find_entry", watch)
    return seen


@pytest.fixture
def warm(stored: Engine, client: TestClient) -> TestClient:
    """A client whose market is in memory."""
    del stored
    client.get(PATH)
    return client


def test_both_ways_answer_alike(warm: TestClient, passed: list[bool]) -> None:
    """Body, status and headers, but for the age."""
    slow = warm.get(PATH, params={"format": "json"})
    fast = warm.get(PATH)
    assert passed == [True]
    assert (fast.status_code, fast.content) == (slow.status_code, slow.content)
    assert fast.headers["x-source"] == "cache"
    assert {**fast.headers, "age": ""} == {**slow.headers, "age": ""}


@pytest.mark.parametrize(
    "headers", [{"Accept": "text/csv"}, {"Accept": "application/json;q=0"}, {"If-None-Match": "*"}]
)
def test_what_is_not_plain_goes_on(
    warm: TestClient, passed: list[bool], headers: dict[str, str]
) -> None:
    """Other formats, refusals and tags are the route's."""
    answer = warm.get(PATH, headers=headers)
    assert passed == []
    assert answer.status_code in (200, 304, 406)
    assert answer.headers.get("content-type", "") != "application/json"


def test_a_change_is_seen_soon(engine: Engine, warm: TestClient, passed: list[bool]) -> None:
    """Nothing older than the database knows is given after that."""
    write_price(engine, 123_456.0)
    wait_for(lambda: warm.get(PATH).json()["snapshot"]["price"] == 123_456.0, 60.0, "the new price")
    warm.get(PATH)
    assert passed[-1]


def test_names_that_mean_nothing_or_are_malformed_are_the_routes(
    engine: Engine, warm: TestClient, passed: list[bool]
) -> None:
    """404 and 400 are told as ever."""
    assert warm.get("/api/markets/NO-USD/latest").status_code == 404
    assert warm.get("/api/markets/%20/latest").status_code == 400
    assert warm.get("/api/markets/latest").status_code == 404
    fetch_latest(None, engine, warm.app.state.services.cache)  # type: ignore[attr-defined]
    assert warm.get("/api/markets/*/latest").status_code == 400
    assert True not in passed


def test_the_gate_stands_before_it(make_client: MakeClient, stored: Engine) -> None:
    """A token is asked for, and the gate's headers are on the answer."""
    del stored
    client = make_client(token="t" * 32)
    assert client.get(PATH).status_code == 401
    bearer = {"Authorization": f"Bearer {'t' * 32}"}
    for _ in range(2):
        answer = client.get(PATH, headers=bearer)
        assert (answer.status_code, answer.headers["x-content-type-options"]) == (200, "nosniff")
