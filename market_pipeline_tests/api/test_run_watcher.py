"""A run is watched once, however many wait for it, and however slow Dagster's webserver is."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from types import ModuleType
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, insert
from sqlalchemy.exc import OperationalError

from market_pipeline.api import dagster_client, launching
from market_pipeline.api.app import build_app
from market_pipeline.api.child_runs import ChildRuns
from market_pipeline.api.dagster_client import RunState
from market_pipeline.api.problems import ProblemError
from market_pipeline.api.run_watcher import RunWatcher
from market_pipeline.storage.tables import ingestion_run
from market_pipeline_tests.api.conftest import make_services
from market_pipeline_tests.api.slow_webserver import SlowWebserver, serve_slowly
from market_pipeline_tests.system.processes import wait_for

CALLERS = 100


async def post_together(engine: Engine, slow: SlowWebserver, callers: int) -> list[httpx.Response]:
    """Return the answers to equal requests that come at once; the run leaves a receipt."""
    services = make_services(engine, dagster_url=slow.address)
    app = build_app(services)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1", timeout=60
    ) as client:
        calls = [asyncio.create_task(client.post("/api/ingest")) for _ in range(callers)]
        await asyncio.to_thread(wait_for, lambda: slow.launched, 60, "the launch")
        write_receipt(engine, slow.launched[0])
        answers = await asyncio.gather(*calls)
    await app.state.launcher.close()
    services.cache.close()
    return answers


def write_receipt(engine: Engine, run_id: UUID) -> None:
    """Write the receipt of a run that went well."""
    now = datetime.now(UTC)
    row = {"run_id": run_id, "trigger": "manual", "provider": "mock", "request": {}}
    times = {"started_at": now, "completed_at": now, "ended_at": now, "outcome": "ok"}
    with engine.begin() as connection:
        connection.execute(insert(ingestion_run).values(**row, **times))


def test_a_slow_webserver_is_asked_by_one_for_all(engine: Engine) -> None:
    """A hundred equal requests: one run, one question at a time, and nobody hears of trouble."""
    with serve_slowly(delay=0.3, looks_until_end=20) as slow:
        answers = asyncio.run(post_together(engine, slow, CALLERS))
    assert {answer.status_code for answer in answers} == {200}
    assert len(slow.launched) == 1
    assert {answer.json()["runId"] for answer in answers} == {str(slow.launched[0])}
    assert slow.most_at_once == 1
    assert slow.looks <= slow.looks_until_end + 1


@pytest.mark.parametrize(
    ("module", "name"), [(dagster_client, "TIMEOUT_SECONDS"), (launching, "LAUNCH_SECONDS")]
)
def test_a_silent_webserver_is_no_missing_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    """Somebody listens and does not answer in time: 503, and this process starts nothing."""
    monkeypatch.setattr(module, name, 0.2)
    children = ChildRuns(["false"])
    with serve_slowly(delay=1.0) as slow:
        services = replace(make_services(engine, dagster_url=slow.address), children=children)
        with TestClient(build_app(services), "http://127.0.0.1") as client:
            answer = client.post("/api/ingest")
    services.cache.close()
    assert (answer.status_code, answer.json()["degraded"]) == (503, ["dagster webserver"])
    assert int(answer.headers["retry-after"]) > 0
    assert asyncio.run(children.count_queued()) == 0


def test_a_watch_outlives_trouble() -> None:
    """Whoever looks while nobody can tell hears so; the watch goes on, and its end is told."""
    answers: list[Exception | RunState] = [
        ProblemError(503, "Dagster Unavailable", "silent"),
        OperationalError("SELECT", {}, Exception("gone")),
        RunState("SUCCESS", datetime.now(UTC)),
    ]
    ended: list[UUID] = []

    async def read(run_id: UUID) -> RunState:
        del run_id
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def watch() -> RunState | None:
        watches = RunWatcher(read, lambda run_id, _: ended.append(run_id))
        run_id = uuid4()
        with pytest.raises(ProblemError):
            await watches.look(run_id)
        with pytest.raises(OperationalError):
            await watches.look(run_id)
        return await watches.wait(run_id, 60)

    state = asyncio.run(watch())
    assert state is not None
    assert (state.status, len(ended)) == ("SUCCESS", 1)


def test_a_watch_that_breaks_leaves_nobody_waiting() -> None:
    """A fault of ours is told to whoever looks, too."""

    async def read(run_id: UUID) -> RunState:
        raise ZeroDivisionError(run_id)

    async def watch() -> None:
        await asyncio.wait_for(RunWatcher(read, lambda *_: None).look(uuid4()), 60)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(watch())


def test_who_asks_how_a_run_stands_asks_the_watcher(engine: Engine) -> None:
    """Status URLs of a run that is watched cost the webserver nothing."""
    with serve_slowly(delay=0.0, looks_until_end=1_000) as slow:
        services = make_services(engine, dagster_url=slow.address)
        with TestClient(build_app(services), "http://127.0.0.1") as client:
            accepted = client.post("/api/ingest", headers={"Prefer": "respond-async"})
            wait_for(lambda: slow.looks, 60, "the watcher")
            status = accepted.json()["statusUrl"]
            answers = {client.get(status).status_code for _ in range(100)}
            looks = slow.looks
    services.cache.close()
    assert answers == {202}
    assert looks < 50
