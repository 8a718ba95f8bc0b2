"""Watching runs until they end: one watcher for each run and process, for all who wait."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from uuid import UUID

from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from market_pipeline.api.dagster_client import RunState
from market_pipeline.api.problems import ProblemError

POLL_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 10.0
_CLOSED = ("Service Unavailable", "the API is stopping: try again when it has started")
logger = logging.getLogger("market_pipeline.api")
ReadState = Callable[[UUID], Awaitable[RunState | None]]
OnEnd = Callable[[UUID, RunState], object]


class _Watch:
    """One run's: the task that looks again and again, and what its next look will say."""

    def __init__(self) -> None:
        self.task: asyncio.Task[RunState | None]
        self.next_look: asyncio.Future[RunState | None]
        self.last: RunState | None = None
        self.expect_look()

    def expect_look(self) -> None:
        """Begin to wait for another look."""
        self.next_look = asyncio.get_running_loop().create_future()
        # A look that fails is no fault where nobody waits for it.
        self.next_look.add_done_callback(lambda look: look.cancelled() or look.exception())


class RunWatcher:
    """The runs that have not ended yet and that a request waits for.

    ``read_state`` may fail with a problem. ``on_end`` is called once, in a thread, when a watched
    run has ended and before waiters hear.
    """

    def __init__(self, read_state: ReadState, on_end: OnEnd) -> None:
        self._read_state, self._on_end = read_state, on_end
        self._watches: dict[UUID, _Watch] = {}

    def find_last(self, run_id: UUID) -> RunState | None:
        """Return what the last look at a watched run said; None where there was none."""
        watch = self._watches.get(run_id)
        return None if watch is None else watch.last

    async def look(self, run_id: UUID) -> RunState | None:
        """Return how a run stands at the next look at it, which all who ask meanwhile share.

        The problem is raised of which nobody could tell at that look.
        """
        return await asyncio.shield(self.begin(run_id).next_look)

    async def wait(self, run_id: UUID, seconds: float) -> RunState | None:
        """Return how a run ended; None when it has not within these seconds, or is unknown."""
        task = self.begin(run_id).task
        done, _ = await asyncio.wait({task}, timeout=seconds)
        return task.result() if done else None

    async def close(self) -> None:
        """Stop watching; the runs go on."""
        tasks = [watch.task for watch in self._watches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin(self, run_id: UUID) -> _Watch:
        """Watch a run, also if no request waits for it, and return its watch."""
        watch = self._watches.get(run_id)
        if watch is None:
            watch = self._watches[run_id] = _Watch()
            watch.task = asyncio.create_task(self._watch(run_id, watch))
            watch.task.add_done_callback(lambda _: self._forget(run_id))
        return watch

    def _forget(self, run_id: UUID) -> None:
        watch = self._watches.pop(run_id)
        if not watch.next_look.done():
            # It broke, or was told to end: nobody may wait for a look that never comes.
            broken = None if watch.task.cancelled() else watch.task.exception()
            watch.next_look.set_exception(broken or ProblemError(503, *_CLOSED))

    async def _watch(self, run_id: UUID, watch: _Watch) -> RunState | None:
        pause = POLL_SECONDS
        while True:
            try:
                state = await self._read_state(run_id)
            except (ProblemError, SQLAlchemyError) as trouble:
                # The webserver is being restarted; the run goes on, and so does the watch.
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
                watch.next_look.set_exception(trouble)
            else:
                pause = POLL_SECONDS
                if state is None or state.has_ended:
                    if state is not None:
                        await self._notify_followers(run_id, state)
                    watch.next_look.set_result(state)
                    return state
                watch.last = state
                watch.next_look.set_result(state)
            watch.expect_look()
            await asyncio.sleep(pause)

    async def _notify_followers(self, run_id: UUID, state: RunState) -> None:
        try:
            await run_in_threadpool(self._on_end, run_id, state)
        except Exception:
            # Waiters read the answer themselves; only its copy for later is missing.
            logger.exception("the answer of run %s could not be stored", run_id)
