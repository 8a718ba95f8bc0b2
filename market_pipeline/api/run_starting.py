"""Starting runs and reading their state: in Dagster's webserver, or in this process.

A webserver that listens starts runs under Dagster's queue. If no process listens at its address,
this process starts them.
"""

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine

from market_pipeline.api.child_runs import ChildRuns
from market_pipeline.api.dagster_client import DagsterClient, RunState, WebserverMissingError
from market_pipeline.api.problems import ProblemError
from market_pipeline.storage.runs.claims import find_living
from market_pipeline.storage.runs.receipts import read_run_end

MAX_QUEUED_RUNS = 25
_QUEUE_RETRY_SECONDS = 30


class _Starter(Protocol):
    async def count_queued(self) -> int: ...

    async def launch_run(self, symbols: Sequence[str], launch_id: UUID, trigger: str) -> UUID: ...


class RunStarter:
    """Starts runs of the ingest job, and knows how they stand.

    Args:
        engine: The database, where receipts are. dagster: The webserver, if there is one.
        children: What starts runs without it.
    """

    def __init__(self, engine: Engine, dagster: DagsterClient, children: ChildRuns) -> None:
        self._engine, self._dagster, self._children = engine, dagster, children

    async def find_run(self, launch_id: UUID) -> UUID | None:
        """Return the run that a launch came to before; None when there is none."""
        if self._children.find_state(launch_id) is not None:
            return launch_id
        try:
            return await self._dagster.find_run(launch_id)
        except WebserverMissingError:
            recorded = await run_in_threadpool(_read_recorded_state, self._engine, launch_id)
            return None if recorded is None else launch_id

    async def launch_run(self, symbols: Sequence[str], launch_id: UUID, trigger: str) -> UUID:
        """Put a run into a queue and return its id.

        Raises:
            ProblemError: 429: too many runs wait already; 503: the webserver listens and does not
                answer, or nobody would take the run out of its queue.
        """
        try:
            return await _launch_by(self._dagster, symbols, launch_id, trigger)
        except WebserverMissingError:
            return await _launch_by(self._children, symbols, launch_id, trigger)

    async def read_state(self, run_id: UUID) -> RunState | None:
        """Return how a run stands; None for a run that Dagster does not know.

        Raises:
            ProblemError: The webserver does not answer, and the run has written nothing by which
                it could be told.
        """
        own = self._children.find_state(run_id)
        if own is not None:
            return own
        try:
            return await self._dagster.read_state(run_id)
        except ProblemError:
            recorded = await run_in_threadpool(_read_recorded_state, self._engine, run_id)
            if recorded is None:
                raise
            return recorded

    async def close(self) -> None:
        """End what this process runs itself, and give connections back."""
        await self._children.close()
        await self._dagster.close()


async def _launch_by(
    starter: _Starter, symbols: Sequence[str], launch_id: UUID, trigger: str
) -> UUID:
    waiting = await starter.count_queued()
    if waiting >= MAX_QUEUED_RUNS:
        detail = f"{waiting} runs already wait in the queue: try again when some have ended"
        retry = {"Retry-After": str(_QUEUE_RETRY_SECONDS)}
        raise ProblemError(429, "Too Many Requests", detail, retry)
    return await starter.launch_run(symbols, launch_id, trigger)


def _read_recorded_state(engine: Engine, run_id: UUID) -> RunState | None:
    """Return how a run stands by its receipt and the life it shows; None when it shows neither."""
    with engine.connect() as connection:
        if ended := read_run_end(connection, run_id):
            ended_at, outcome = ended
            return RunState("FAILURE" if outcome == "failed" else "SUCCESS", ended_at)
        return RunState("STARTED") if find_living(connection, [run_id]) else None
