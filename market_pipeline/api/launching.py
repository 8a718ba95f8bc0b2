"""Launching: one run for all equal requests that come while it runs.

A webserver of Dagster that listens starts runs under Dagster's queue. If no process listens at its
address, this process starts them. Only the watchers of runs and the waiting child runs are kept in
memory. If a process dies, the next one continues from the rows of ``storage.runs.idempotency`` and
from what the run has written.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar
from uuid import UUID

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine

from market_pipeline.api.dagster_client import JOB, RunState, WebserverMissingError
from market_pipeline.api.ingest_answers import RunResponse, read_answer
from market_pipeline.api.problems import ProblemError
from market_pipeline.api.run_watcher import RunWatcher
from market_pipeline.api.services import Services
from market_pipeline.ingestion.request import build_request
from market_pipeline.ingestion.ticks import open_tick
from market_pipeline.settings import read_shards
from market_pipeline.storage.runs.claims import find_living
from market_pipeline.storage.runs.idempotency import (
    Claim,
    claim_launch,
    note_run,
    release_launch,
    store_answer,
)
from market_pipeline.storage.runs.receipts import read_run
from market_pipeline.storage.runs.ticks import count_open_ticks

MAX_QUEUED_RUNS = 25
LAUNCH_SECONDS = 20.0
_QUEUE_RETRY_SECONDS = 30
_POLL_SECONDS = 0.2
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class IngestCommand:
    """A request to ingest these markets; none: those configured.

    Under ``key`` it is remembered for a day; None: while it runs only. ``options`` are other fields
    of ``IngestionRequest``, checked already.
    """

    symbols: tuple[str, ...]
    trigger: str
    key: str | None = None
    options: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def request_hash(self) -> str:
        """The hash that equal requests share."""
        options = [dict(sorted(self.options.items()))] if self.options else []
        told = json.dumps([JOB, sorted(self.symbols), self.trigger, *options])
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Started:
    """A command that is being served by a run; ``answer`` is None while it runs."""

    run_id: UUID
    answer: RunResponse | None = None
    is_replay: bool = False


class _Starter(Protocol):
    async def count_queued(self) -> int: ...

    async def launch_run(
        self, request: Mapping[str, Any], launch_id: UUID, trigger: str
    ) -> UUID: ...


class Launcher:
    """Starts runs for commands and waits for them."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._dagster, self._children = services.dagster, services.children
        self._ticks = _Ticks(services)
        self._watcher = RunWatcher(self._read_state, self._store)

    async def close(self) -> None:
        """Stop watching. Runs in Dagster continue; the child run of this process is ended."""
        await self._watcher.close()
        await self._children.close()
        await self._dagster.close()

    async def start(self, command: IngestCommand) -> Started:
        """Return the run that serves a command; launch it if nobody has.

        Raises:
            ProblemError: 503: Dagster does not answer; 429: too many runs wait already.
            KeyReusedError: The key stands for another command.
        """
        came_at, ended = datetime.now(UTC), None
        deadline = time.monotonic() + 3 * LAUNCH_SECONDS
        while time.monotonic() < deadline:
            claim = await self._write(claim_launch, command.request_hash, command.key, ended)
            if claim.is_owner:
                return Started(await self._launch(command, claim))
            if claim.run_id is None:
                await asyncio.sleep(_POLL_SECONDS)
            elif claim.answer_status is not None:
                answer = RunResponse(claim.answer_status, claim.answer)
                return Started(claim.run_id, answer, is_replay=True)
            elif command.key or await self._is_in_flight(claim.run_id, came_at):
                return Started(claim.run_id)
            else:
                ended = claim.run_id
        detail = "another process is starting this run and has not finished: try again"
        raise ProblemError(503, "Service Unavailable", detail, {"Retry-After": "5"})

    async def read_state(self, run_id: UUID) -> RunState | None:
        """Return the state of a run; None for an unknown run. A problem: nobody can tell now."""
        return self._watcher.find_last(run_id) or await self._read_state(run_id)

    async def finish(self, run_id: UUID, seconds: float) -> RunResponse | None:
        """Wait for a run and return its answer; None when it has not ended in time."""
        state = await self._watcher.wait(run_id, seconds)
        return None if state is None else await self.read(run_id, state)

    async def read(self, run_id: UUID, state: RunState) -> RunResponse:
        """Return the answer of a run that ended."""
        link = self._dagster.link_run
        return await run_in_threadpool(read_answer, self._engine, run_id, state.status, link)

    async def _write(self, act: Callable[..., Result], *arguments: object) -> Result:
        """Do something in a transaction of its own, in a thread."""

        def write() -> Result:
            with self._engine.begin() as connection:
                return act(connection, *arguments)

        return await run_in_threadpool(write)

    async def _read_state(self, run_id: UUID) -> RunState | None:
        """Return how a run stands; None for a run that Dagster does not know.

        The webserver's problem is raised for a run that has written nothing by which it could be
        told.
        """
        own = self._children.find_state(run_id)
        if own is not None:
            return own
        try:
            known = await self._dagster.read_state(run_id)
            # Dagster does not know a tick.
            return known or await run_in_threadpool(_read_recorded_state, self._engine, run_id)
        except ProblemError:
            recorded = await run_in_threadpool(_read_recorded_state, self._engine, run_id)
            if recorded is None:
                raise
            return recorded

    async def _is_in_flight(self, run_id: UUID, came_at: datetime) -> bool:
        """Tell whether a run had not ended when the request came."""
        try:
            state = await self._watcher.look(run_id)
        except WebserverMissingError:
            return False  # Who had it in a queue in memory is gone, and it has written nothing.
        except ProblemError:
            return True  # A slow webserver took it, and nobody has seen its end.
        if state is None:
            return False
        return not state.has_ended or (state.ended_at is not None and state.ended_at >= came_at)

    async def _launch(self, command: IngestCommand, claim: Claim) -> UUID:
        try:
            async with asyncio.timeout(LAUNCH_SECONDS):
                run_id = await self._find_or_launch(command, claim)
        except BaseException as error:
            await self._write(release_launch, claim.launch_id)
            if isinstance(error, TimeoutError):
                raise self._dagster.describe_silence() from None
            raise
        await self._write(note_run, claim.launch_id, run_id)
        self._watcher.begin(run_id)
        return run_id

    async def _find_or_launch(self, command: IngestCommand, claim: Claim) -> UUID:
        launch_id = claim.launch_id
        # A span of history is filled by one run, at its own pace.
        if read_shards() > 1 and "history_from" not in command.options:
            return await _launch_by(self._ticks, command, launch_id)
        if claim.was_tried and (known := await self._find_run(launch_id)):
            return known
        try:
            return await _launch_by(self._dagster, command, launch_id)
        except WebserverMissingError:
            return await _launch_by(self._children, command, launch_id)

    async def _find_run(self, launch_id: UUID) -> UUID | None:
        """Return the run that a launch came to before; None when there is none."""
        if self._children.find_state(launch_id) is not None:
            return launch_id
        try:
            return await self._dagster.find_run(launch_id)
        except WebserverMissingError:
            recorded = await run_in_threadpool(_read_recorded_state, self._engine, launch_id)
            return None if recorded is None else launch_id

    def _store(self, run_id: UUID, state: RunState) -> None:
        link = self._dagster.link_run
        answer = read_answer(self._engine, run_id, state.status, link)
        with self._engine.begin() as connection:
            store_answer(connection, run_id, answer.status, answer.body)


