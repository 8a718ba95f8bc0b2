"""Without a webserver of Dagster the API starts runs itself, one after the other."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select
from sqlalchemy.exc import ProgrammingError

from market_pipeline.api.app import build_app
from market_pipeline.api.child_runs import ChildRuns
from market_pipeline.api.dagster_client import RunState
from market_pipeline.api.launching import MAX_QUEUED_RUNS
from market_pipeline.storage.runs.claims import find_living, hold_liveness_lock, take_claim
from market_pipeline.storage.tables import market
from market_pipeline_tests.api.conftest import NOWHERE, make_services, serve_api
from market_pipeline_tests.conftest import make_database, make_environment
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.system.processes import Background, wait_for
from market_pipeline_tests.system.project import read_query

SECRET = "only-cron-knows-this-one"  # noqa: S105 - the test's own
RUN_SECONDS = 300.0
# Notes that it began and ended, and waits until the file in its way is gone.
CHILD = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
with (folder / "told").open("a") as told:
    def end(number, frame):
        print("stopped", file=told, flush=True)
        sys.exit(1)
    signal.signal(signal.SIGTERM, end)
    print("begun", *sys.argv[2:], file=told, flush=True)
    while (folder / "wait").exists():
        time.sleep(0.02)
    print("ended", file=told, flush=True)
"""


def make_children(folder: Path) -> ChildRuns:
    """Return runs that note in a folder what becomes of them."""
    return ChildRuns([sys.executable, "-c", CHILD, str(folder)])


def read_told(folder: Path) -> list[str]:
    """Return the lines that runs noted."""
    file = folder / "told"
    return file.read_text().splitlines() if file.exists() else []


async def launch(children: ChildRuns, *symbols: str) -> UUID:
    """Start a run and return its id."""
    request = {"symbols": list(symbols)} if symbols else {}
    return await children.launch_run(request, uuid4(), "manual")


async def wait_until_ended(children: ChildRuns, run_id: UUID) -> RunState:
    """Return how a run ended."""
    found = await asyncio.to_thread(
        wait_for, lambda: read_ended(children, run_id), RUN_SECONDS, "the run to end"
    )
    assert found is not None
    return found


def read_ended(children: ChildRuns, run_id: UUID) -> RunState | None:
    """Return the state of a run that ended."""
    state = children.find_state(run_id)
    return state if state is not None and state.has_ended else None


def in_loop(test: Callable[[Path], Awaitable[None]]) -> Callable[[Path], None]:
    """Run an asynchronous test."""

    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@in_loop
async def test_runs_take_turns(tmp_path: Path) -> None:
    """The second begins when the first has ended, and is told what to run."""
    children = make_children(tmp_path)
    first, second = await launch(children, "BTC-USD", "SPX"), await launch(children)
    assert await children.count_queued() == 2
    assert (await wait_until_ended(children, second)).status == "SUCCESS"
    begun = "begun --run-id {} --trigger manual"
    assert read_told(tmp_path) == [
        f"{begun.format(first)} --symbols BTC-USD,SPX", "ended", begun.format(second), "ended",
    ]  # fmt: skip
    await children.close()


@in_loop
async def test_closing_ends_the_run_at_work_and_begins_no_other(tmp_path: Path) -> None:
    """It gets a SIGTERM and is waited for."""
    (tmp_path / "wait").touch()
    children = make_children(tmp_path)
    at_work, waiting = await launch(children), await launch(children)
    await asyncio.to_thread(wait_for, lambda: read_told(tmp_path), RUN_SECONDS, "the run to begin")
    await children.close()
    assert read_told(tmp_path)[1:] == ["stopped"]
    states = [children.find_state(one) for one in (at_work, waiting)]
    assert [state and state.status for state in states] == ["FAILURE", "FAILURE"]


@pytest.mark.parametrize(
    ("code", "status"),
    [("", "SUCCESS"), ("exit(3)", "SUCCESS"), ("exit(1)", "FAILURE"),
     ("import os; os.kill(os.getpid(), 9)", "FAILURE")],
)  # fmt: skip
def test_a_run_ends_as_its_process_does(code: str, status: str) -> None:
    """All markets and some are success, everything else is failure."""

    async def run() -> RunState:
        children = ChildRuns([sys.executable, "-c", code])
        return await wait_until_ended(children, await launch(children))

    assert asyncio.run(run()).status == status


