"""POST /api/ingest and GET /api/cron on a real Dagster: one run for all who ask the same."""

import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest

from market_pipeline.api.launching import MAX_QUEUED_RUNS
from market_pipeline_tests.api.stack import CRON_SECRET, Stack, run_stack, serve_another
from market_pipeline_tests.conftest import make_database
from market_pipeline_tests.system.processes import wait_for

CALLERS = 100
RUN_SECONDS = 300.0
TABLES = {
    "marketsIngested": "market",
    "snapshotsIngested": "market_snapshot",
    "aggregatesIngested": "market_aggregate",
    "comparisonsIngested": "market_comparison",
    "roiStatsIngested": "market_roi_statistic",
}
BEAT = """UPDATE dagster.daemon_heartbeats SET timestamp = now() AT TIME ZONE 'UTC',
    body = jsonb_set(body::jsonb, '{timestamp}', to_jsonb(extract(epoch FROM now())))::text
    WHERE daemon_type IN (
        SELECT daemon_type FROM dagster.daemon_heartbeats FOR UPDATE SKIP LOCKED)"""
BEARER = {"Authorization": f"Bearer {CRON_SECRET}"}


@pytest.fixture(scope="module")
def stack(server_url: str, template: str) -> Iterator[Stack]:
    """One stack for all: only the markets with a fault of their own come short."""
    with (
        make_database(server_url, template) as url,
        tempfile.TemporaryDirectory(prefix="mp-api-") as folder,
        run_stack(url, Path(folder), MOCK_FAULTS="DOGE-USD:wrong_symbol") as running,
    ):
        yield running


@pytest.fixture(scope="module")
def crowd(stack: Stack) -> list[httpx.Response]:
    """The answers to a hundred equal requests at once."""

    def post(_: int) -> httpx.Response:
        return httpx.post(f"{stack.api.base_url}/api/ingest", timeout=RUN_SECONDS, trust_env=False)

    with ThreadPoolExecutor(CALLERS) as callers:
        return list(callers.map(post, range(CALLERS)))


def wait_until_ended(stack: Stack, url: str) -> dict[str, Any]:
    """Return what a status URL says once the run has ended."""

    def ask() -> httpx.Response | None:
        answer = stack.api.get(url)
        return None if answer.status_code == 202 else answer

    found = wait_for(ask, RUN_SECONDS, "the run to end")
    assert found is not None
    told: dict[str, Any] = found.json()
    return told


def test_without_a_daemon_it_says_so_and_starts_nothing(stack: Stack) -> None:
    """503 names the daemon and the command that starts it."""
    answer = stack.without_daemon
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["degraded"] == ["dagster daemon"]
    assert "make dev" in answer.json()["detail"]


def test_g1_a_hundred_equal_requests_make_one_run(
    stack: Stack, crowd: list[httpx.Response]
) -> None:
    """All get the same answer, of the one run that Dagster has recorded; none fails."""
    assert {answer.status_code for answer in crowd} == {200}
    bodies = [answer.json() for answer in crowd]
    assert all(body == bodies[0] for body in bodies)
    rows = stack.read("SELECT run_id::text, trigger, outcome FROM market_data.ingestion_run")
    assert rows == [(bodies[0]["runId"], "manual", "ok")]


def test_the_answer_counts_what_the_tables_hold(stack: Stack, crowd: list[httpx.Response]) -> None:
    """Counts are inserted, updated and unchanged rows; into an empty database all are inserted."""
    body = crowd[0].json()
    assert body["status"] == "success"
    assert body["markets"] == []
    receipts = stack.read(
        "SELECT run_id::text, table_name, inserted + updated + unchanged "
        "FROM market_data.ingestion_run_table"
    )
    receipt = {table: rows for run_id, table, rows in receipts if run_id == body["runId"]}
    assert {name: body["result"][name] for name in TABLES} == {
        name: receipt[table] for name, table in TABLES.items()
    }
    assert body["result"]["marketsIngested"] == 3
    assert body["result"]["trigger"] == "manual"
    assert body["link"] == f"{stack.ui.address}/runs/{body['runId']}"


def test_g5_cron_runs_once_a_minute_however_often_it_calls(stack: Stack) -> None:
    """Two calls get one run's answer, triggered by cron; caches are told to keep nothing."""
    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(stack.api.get, "/api/cron", headers=BEARER) for _ in range(2)]
        first, second = (call.result() for call in calls)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json()["runId"] == second.json()["runId"]
    assert first.json()["result"]["trigger"] == "cron"
    assert first.headers["cache-control"] == "no-store"


