"""The gate: who may come in, from where, with how much; on every route alike."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from market_pipeline.api.configuration import read_configuration
from market_pipeline.api.security import OPEN_PATHS
from market_pipeline.domain.errors import SettingError
from market_pipeline_tests.api.conftest import MakeClient

TOKEN = "a-token-that-is-long-enough"  # noqa: S105 - the test's own
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def list_operations(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Yield the method and path of every described route."""
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            yield method.upper(), path


def test_every_route_wants_the_token(make_client: MakeClient) -> None:
    """Nothing but health is open; pages, files, the description and unknown paths neither."""
    api = make_client(token=TOKEN)
    assert isinstance(api.app, FastAPI)
    found = list(list_operations(api.app))
    unlisted = [("GET", path) for path in ("/", "/docs", "/docs/assets/swagger-ui.css", "/nothing")]
    for method, path in [*found, *unlisted, ("GET", "/openapi.json"), ("GET", "/metrics")]:
        if path in OPEN_PATHS - {"/api/cron"}:
            continue
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "a=b"}):
            answer = api.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["content-type"] == "application/problem+json"


def test_a_browser_signs_in_once(make_client: MakeClient) -> None:
    """The cookie opens what the token does; it is out of reach of scripts and other sites."""
    api = make_client(token=TOKEN)
    away = api.get("/docs", headers={"Accept": "text/html"}, follow_redirects=False)
    assert (away.status_code, away.headers["location"]) == (303, "/sign-in?next=/docs")
    form = {"token": "wrong-but-long-enough", "next": "/docs"}
    assert api.post("/sign-in", data=form).status_code == 401
    signed = api.post("/sign-in", data={**form, "token": TOKEN}, follow_redirects=False)
    assert (signed.status_code, signed.headers["location"]) == (303, "/docs")
    cookie = signed.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie
    assert api.get("/docs").status_code == 200


def test_signing_in_leads_to_no_other_site(make_client: MakeClient) -> None:
    """A link to the sign-in page cannot send anybody elsewhere."""
    api = make_client(token=TOKEN)
    for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example"):
        form = {"token": TOKEN, "next": elsewhere}
        answer = api.post("/sign-in", data=form, follow_redirects=False)
        assert answer.headers["location"] == "/"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_other_sites_cannot_start_runs(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    """What a page elsewhere can make a browser send is refused before any route."""
    assert client.post("/api/ingest", content="{}", headers=headers).status_code == status


def test_answers_carry_the_headers_of_caution(client: TestClient) -> None:
    """Refusals too."""
    for path in ("/healthz", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["API_TOKEN", "CRON_SECRET"])
def test_short_secrets_are_refused_by_name_alone(name: str) -> None:
    """Fifteen characters open no door, and are not repeated."""
    with pytest.raises(SettingError, match=f"^{name} has 15 characters") as refused:
        read_configuration({name: "x" * 15})
    assert "xxx" not in str(refused.value)


def test_other_machines_need_a_token() -> None:
    """Who listens beyond loopback has set a token, or does not start."""
    with pytest.raises(SettingError, match="API_TOKEN"):
        read_configuration({"API_HOST": "0.0.0.0"})  # noqa: S104 - what is refused
    assert read_configuration({"API_HOST": "0.0.0.0", "API_TOKEN": TOKEN}).token == TOKEN  # noqa: S104
