"""Runs as child processes of this process, where Dagster has no webserver.

One run at a time. Each is the command ``market-pipeline ingest`` with this process's environment,
so it is recorded on the same instance and writes the same receipt. Its log goes to this process's
log. Waiting runs are kept in memory, so they are lost when this process ends.
"""

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from market_pipeline.api.dagster_client import RunState

STOP_SECONDS = 30.0
_MOST_REMEMBERED = 1_000
# All markets, or some: the command's other exit codes are failures.
_SUCCESSES = frozenset({0, 3})
_COMMAND = (str(Path(sys.executable).parent / "market-pipeline"), "ingest")
logger = logging.getLogger("market_pipeline.api")


class ChildRuns:
    """The runs that this process started, and how each stands.

    Options that name the run are added to the command that runs one.
    """

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        self._command = tuple(command)
        self._turn = asyncio.Lock()
        self._states: dict[UUID, RunState] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def find_state(self, run_id: UUID) -> RunState | None:
        """Return the state of a run; None if this process did not start it, or forgot it."""
        return self._states.get(run_id)

    async def count_queued(self) -> int:
        """Return how many runs wait for their turn."""
        return sum(state.status == "QUEUED" for state in self._states.values())

    async def launch_run(self, request: Mapping[str, Any], launch_id: UUID, trigger: str) -> UUID:
        """Let a run wait for its turn, and return its id: the launch's, so that it is found.

        The request has fields of ``IngestionRequest``, which the command calls the same.
        """
        ended = [run_id for run_id, state in self._states.items() if state.has_ended]
        for run_id in ended[: max(len(ended) - _MOST_REMEMBERED, 0)]:
            del self._states[run_id]
        self._states[launch_id] = RunState("QUEUED")
        options = ["--run-id", str(launch_id), "--trigger", trigger]
        for name, value in request.items():
            text = ",".join(value) if isinstance(value, list) else str(value)
            options += [f"--{name.replace('_', '-')}", text]
        task = asyncio.create_task(self._run(launch_id, options))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return launch_id

    async def close(self) -> None:
        """End the run at work as SIGTERM does; what it committed stays, and none begins."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, run_id: UUID, options: Sequence[str]) -> None:
        status = "FAILURE"
        try:
            async with self._turn:
                self._states[run_id] = RunState("STARTED")
                code = await _execute([*self._command, *options])
            status = "SUCCESS" if code in _SUCCESSES else "FAILURE"
            logger.info("run %s: its process ended with %d", run_id, code)
        except OSError as error:
            logger.error("run %s could not be started: %s", run_id, error)  # noqa: TRY400
        finally:
            self._states[run_id] = RunState(status, datetime.now(UTC))


async def _execute(command: Sequence[str]) -> int:
    """Run a command to its end, or until this task is cancelled, and return its exit code."""
    nothing = asyncio.subprocess.DEVNULL
    # In a session of its own: a Ctrl-C reaches this process alone, which ends its child itself.
    process = await asyncio.create_subprocess_exec(
        *command, stdin=nothing, stdout=nothing, start_new_session=True
    )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