def test_g2_a_key_gets_its_answer_again_and_serves_no_other_request(
    stack: Stack, crowd: list[httpx.Response]
) -> None:
    """Same key and body: the stored answer, without a run; another body: 422."""
    del crowd  # The markets are there, so the run is short.
    key, command = {"Idempotency-Key": "order-1"}, {"symbols": ["btc-usd"]}
    first = stack.api.post("/api/ingest", json=command, headers=key, timeout=RUN_SECONDS)
    count = stack.count_runs()
    again = stack.api.post("/api/ingest", json={"symbols": ["BTC-USD"]}, headers=key)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    other = stack.api.post("/api/ingest", json={"symbols": ["ETH-USD"]}, headers=key)
    assert other.status_code == 422
    assert stack.count_runs() == count


def test_g3_a_killed_process_leaves_its_key_to_the_next(stack: Stack) -> None:
    """The API dies after it accepted; the same key elsewhere gets the run that it had started."""
    key, command = {"Idempotency-Key": "order-2"}, {"symbols": ["ETH-USD"]}
    with serve_another(stack) as (api, process):
        accepted = api.post(
            "/api/ingest", json=command, headers={**key, "Prefer": "respond-async"}, timeout=60
        )
        process.process.kill()
    assert accepted.status_code == 202
    again = stack.api.post("/api/ingest", json=command, headers=key, timeout=RUN_SECONDS)
    assert (again.status_code, again.json()["runId"]) == (200, accepted.json()["runId"])


def test_short_markets_are_named_with_reasons(stack: Stack) -> None:
    """A run that misses a market answers 200, `partial`, and says what is missing and why."""
    command = {"symbols": ["BTC-USD", "DOGE-USD"]}
    answer = stack.api.post("/api/ingest", json=command, timeout=RUN_SECONDS)
    assert (answer.status_code, answer.json()["status"]) == (200, "partial")
    short = answer.json()["markets"]
    assert [one["symbol"] for one in short] == ["DOGE-USD"]
    assert short[0]["reason"]


def test_a_symbol_that_no_provider_serves_is_named_beside_the_others(stack: Stack) -> None:
    """200 and `partial`; when no symbol is served, nothing is started."""
    command = {"symbols": ["BTC-USD", "X:FOO"]}
    answer = stack.api.post("/api/ingest", json=command, timeout=RUN_SECONDS)
    assert (answer.status_code, answer.json()["status"]) == (200, "partial")
    (short,) = answer.json()["markets"]
    assert (short["symbol"], short["provider"], short["outcome"]) == ("X:FOO", None, "failed")
    assert "no provider serves it" in short["reason"]
    count = stack.count_runs()
    refused = stack.api.post("/api/ingest", json={"symbols": ["X:FOO"]})
    assert refused.status_code == 400
    assert "no provider serves X:FOO" in refused.json()["detail"]
    assert stack.count_runs() == count


def test_a_failed_run_is_told_by_status_and_receipt(stack: Stack) -> None:
    """Nothing usable came: 502 for who waits, and the status URL says `failed`."""
    command = {"symbols": ["DOGE-USD"]}
    accepted = stack.api.post("/api/ingest", json=command, headers={"Prefer": "respond-async"})
    assert accepted.status_code == 202
    waiting = stack.api.post("/api/ingest", json=command, timeout=RUN_SECONDS)
    assert (waiting.status_code, waiting.json()["status"]) == (502, "failed")
    told = wait_until_ended(stack, accepted.json()["statusUrl"])
    assert told == waiting.json()
    assert told["markets"][0]["reason"]


def beat(stack: Stack) -> None:
    """Write the heartbeats anew, as the daemon does: one that sleeps counts as missing after 90 s.

    Dagster reads the time in the body. A row that the daemon has locked as it fell asleep stays.
    """
    url = stack.environment["DATABASE_URL"]
    with closing(psycopg2.connect(url)) as opened, opened, opened.cursor() as cursor:
        cursor.execute(BEAT)


def test_a_full_queue_is_429_and_says_when_to_ask_again(stack: Stack) -> None:
    """The last test: the daemon sleeps, so that what is asked for stays in the queue."""
    symbols = ("BTC-USD", "ETH-USD", "SPX", "SOL-USD", "ADA-USD")
    wishes = [list(some) for size in (2, 3, 4) for some in combinations(symbols, size)]

    def post(wish: list[str]) -> httpx.Response:
        beat(stack)
        headers = {"Prefer": "respond-async"}
        return stack.api.post("/api/ingest", json={"symbols": wish}, headers=headers)

    stack.daemon.signal_all(signal.SIGSTOP)
    try:
        answers = [post(one) for one in [*wishes, *([one, "XRP-USD"] for one in symbols)]]
    finally:
        stack.daemon.signal_all(signal.SIGCONT)
    codes = [answer.status_code for answer in answers]
    assert codes == [202] * MAX_QUEUED_RUNS + [429] * (len(codes) - MAX_QUEUED_RUNS)
    assert len(codes) > MAX_QUEUED_RUNS
    refused = answers[-1]
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["status"] == 429
