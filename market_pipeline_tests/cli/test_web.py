"""Dagster's webserver as ``make web`` starts it: no other site's page can make it do anything."""

import base64
import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from market_pipeline.api.configuration import read_webserver_hosts
from market_pipeline_tests.commands import ROOT, SCRIPTS
from market_pipeline_tests.conftest import make_database, make_environment
from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.system.dagster_ui import DagsterUI
from market_pipeline_tests.system.processes import run_in_background, wait_for

START_SECONDS = 300.0
# A mutation that needs nothing, and does nothing that matters.
MUTATION = "mutation { setNuxSeen }"
FOREIGN = {"Origin": "http://evil.example"}


@pytest.fixture(scope="module")
def ui(
    server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DagsterUI]:
    """A running webserver of ``market-pipeline web``, with options of Dagster's own command."""
    folder = tmp_path_factory.mktemp("web")
    port = choose_port()
    command = [str(SCRIPTS / "market-pipeline"), "web", "-h", "127.0.0.1", "-p", str(port)]
    command += ["-w", str(ROOT / "workspace.yaml"), "--path-prefix", "/dagster"]
    with make_database(server_url, template) as url:
        environment = {**make_environment(url, folder), "STATE_DIR": str(folder / "state")}
        with run_in_background(command, environment, folder) as services:
            ui = DagsterUI(f"http://127.0.0.1:{port}/dagster", services)
            wait_for(ui.is_ready, START_SECONDS, "Dagster's webserver", services)
            yield ui


def ask(ui: DagsterUI, method: str, path: str = "/graphql", **options: object) -> httpx.Response:
    """Return the answer to a request."""
    return httpx.request(method, f"{ui.address}{path}", timeout=30, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("headers", [{}, FOREIGN, {"Origin": "null"}])
def test_an_address_starts_nothing(ui: DagsterUI, headers: dict[str, str]) -> None:
    """A mutation by GET, and by a form whose address has it, whoever sends it."""
    by_get = ask(ui, "GET", params={"query": MUTATION}, headers=headers)
    form = ask(ui, "POST", params={"query": MUTATION}, data={"a": "b"}, headers=headers)
    assert by_get.status_code in (403, 405)
    assert form.status_code in (403, 415)
    assert "setNuxSeen" not in by_get.text + form.text


@pytest.mark.parametrize(
    "kind", ["text/plain", "text/plain;application/json", "application/graphql"]
)
def test_what_a_page_may_send_unasked_is_refused(ui: DagsterUI, kind: str) -> None:
    """The webserver itself takes JSON under a type that merely mentions it."""
    body = json.dumps({"query": MUTATION})
    answer = ask(ui, "POST", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (FOREIGN, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 421),
    ],
)
def test_other_sites_are_refused(ui: DagsterUI, headers: dict[str, str], status: int) -> None:
    """By origin, by what the browser tells, and by a name that leads here."""
    assert ask(ui, "POST", json={"query": MUTATION}, headers=headers).status_code == status
    reported = ask(ui, "POST", "/report_asset_materialization/markets", json={}, headers=headers)
    assert reported.status_code == status
    if "Sec-Fetch-Site" not in headers:
        assert ask(ui, "GET", "/", headers=headers).status_code == status


def test_the_ui_works(ui: DagsterUI) -> None:
    """Its page, its queries and mutations, a link to it, and the page to write queries on."""
    page = ask(ui, "GET", "/", headers={"Sec-Fetch-Site": "same-site"})
    assert (page.status_code, "<html" in page.text.lower()) == (200, True)
    own = {"Origin": ui.address.rpartition("/")[0], "Sec-Fetch-Site": "same-origin"}
    changed = ask(ui, "POST", json={"query": MUTATION}, headers=own)
    assert changed.json() == {"data": {"setNuxSeen": True}}
    assert ask(ui, "GET", headers={"Accept": "text/html"}).status_code == 200
    assert ask(ui, "GET", "/server_info").status_code == 200


def test_websockets_are_opened_by_the_uis_own_page_only(ui: DagsterUI) -> None:
    """By them it hears of runs; another site's page could start one by them."""
    host = ui.address.removeprefix("http://").partition("/")[0]
    assert open_websocket(host, f"Origin: http://{host}") == 101
    assert open_websocket(host) == 101
    assert open_websocket(host, "Origin: http://evil.example") == 403
    assert open_websocket(host, "Sec-Fetch-Site: cross-site") == 403
    # Refused as such, before anything is upgraded.
    assert open_websocket(host, "Host: evil.example") in (400, 403)


def open_websocket(host: str, *headers: str) -> int:
    """Ask for a websocket as a browser does, and return the status."""
    name, port = host.split(":")
    lines = [
        "GET /dagster/graphql HTTP/1.1", f"Host: {host}", "Connection: Upgrade",
        "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: graphql-ws",
        f"Sec-WebSocket-Key: {base64.b64encode(b'0' * 16).decode()}", *headers,
    ]  # fmt: skip
    with contextlib.closing(socket.create_connection((name, int(port)), timeout=30)) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(connection.recv(4096).split()[1])


@pytest.mark.parametrize(
    ("host", "variables", "served"),
    [
        ("127.0.0.1", {}, {"localhost", "127.0.0.1", "[::1]"}),
        (
            "127.0.0.1",
            {"DAGSTER_UI_URL": "https://Data.example.com/dagster"},
            {"localhost", "127.0.0.1", "[::1]", "data.example.com"},
        ),
        ("0.0.0.0", {}, set()),  # noqa: S104 - whoever listens beyond loopback
        (
            "0.0.0.0",  # noqa: S104
            {"DAGSTER_GRAPHQL_URL": "http://web:3000"},
            {"localhost", "127.0.0.1", "[::1]", "web"},
        ),
    ],
)
def test_the_names_it_answers_to(host: str, variables: dict[str, str], served: set[str]) -> None:
    """Loopback's, and those by which people and the API reach it."""
    assert read_webserver_hosts(host, variables) == served


def test_options_are_dagsters_own(tmp_path: Path) -> None:
    """Help is Dagster's, and an option that it does not know is refused by it."""
    from market_pipeline_tests.commands import run_command

    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    told = run_command("market-pipeline", "web", "--help", environment=environment, folder=tmp_path)
    assert "--read-only" in told.stdout
    refused = run_command(
        "market-pipeline", "web", "--nothing", environment=environment, folder=tmp_path
    )
    assert refused.returncode == 2