def test_a_command_that_is_not_there_is_a_failed_run() -> None:
    """The next one is not held up."""

    async def run() -> list[RunState]:
        children = ChildRuns(["/nowhere/market-pipeline"])
        runs = [await launch(children) for _ in range(2)]
        return [await wait_until_ended(children, one) for one in runs]

    assert [state.status for state in asyncio.run(run())] == ["FAILURE", "FAILURE"]


@pytest.fixture
def waiting_client(engine: Engine, tmp_path: Path) -> Iterator[TestClient]:
    """A client of an app whose runs wait until the file in their way is gone."""
    (tmp_path / "wait").touch()
    services = make_services(engine)
    services = replace(services, children=make_children(tmp_path))
    with TestClient(build_app(services), "http://127.0.0.1") as client:
        yield client
    services.cache.close()


def test_a_full_queue_is_429_and_says_when_to_ask_again(
    waiting_client: TestClient, tmp_path: Path
) -> None:
    """One is at work, as many wait as in Dagster's queue, and the next is refused."""

    def post(number: int) -> httpx.Response:
        command = {"symbols": [f"S{number}-USD"]}
        headers = {"Prefer": "respond-async"}
        return waiting_client.post("/api/ingest", json=command, headers=headers)

    first = post(0)
    wait_for(lambda: read_told(tmp_path), RUN_SECONDS, "the run to begin")
    codes = [post(1 + number).status_code for number in range(MAX_QUEUED_RUNS)]
    refused = post(MAX_QUEUED_RUNS + 1)
    assert {first.status_code, *codes} == {202}
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert waiting_client.get(first.json()["statusUrl"]).status_code == 202


def test_a_run_that_comes_to_nothing_is_502(client: TestClient) -> None:
    """Without a receipt there is no result; the status URL tells the same with 200."""
    answer = client.post("/api/ingest")
    assert (answer.status_code, answer.json()["status"]) == (502, "failed")
    assert answer.json()["result"] is None
    told = client.get(f"/api/ingest/{answer.json()['runId']}")
    assert (told.status_code, told.json()) == (200, answer.json())


@pytest.fixture(scope="module")
def alone(
    server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, dict[str, str]]]:
    """A client of ``market-pipeline serve`` with no Dagster anywhere, and its environment."""
    folder = tmp_path_factory.mktemp("alone")
    with make_database(server_url, template) as url:
        environment = {
            **make_environment(url, folder), "DAGSTER_UI_URL": NOWHERE, "CRON_SECRET": SECRET,
            "STATE_DIR": str(folder / "state"), "INGEST_WAIT_SECONDS": "290",
            "MOCK_FAULTS": "DOGE-USD:wrong_symbol",
        }  # fmt: skip
        with serve_api(environment, folder) as (client, _):
            client.timeout = httpx.Timeout(RUN_SECONDS)
            yield client, environment


Alone = tuple[httpx.Client, dict[str, str]]


def test_serve_alone_answers_with_a_receipt(alone: Alone) -> None:
    """Equal requests share one run, which is recorded as any other."""
    client, environment = alone
    with ThreadPoolExecutor(10) as callers:
        answers = list(callers.map(lambda _: client.post("/api/ingest"), range(10)))
    assert {answer.status_code for answer in answers} == {200}
    body = answers[0].json()
    assert all(answer.json() == body for answer in answers)
    assert (body["status"], body["result"]["marketsIngested"]) == ("success", 3)
    rows = read_all(environment, "SELECT run_id::text, trigger, outcome FROM {}.ingestion_run")
    assert rows == [(body["runId"], "manual", "ok")]
    recorded = read_query(find_url(environment), "SELECT run_id, status FROM dagster.runs")
    assert recorded == [(body["runId"], "SUCCESS")]
    status = client.get(f"/api/ingest/{body['runId']}")
    assert (status.status_code, status.json()) == (200, body)


def test_serve_alone_serves_cron(alone: Alone) -> None:
    """The run's trigger is cron."""
    client, _ = alone
    answer = client.get("/api/cron", headers={"Authorization": f"Bearer {SECRET}"})
    assert (answer.status_code, answer.json()["result"]["trigger"]) == (200, "cron")


