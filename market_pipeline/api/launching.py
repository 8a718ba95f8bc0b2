"""Launching: one run for all equal requests that come while it runs.

Only the watchers of runs and the waiting child runs are kept in memory. If a process dies, the next
one continues from the rows of ``storage.runs.idempotency`` and from what the run has written.
"""

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from fastapi.concurrency import run_in_threadpool

from market_pipeline.api.dagster_client import JOB, RunState, WebserverMissingError
from market_pipeline.api.ingest_answers import RunResponse, read_answer
from market_pipeline.api.problems import ProblemError
from market_pipeline.api.run_starting import RunStarter
from market_pipeline.api.run_watcher import RunWatcher
from market_pipeline.api.services import Services
from market_pipeline.storage.runs.idempotency import (
    Claim,
    claim_launch,
    note_run,
    release_launch,
    store_answer,
)

LAUNCH_SECONDS = 20.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class IngestCommand:
    """A request to ingest.

    Attributes:
        symbols: Which markets; empty: those configured. trigger: manual or cron.
        key: Under which it is remembered for a day; None: while it runs only.
    """

    symbols: tuple[str, ...]
    trigger: str
    key: str | None = None

    @property
    def request_hash(self) -> str:
        """The hash that equal requests share."""
        told = json.dumps([JOB, sorted(self.symbols), self.trigger])
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Started:
    """A command that is being served.

    Attributes:
        run_id: By this run. answer: What was answered before; None while it runs.
        is_replay: Whether the answer had been stored.
    """

    run_id: UUID
    answer: RunResponse | None = None
    is_replay: bool = False


class Launcher:
    """Starts runs for wishes and waits for them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._runs = RunStarter(services.engine, services.dagster, services.children)
        self._watcher = RunWatcher(self._runs.read_state, self._store)

    async def close(self) -> None:
        """Stop watching. Runs in Dagster continue; the child run of this process is ended."""
        await self._watcher.close()
        await self._runs.close()

    async def start(self, command: IngestCommand) -> Started:
        """Return the run that serves a command; launch it if nobody has.

        Raises:
            ProblemError: 503: Dagster does not answer; 429: too many runs wait already.
            KeyReusedError: The key stands for another command.
        """
        came_at, ended = datetime.now(UTC), None
        deadline = time.monotonic() + 3 * LAUNCH_SECONDS
        while time.monotonic() < deadline:
            claim = await run_in_threadpool(self._claim, command, ended)
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
        """Return the state of a run; None for an unknown run.

        Raises:
            ProblemError: Nobody can tell now.
        """
        return self._watcher.find_last(run_id) or await self._runs.read_state(run_id)

    async def finish(self, run_id: UUID, seconds: float) -> RunResponse | None:
        """Wait for a run and return its answer; None when it has not ended in time."""
        state = await self._watcher.wait(run_id, seconds)
        return None if state is None else await self.read(run_id, state)

    async def read(self, run_id: UUID, state: RunState) -> RunResponse:
        """Return the answer of a run that ended."""
        services = self._services
        link = services.dagster.link_run(run_id)
        return await run_in_threadpool(read_answer, services.engine, run_id, state.status, link)

    def _claim(self, command: IngestCommand, ended: UUID | None) -> Claim:
        with self._services.engine.begin() as connection:
            return claim_launch(connection, command.request_hash, command.key, ended)

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
            await run_in_threadpool(self._release, claim.launch_id)
            if isinstance(error, TimeoutError):
                raise self._services.dagster.describe_silence() from None
            raise
        await run_in_threadpool(self._note_run, claim.launch_id, run_id)
        self._watcher.begin(run_id)
        return run_id

    async def _find_or_launch(self, command: IngestCommand, claim: Claim) -> UUID:
        if claim.was_tried and (known := await self._runs.find_run(claim.launch_id)):
            return known
        return await self._runs.launch_run(command.symbols, claim.launch_id, command.trigger)

    def _release(self, launch_id: UUID) -> None:
        with self._services.engine.begin() as connection:
            release_launch(connection, launch_id)

    def _note_run(self, launch_id: UUID, run_id: UUID) -> None:
        with self._services.engine.begin() as connection:
            note_run(connection, launch_id, run_id)

    def _store(self, run_id: UUID, state: RunState) -> None:
        engine = self._services.engine
        link = self._services.dagster.link_run(run_id)
        answer = read_answer(engine, run_id, state.status, link)
        with engine.begin() as connection:
            store_answer(connection, run_id, answer.status, answer.body)
