"""Watching runs until they end: one watcher a run and process, however many wait for it."""

import asyncio
import logging
from collections.abc import Callable
from uuid import UUID

from fastapi.concurrency import run_in_threadpool

from market_pipeline.api.dagster_client import DagsterClient, RunState
from market_pipeline.api.problems import ProblemError

POLL_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 10.0
logger = logging.getLogger("market_pipeline.api")
OnEnd = Callable[[UUID, RunState], object]


class Watches:
    """The runs that somebody waited for and that have not ended yet.

    Args:
        dagster: Who knows how runs stand.
        on_end: Called once, in a thread, when a watched run has ended and before waiters hear.
    """

    def __init__(self, dagster: DagsterClient, on_end: OnEnd) -> None:
        self._dagster, self._on_end = dagster, on_end
        self._tasks: dict[UUID, asyncio.Task[RunState | None]] = {}

    async def wait(self, run_id: UUID, seconds: float) -> RunState | None:
        """Return how a run ended; None when it has not within these seconds, or is unknown."""
        task = self._tasks.get(run_id)
        if task is None:
            task = self._tasks[run_id] = asyncio.create_task(self._watch(run_id))
            task.add_done_callback(lambda _: self._tasks.pop(run_id, None))
        done, _ = await asyncio.wait({task}, timeout=seconds)
        return task.result() if done else None

    async def close(self) -> None:
        """Stop watching; the runs go on."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _watch(self, run_id: UUID) -> RunState | None:
        pause = POLL_SECONDS
        while True:
            try:
                state = await self._dagster.read_state(run_id)
            except ProblemError:
                # The webserver is being restarted; the run goes on, and so does the watch.
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
            else:
                pause = POLL_SECONDS
                if state is None or state.has_ended:
                    if state is not None:
                        await self._tell(run_id, state)
                    return state
            await asyncio.sleep(pause)

    async def _tell(self, run_id: UUID, state: RunState) -> None:
        try:
            await run_in_threadpool(self._on_end, run_id, state)
        except Exception:
            # Waiters read the answer themselves; only its copy for later is missing.
            logger.exception("the answer of run %s could not be stored", run_id)