@dataclass(frozen=True, slots=True)
class _Ticks:
    """Starts a tick instead of a run: its row is all it takes, and the launch's id is its own."""

    services: Services

    async def count_queued(self) -> int:
        """Return how many ticks have not ended; it is a problem (503) if the daemon is away."""
        await self.services.dagster.count_queued()
        return await run_in_threadpool(self._count)

    async def launch_run(self, request: Mapping[str, Any], launch_id: UUID, trigger: str) -> UUID:
        """Open the tick; done again it stays as it is."""
        resolved = build_request(datetime.now(UTC), **request)
        engine = self.services.engine
        await run_in_threadpool(open_tick, engine, launch_id, resolved, trigger, read_shards())
        return launch_id

    def _count(self) -> int:
        with self.services.engine.connect() as connection:
            return count_open_ticks(connection)


async def _launch_by(starter: _Starter, command: IngestCommand, launch_id: UUID) -> UUID:
    waiting = await starter.count_queued()
    if waiting >= MAX_QUEUED_RUNS:
        detail = f"{waiting} runs already wait in the queue: try again when some have ended"
        retry = {"Retry-After": str(_QUEUE_RETRY_SECONDS)}
        raise ProblemError(429, "Too Many Requests", detail, retry)
    symbols = {"symbols": list(command.symbols)} if command.symbols else {}
    return await starter.launch_run({**symbols, **command.options}, launch_id, command.trigger)


def _read_recorded_state(engine: Engine, run_id: UUID) -> RunState | None:
    """Return how a run stands by its receipt and the life it shows; None when it shows neither."""
    with engine.connect() as connection:
        receipt = read_run(connection, run_id)
        if receipt and receipt["ended_at"]:
            status = "FAILURE" if receipt["outcome"] == "failed" else "SUCCESS"
            return RunState(status, receipt["ended_at"])
        is_running = receipt is not None and receipt["outcome"] == "running"
        return RunState("STARTED") if is_running or find_living(connection, [run_id]) else None
