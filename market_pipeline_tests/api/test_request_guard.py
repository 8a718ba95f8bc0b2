"""The gate: who may come in, from where, with how much; on every route alike."""

import asyncio
import hmac
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Message

from market_pipeline.api.configuration import Configuration, read_configuration
from market_pipeline.api.credentials import (
    COOKIE,
    MOST_ADDRESSES,
    WrongSignIns,
    build_session,
    holds_bearer,
    holds_session,
    is_token,
)
from market_pipeline.api.security import MAX_BODY_BYTES, OPEN_PATHS, RequestGuard
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


@pytest.mark.parametrize("second", ["127.0.0.1", "evil.example"])
def test_two_hosts_are_refused(client: TestClient, second: str) -> None:
    """A proxy may go by one and the API by the other; where any name is taken as well."""
    headers = [(b"Host", b"127.0.0.1"), (b"Host", second.encode())]
    answer = client.get("/healthz", headers=headers)
    assert (answer.status_code, answer.json()["title"]) == (400, "Bad Request")


def test_a_body_that_never_came_reaches_no_route() -> None:
    """Who hangs up in the middle of a request has started nothing."""
    reached: list[object] = []

    async def app(*arguments: object) -> None:
        reached.append(arguments)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        del message

    headers = [(b"host", b"127.0.0.1"), (b"content-length", b"10")]
    headers.append((b"content-type", b"application/json"))
    scope = {"type": "http", "method": "POST", "path": "/api/ingest", "headers": headers}
    asyncio.run(RequestGuard(app, Configuration())(scope, receive, send))
    assert reached == []


def test_a_body_of_untold_length_is_refused_once_it_is_too_large(client: TestClient) -> None:
    """What is sent in parts has no Content-Length, and is counted as it comes."""
    headers = {"Content-Type": "application/json"}
    parts = iter([b" " * (MAX_BODY_BYTES - 1), b"{", b"}"])
    assert client.post("/api/ingest", content=parts, headers=headers).status_code == 413


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


def sign_in(api: TestClient, token: str, **headers: str) -> httpx.Response:
    """Send the form of the sign-in page."""
    return api.post("/sign-in", data={"token": token}, headers=headers, follow_redirects=False)


@pytest.mark.parametrize(
    ("headers", "is_secure"),
    [
        ({}, False),
        ({"Origin": "http://127.0.0.1"}, False),
        ({"Origin": "https://127.0.0.1"}, True),
        ({"X-Forwarded-Proto": "https"}, True),
        ({"X-Forwarded-Proto": "https, http"}, True),
        ({"X-Forwarded-Proto": "http"}, False),
    ],
)
def test_behind_tls_the_cookie_is_sent_by_tls_only(
    make_client: MakeClient, headers: dict[str, str], is_secure: bool
) -> None:
    """The proxy or the browser says how the page was reached."""
    signed = sign_in(make_client(token=TOKEN), TOKEN, **headers)
    assert ("; secure" in signed.headers["set-cookie"].lower()) == is_secure


def test_two_hundred_wrong_sign_ins_are_slowed_down(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few the answer is 429 and says when to try again; bearers and cookies still count."""
    api = make_client(token=TOKEN)
    wrong: WrongSignIns = api.app.state.services.wrong_sign_ins  # type: ignore[attr-defined]
    monkeypatch.setattr(wrong, "_clock", lambda: 1_000.0)  # However long they take.
    assert sign_in(api, TOKEN).status_code == 303
    statuses = [
        sign_in(api, f"wrong-but-long-enough-{number}").status_code for number in range(200)
    ]
    assert statuses[0] == 401
    assert statuses.count(401) < 20
    assert set(statuses) == {401, 429}
    refused = sign_in(api, TOKEN)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "Try again in" in refused.text
    assert api.get("/docs").status_code == 200
    api.cookies.clear()
    assert api.get("/docs", headers=BEARER).status_code == 200


def test_a_right_token_waits_no_longer_than_it_is_told() -> None:
    """However many wrong ones came before, of whom none counts while it is refused."""
    now = 1_000.0
    wrong = WrongSignIns(lambda: now)
    for _ in range(200):
        if not wrong.compute_wait("10.0.0.1"):
            wrong.note("10.0.0.1")
    seconds = wrong.compute_wait("10.0.0.1")
    assert 1 <= seconds <= 60
    now += seconds
    assert wrong.compute_wait("10.0.0.1") == 0
    assert wrong.compute_wait("10.0.0.2") == 0


def test_addresses_do_not_fill_the_memory() -> None:
    """The oldest is forgotten; an IPv6 network counts as one address."""
    wrong = WrongSignIns(lambda: 1_000.0)
    for number in range(2 * MOST_ADDRESSES):
        wrong.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(wrong) == MOST_ADDRESSES
    wrong = WrongSignIns(lambda: 1_000.0)
    for number in range(100):
        wrong.note(f"2001:db8::{number:x}")
    assert len(wrong) == 1


@pytest.mark.parametrize(
    "check",
    [
        lambda: holds_bearer([(b"authorization", BEARER["Authorization"].encode())], TOKEN),
        lambda: is_token(TOKEN, TOKEN),
        lambda: holds_session(
            [(b"cookie", f"{COOKIE}={build_session(TOKEN, time.time())}".encode())], TOKEN
        ),
    ],
)
def test_secrets_are_compared_in_constant_time(
    check: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lets somebody in is the answer of compare_digest, and nothing else."""
    assert check()
    monkeypatch.setattr(hmac, "compare_digest", lambda *_: False)
    assert not check()
