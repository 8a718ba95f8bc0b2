"""The proxy of ``deploy/``, as Debian's nginx, before a running webserver of Dagster."""

import base64
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.system.dagster_ui import DagsterUI, open_dagster_ui
from market_pipeline_tests.system.processes import run_in_background, wait_for
from market_pipeline_tests.system.project import ROOT, SCRIPTS, make_project

pytestmark = pytest.mark.system

NGINX = "/usr/sbin/nginx"
TEMPLATE = ROOT / "deploy/proxy/market-pipeline.conf.template"
USER, PASSWORD = "operator", "correct horse battery"
# A mutation that needs nothing, and does nothing that matters.
MUTATION = "mutation { setNuxSeen }"
QUERY = "{ version }"
START_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy: where it listens, and who stands behind it."""

    address: str
    api_address: str
    ui: DagsterUI

    def ask(
        self, method: str, path: str, signed_in: bool = True, **options: object
    ) -> httpx.Response:
        """Return the answer to a request, with the password or without."""
        auth = (USER, PASSWORD) if signed_in else None
        return httpx.request(method, f"{self.address}{path}", auth=auth, timeout=30, **options)  # type: ignore[arg-type]


def hash_password(password: str) -> str:
    """Return what deploy/README.md says to write into the password file."""
    done = subprocess.run(
        ["openssl", "passwd", "-apr1", "-stdin"],
        input=password, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def write_configuration(folder: Path, variables: dict[str, str]) -> Path:
    """Fill the template as envsubst does, and put it into a whole nginx.conf."""
    filled = re.sub(r"\$\{(\w+)\}", lambda name: variables[name[1]], TEMPLATE.read_text())
    places = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    whole.write_text(
        f"{user}\ndaemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{places}\n{filled}\n}}\n"
    )
    return whole


@contextmanager
def run_proxy(ui: DagsterUI, folder: Path) -> Iterator[Proxy]:
    """Run nginx with the template before a webserver."""
    ports = [choose_port() for _ in range(2)]
    password_file = folder / "htpasswd"
    password_file.write_text(f"{USER}:{hash_password(PASSWORD)}\n")
    upstream = ui.address.removeprefix("http://")
    variables = {
        "DAGSTER_LISTEN": f"127.0.0.1:{ports[0]}",
        "API_LISTEN": f"127.0.0.1:{ports[1]}",
        "DAGSTER_UPSTREAM": upstream,
        "API_UPSTREAM": upstream,
        "HTPASSWD_FILE": str(password_file),
    }
    configuration = write_configuration(folder, variables)
    command = [NGINX, "-p", str(folder), "-c", str(configuration)]
    with run_in_background(command, {"PATH": os.environ["PATH"]}, folder) as nginx:
        proxy = Proxy(f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", ui)
        wait_for(lambda: is_listening(ports[0]), START_SECONDS, "nginx", nginx)
        yield proxy


def is_listening(port: int) -> bool:
    """Say whether somebody accepts connections."""
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """The proxy before Dagster's own webserver."""
    with make_project() as project:
        port = choose_port()
        command = [str(SCRIPTS / "dagster-webserver"), "-p", str(port), "-w", "workspace.yaml"]
        place = (project.environment, project.folder)
        with open_dagster_ui(command, port, *place) as ui, run_proxy(ui, project.folder) as running:
            yield running


def test_nobody_gets_in_without_the_password(proxy: Proxy) -> None:
    """Pages, queries and logs alike; a wrong password is none."""
    for path in ("/", "/server_info", "/logs/a/b/c", "/runs"):
        assert proxy.ask("GET", path, signed_in=False).status_code == 401
    assert proxy.ask("POST", "/graphql", signed_in=False, json={"query": QUERY}).status_code == 401
    wrong = httpx.get(f"{proxy.address}/", auth=(USER, "wrong"), timeout=60)
    assert wrong.status_code == 401


def test_the_ui_works_behind_it(proxy: Proxy) -> None:
    """Pages, and queries and mutations by POST, for whoever has the password."""
    page = proxy.ask("GET", "/")
    assert page.status_code == 200
    assert "<html" in page.text.lower()
    assert proxy.ask("GET", "/server_info").json()["dagster_version"]
    asked = proxy.ask("POST", "/graphql", json={"query": QUERY})
    assert asked.json()["data"]["version"]
    changed = proxy.ask("POST", "/graphql", json={"query": MUTATION})
    assert changed.json() == {"data": {"setNuxSeen": True}}