def test_serve_alone_tells_partial_and_failed_runs(alone: Alone) -> None:
    """As with a webserver: 200 and 502, with the markets that came short."""
    client, _ = alone
    for symbols, status in ((["BTC-USD", "DOGE-USD"], 200), (["DOGE-USD"], 502)):
        answer = client.post("/api/ingest", json={"symbols": symbols})
        assert answer.status_code == status
        assert [one["symbol"] for one in answer.json()["markets"]] == ["DOGE-USD"]


def read_all(environment: dict[str, str], query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query on a market table."""
    return read_query(find_url(environment), query.format("market_data"))


def find_url(environment: dict[str, str]) -> str:
    """Return the address of the database, as libpq reads it."""
    return environment["DATABASE_URL"].replace("+psycopg2", "")


@pytest.fixture
def slow_environment(
    stored: Engine, project_environment: dict[str, str], tmp_path: Path
) -> Iterator[dict[str, str]]:
    """An environment in which a run waits for its market, which another run holds."""
    other = uuid4()
    with stored.connect() as connection:
        held = connection.execute(select(market.c.market_id)).scalars().all()
    with hold_liveness_lock(stored, other):
        for market_id in held:
            take_claim(stored, market_id, other, timedelta(hours=1))
        yield {
            **project_environment, "DAGSTER_UI_URL": NOWHERE,
            "STATE_DIR": str(tmp_path / "state"), "INGESTION_MARKETS": "BTC-USD",
        }  # fmt: skip


def start_slow_run(client: httpx.Client, engine: Engine) -> dict[str, Any]:
    """Ask for a run, wait until it shows that it lives, and return what was answered."""
    accepted = client.post("/api/ingest", headers={"Prefer": "respond-async"})
    assert accepted.status_code == 202
    told: dict[str, Any] = accepted.json()
    wait_for(lambda: lives(engine, told["runId"]), RUN_SECONDS, "the run to begin")
    wait_for(lambda: is_recorded(engine), RUN_SECONDS, "Dagster to know the run")
    return told


def is_recorded(engine: Engine) -> bool:
    """Tell whether Dagster has recorded that a run began; its tables may not be there yet."""
    try:
        return bool(read_column(engine, "SELECT 1 FROM dagster.runs WHERE status = 'STARTED'"))
    except ProgrammingError:
        return False


def lives(engine: Engine, run_id: str) -> bool:
    """Tell whether a run shows that it lives."""
    with engine.connect() as connection:
        return bool(find_living(connection, [UUID(run_id)]))


@pytest.mark.faults
def test_stopping_the_api_stops_its_run(
    engine: Engine, slow_environment: dict[str, str], tmp_path: Path
) -> None:
    """SIGTERM is passed on: the run is recorded as failed, and no process is left."""
    with serve_api(slow_environment, tmp_path) as (client, server):
        accepted = start_slow_run(client, engine)
        server.stop()
        wait_for(lambda: not server.list_processes(), RUN_SECONDS, "the processes to end")
    rows = read_query(find_url(slow_environment), "SELECT run_id, status FROM dagster.runs")
    assert rows == [(accepted["runId"], "FAILURE")]


@pytest.mark.faults
def test_g3_a_killed_api_leaves_its_run_to_the_next(
    engine: Engine, slow_environment: dict[str, str], tmp_path: Path
) -> None:
    """The run goes on; whoever asks the next process the same waits for it."""
    with serve_api(slow_environment, tmp_path) as (client, server):
        accepted = start_slow_run(client, engine)
        server.process.kill()
        wait_for(lambda: count_commands(server, "serve") == 0, RUN_SECONDS, "the API's end")
        with serve_api(slow_environment, tmp_path) as (other, _):
            again = other.post("/api/ingest", headers={"Prefer": "respond-async"})
            assert (again.status_code, again.json()["runId"]) == (202, accepted["runId"])
            assert other.get(accepted["statusUrl"]).status_code == 202
        assert count_commands(server, "ingest") == 1


def count_commands(background: Background, name: str) -> int:
    """Return how many processes of the command run a subcommand of market-pipeline."""
    return sum(f"market-pipeline {name}" in line for line in background.list_processes())
