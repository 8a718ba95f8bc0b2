"""A canary in every secret setting is found nowhere, over failing runs by every trigger."""

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from market_pipeline.settings import SETTINGS
from market_pipeline_tests.api.stack import Stack, run_stack
from market_pipeline_tests.commands import run_command
from market_pipeline_tests.conftest import make_database
from market_pipeline_tests.receiver import Receiver, serve_receiver
from market_pipeline_tests.system.processes import wait_for

pytestmark = pytest.mark.faults

CANARY = "canary7f3a"
KEY = f"CG-{CANARY}-coingecko"
RUN_SECONDS = 300.0
ROUTES = (
    "/", "/runs", "/api/runs", "/api/markets", "/api/coverage", "/api/metrics", "/metrics",
    "/readyz", "/healthz", "/docs/openapi.json", "/api/markets/BTC-USD/latest", "/nothing",
)  # fmt: skip
_TABLES = """SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
    WHERE schemaname IN ('market_data', 'dagster')"""


@dataclass(frozen=True, slots=True)
class Scene:
    """All that was written or sent: by name, its bytes."""

    found: dict[str, bytes]

    def search(self, word: str) -> list[str]:
        """Return where a word is."""
        return [name for name, content in self.found.items() if word.encode() in content]


def build_secrets(database_url: str, receiver: Receiver) -> dict[str, str]:
    """Return a value with the canary for every secret setting."""
    address = make_url(database_url.replace("+psycopg2", "")).set(password=f"{CANARY}-pw ss")
    return {
        "DATABASE_URL": address.render_as_string(hide_password=False),
        "REDIS_URL": f"redis://:{CANARY}-redis@127.0.0.1:9/0",
        "ALERT_WEBHOOK_URL": receiver.address.rpartition("/")[0] + f"/{CANARY}-hook",
        "ALERT_WEBHOOK_SECRET": f"whsec_{CANARY}AAAAAAAAAAAAAAAAAAAAAA",
        "HEARTBEAT_URL": receiver.address.rpartition("/")[0] + f"/{CANARY}-heart",
        "API_TOKEN": f"{CANARY}-api-token",
        "CRON_SECRET": f"{CANARY}-cron-secret",
        "COINGECKO_API_KEY": KEY,
    }


@pytest.fixture(scope="module")
def scene(server_url: str, template: str) -> Iterator[Scene]:
    """A provider that quotes the key it refuses, asked by every trigger; alerts that arrive."""
    with (
        serve_receiver() as provider,
        serve_receiver() as receiver,
        make_database(server_url, template) as url,
        tempfile.TemporaryDirectory(prefix="mp-canary-") as name,
    ):
        provider.status, provider.says = 401, f'{{"error": "invalid key {KEY}"}}'
        secrets = build_secrets(url, receiver)
        others = {
            "ALERT_ALLOW_PRIVATE": "true", "INGESTION_PROVIDER": "coingecko",
            "INGESTION_MARKETS": "BTC-USD", "COINGECKO_PLAN": "demo",
            "COINGECKO_BASE_URL": provider.address.rpartition("/")[0],
            "INGESTION_SCHEDULE_ENABLED": "true", "INGESTION_CRON_EXPRESSION": "* * * * *",
        }  # fmt: skip
        assert {one.name for one in SETTINGS if one.is_secret} == set(secrets)
        with run_stack(url, Path(name), **secrets, **others) as stack:
            yield Scene(gather(stack, secrets, receiver))


def gather(stack: Stack, secrets: dict[str, str], receiver: Receiver) -> dict[str, bytes]:
    """Run by every trigger, wait until all is told, and return what was written and sent."""
    found: dict[str, bytes] = {}
    for name, command in (
        ("command", ("market-pipeline", "ingest")),
        ("job", ("dagster", "job", "execute", "-m", "market_pipeline.definitions", "-j", "ingest")),
    ):
        done: subprocess.CompletedProcess[str] = run_command(
            *command, environment=stack.environment, folder=stack.folder
        )
        assert done.returncode == 1
        found[name] = (done.stdout + done.stderr).encode()
    bearer = {"Authorization": f"Bearer {secrets['API_TOKEN']}"}
    cron = {"Authorization": f"Bearer {secrets['CRON_SECRET']}"}
    answers = [
        stack.api.post("/api/ingest", headers=bearer, timeout=RUN_SECONDS),
        stack.api.get("/api/cron", headers=cron, timeout=RUN_SECONDS),
        stack.api.get("/api/cron", headers={"Authorization": "Bearer wrong"}),
        *(stack.api.get(route, headers=bearer) for route in ROUTES),
    ]
    for number, answer in enumerate(answers):
        found[f"answer {number}"] = answer.content + str(answer.headers).encode()
    query = "SELECT DISTINCT trigger FROM market_data.ingestion_run"
    wanted = {("manual",), ("cron",), ("schedule",)}
    wait_for(lambda: wanted <= set(stack.read(query)), RUN_SECONDS, "runs by every trigger")
    wait_for(lambda: bool(receiver.posts), RUN_SECONDS, "an alert")
    found |= {f"post {number}": post.raw for number, post in enumerate(receiver.posts)}
    found |= {str(file): file.read_bytes() for file in stack.folder.rglob("*") if file.is_file()}
    return found | read_tables(stack.environment["DATABASE_URL"])


def read_tables(address: str) -> dict[str, bytes]:
    """Return every row of both schemas as text: receipts, alerts, runs, run config, events."""
    engine = create_engine(make_url(address).set(drivername="postgresql+psycopg2"))
    with engine.connect() as connection:
        names = connection.execute(text(_TABLES)).scalars().all()
        rows = {
            name: "\n".join(
                connection.execute(text(f"SELECT t::text FROM {name} t")).scalars()
            ).encode()
            for name in names
        }
    engine.dispose()
    return rows


def test_no_secret_is_told_anywhere(scene: Scene) -> None:
    """Output, logs, event log, run config, compute logs, answers, alerts, tables."""
    assert scene.search(CANARY) == []


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("invalid key ***", "command"),
        ("invalid key ***", "market_data.ingestion_run_market"),
        ("invalid key ***", "dagster.event_logs"),
        ("credentials_refused", "post 0"),
        ("STEP_FAILURE", "job"),
        ('"detail"', "answer 2"),
    ],
)
def test_what_is_searched_is_what_was_written(scene: Scene, word: str, place: str) -> None:
    """The search finds what must be there: it would find a canary as well."""
    assert place in scene.search(word)


def test_compute_logs_and_processes_are_searched(scene: Scene) -> None:
    """The daemon's, the webserver's, the API's output, and what runs printed."""
    names = " ".join(scene.found)
    for part in ("dagster-daemon-", "dagster-webserver-", "market-pipeline-", "/dagster/logs/"):
        assert part in names