def test_no_get_changes_anything(proxy: Proxy) -> None:
    """The webserver itself runs a mutation by GET; through the proxy no spelling of one arrives."""
    assert httpx.get(f"{proxy.ui.address}/graphql", params={"query": MUTATION}, timeout=60).json()[
        "data"
    ]
    hits = {"query": MUTATION}
    assert proxy.ask("GET", "/graphql", params=hits).status_code == 405
    assert proxy.ask("HEAD", "/graphql", params=hits).status_code == 405
    for path in ("//graphql", "/./graphql", "/x/../graphql", "/%67raphql"):
        assert proxy.ask("GET", path, params=hits).status_code in (404, 405)
    for path in ("/graphql/", "/GraphQL"):
        assert proxy.ask("GET", path, params=hits).status_code == 404
    # One that says it were a websocket, and is none, has no query left when it arrives.
    posing = proxy.ask("GET", "/graphql", params=hits, headers={"Upgrade": "websocket"})
    assert "setNuxSeen" not in posing.text
    assert posing.status_code >= 400


def test_another_site_cannot_use_the_browsers_password(proxy: Proxy) -> None:
    """A form cannot send JSON; a script of another site says where it comes from."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/graphql"):
        refused = proxy.ask("POST", "/graphql", content=MUTATION, headers={"Content-Type": kind})
        assert refused.status_code == 415
    by_query = proxy.ask("POST", "/graphql", params={"query": MUTATION})
    assert by_query.status_code == 415
    foreign = {"Sec-Fetch-Site": "cross-site"}
    assert (
        proxy.ask("POST", "/graphql", json={"query": MUTATION}, headers=foreign).status_code == 403
    )


def test_nothing_but_queries_is_written(proxy: Proxy) -> None:
    """Dagster takes events from outside by POST, without asking who sends them."""
    reported = proxy.ask("POST", "/report_asset_materialization/markets", json={})
    assert reported.status_code in (403, 404)
    assert proxy.ask("DELETE", "/").status_code == 403
    too_big = proxy.ask("POST", "/graphql", json={"query": "x" * 2_000_000})
    assert too_big.status_code == 413


def test_the_live_log_is_read_through_it(proxy: Proxy) -> None:
    """A websocket is opened with the password, and refused without."""
    host = proxy.address.removeprefix("http://")
    secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    assert open_websocket(host, f"Authorization: Basic {secret}") == 101
    assert open_websocket(host, "X-Nothing: nothing") == 401
    assert (
        open_websocket(host, f"Authorization: Basic {secret}", "Sec-Fetch-Site: cross-site") == 403
    )


def open_websocket(host: str, *headers: str) -> int:
    """Ask for a websocket as a browser does, and return the status."""
    name, port = host.split(":")
    lines = [
        "GET /graphql HTTP/1.1", f"Host: {host}", "Connection: Upgrade", "Upgrade: websocket",
        "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: graphql-ws",
        f"Sec-WebSocket-Key: {base64.b64encode(b'0' * 16).decode()}", *headers,
    ]  # fmt: skip
    with closing(socket.create_connection((name, int(port)), timeout=30)) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(connection.recv(4096).split()[1])


def test_an_address_may_try_a_few_tokens_a_minute(proxy: Proxy) -> None:
    """Wrong or right; the page itself may be read as often as one likes."""
    tries = [
        httpx.post(f"{proxy.api_address}/sign-in", data={"token": "x"}, timeout=60)
        for _ in range(20)
    ]
    assert sum(one.status_code == 429 for one in tries) >= 12
    pages = [httpx.get(f"{proxy.api_address}/sign-in", timeout=60) for _ in range(20)]
    assert {one.status_code for one in pages} == {200}


def test_the_api_is_passed_through_as_it_is(proxy: Proxy) -> None:
    """It asks for a token of its own; the proxy keeps the header for it."""
    assert httpx.get(f"{proxy.api_address}/server_info", timeout=60).status_code == 200
