"""Ticks over HTTP and by the command, on a real Dagster: several runs, one answer."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from market_pipeline_tests.api.stack import Stack, run_stack
from market_pipeline_tests.commands import SCRIPTS
from market_pipeline_tests.conftest import make_database
from market_pipeline_tests.system.project import COMMAND_SECONDS

SYMBOLS = ["BTC-USD", "ETH-USD", "SOL-USD", "ADA-USD", "M001-USD"]
SETTINGS = {
    "INGESTION_SHARDS": "2",
    "INGESTION_MARKETS": ",".join(SYMBOLS),
    "INGESTION_LOOKBACK_DAYS": "2",
    "MOCK_FAULTS": "ADA-USD:wrong_symbol",
    "INGEST_WAIT_SECONDS": "3000",
}


@pytest.fixture(scope="module")
def stack(server_url: str, template: str) -> Iterator[Stack]:
    """One stack for all: two runs share the markets, one of which comes short."""
    with (
        make_database(server_url, template) as url,
        tempfile.TemporaryDirectory(prefix="mp-ticks-") as folder,
        run_stack(url, Path(folder), **SETTINGS) as running,
    ):
        running.api.timeout = 3_000.0
        yield running


def ingest(stack: Stack, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run the command beside the stack."""
    return subprocess.run(
        [str(SCRIPTS / "market-pipeline"), "ingest", *options],
        env=stack.environment, cwd=stack.folder, capture_output=True, text=True,
        timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip


def test_an_answer_speaks_of_the_tick_and_names_its_runs(stack: Stack) -> None:
    """Status, results and markets are those of all runs; status URL, list and page agree."""
    answer = stack.api.post("/api/ingest", headers={"Idempotency-Key": "tick-1"})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["status"] == "partial"
    assert [(one["symbol"], one["outcome"]) for one in told["markets"]] == [("ADA-USD", "failed")]
    assert told["result"]["marketsIngested"] == len(SYMBOLS)
    assert told["result"]["comparisonsIngested"] > 0
    assert [one["shard"] for one in told["shards"]] == [1, 2, 0]
    assert {one["outcome"] for one in told["shards"]} <= {"ok", "partial"}
    assert "tag%3Amarket_pipeline%2Ftick" in told["link"]
    tick_id = told["runId"]
    again = stack.api.post("/api/ingest", headers={"Idempotency-Key": "tick-1"}).json()
    assert again["runId"] == tick_id
    assert stack.api.get(f"/api/ingest/{tick_id}").json()["shards"] == told["shards"]
    listed = [run["run_id"] for run in stack.api.get("/api/runs").json()["data"]]
    assert listed == [tick_id]
    link = told["link"]
    assert stack.api.get(f"/api/runs/{tick_id}").json()["link"] == link
    assert f'href="{link}"' in stack.api.get("/runs").text
    page = stack.api.get(f"/runs/{tick_id}").text
    assert all(f"/runs/{one['runId']}" in page for one in told["shards"])
    assert stack.api.get(f"/runs/{told['shards'][0]['runId']}").status_code == 200


def test_the_command_waits_for_its_tick_and_exits_by_its_outcome(stack: Stack) -> None:
    """It prints the receipt of all runs."""
    done = ingest(stack, "--symbols", "BTC-USD,SOL-USD,ETH-USD", "--json")
    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    assert [market["symbol"] for market in receipt["markets"]] == ["BTC-USD", "ETH-USD", "SOL-USD"]
    assert {one["outcome"] for one in receipt["shards"]} == {"ok"}
    assert f"Tick {receipt['run_id']} is open" in done.stderr


def test_a_command_without_a_daemon_is_refused_at_once(
    stack: Stack, server_url: str, template: str
) -> None:
    """Its runs would never begin: it says what launches them, and how to do without."""
    with make_database(server_url, template) as url:
        changed = {"DATABASE_URL": url.replace("+psycopg2", "")}
        alone = Stack(
            stack.api, stack.ui, {**stack.environment, **changed}, stack.folder,
            stack.without_daemon, stack.daemon,
        )  # fmt: skip
        refused = ingest(alone)
    assert refused.returncode == 1
    assert "INGESTION_SHARDS=2: Dagster's daemon launches the runs of shards" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_tick_waits_for_a_daemon_in_vain_over_http_too(stack: Stack) -> None:
    """The API says so before it opens one."""
    assert stack.without_daemon.status_code == 503
    assert stack.without_daemon.json()["degraded"] == ["dagster daemon"]


def test_an_unknown_tick_is_not_found(stack: Stack) -> None:
    """Neither Dagster nor the tables know it."""
    assert stack.api.get(f"/api/ingest/{uuid4()}").status_code == 404
