"""``market-pipeline dev``: Dagster's UI with its daemon, and the API with the dashboard."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeAlias

import click

from market_pipeline.domain.errors import PipelineError
from market_pipeline.settings import (
    find_state_dir,
    read_dagster_retention_days,
    read_log_level,
    read_variable,
)

if TYPE_CHECKING:
    from market_pipeline.api.configuration import Configuration

_POLL_SECONDS = 0.2
_STOP_SECONDS = 60.0
_ANSWER_SECONDS = 5.0
_HOST = "127.0.0.1"
_Process: TypeAlias = "subprocess.Popen[bytes]"
_SERVICES = "Dagster's UI, its daemon and the dashboard"


@click.command(short_help="Run Dagster's UI, its daemon and the API until interrupted.")
@click.option("--port", default=3000, show_default=True, help="Of Dagster's UI, on loopback.")
def dev(port: int) -> None:
    """Run `dagster dev` and `market-pipeline serve` side by side; when one ends, both do."""
    from market_pipeline.api.configuration import read_configuration
    from market_pipeline.orchestration.tick_logs import prune_tick_logs

    api = read_configuration()
    _refuse_taken(port, f"try make dev PORT={port + 1}")
    _refuse_taken(api.port, f"it is API_PORT: try API_PORT={api.port + 1} make dev")
    if days := read_dagster_retention_days():  # Without the schedule nothing else prunes them.
        prune_tick_logs(datetime.now(UTC) - timedelta(days=days))
    click.echo(f"Starting {_SERVICES}: http://{_HOST}:{port} and http://{api.host}:{api.port}")
    os.environ["DAGSTER_UI_URL"] = f"http://{_HOST}:{port}"  # For both processes.
    command = str(Path(sys.executable).parent / "market-pipeline")
    level = "debug" if read_log_level() == "debug" else "warning"
    commands = (
        [command, "dagster-dev", "-h", _HOST, "-p", str(port), "--log-level", level],
        [command, "serve", "--quiet"],
    )
    sys.exit(_run(commands, port, api))


def _refuse_taken(port: int, cure: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            raise PipelineError(
                f"Port {port} of {_HOST} cannot be used (another make dev?): {cure}"
            ) from None


def _run(commands: Sequence[Sequence[str]], port: int, api: "Configuration") -> int:
    """Run commands until one ends or a signal comes; return the exit code of the first to end."""
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    # In sessions of their own: a Ctrl-C reaches this process alone, which passes it on once.
    started = [
        subprocess.Popen(command, start_new_session=True)  # noqa: S603 - ours
        for command in commands
    ]
    try:
        _watch(started, signals, port, api)
        return 0 if signals else next(filter(None, (process.poll() for process in started)), 0)
    finally:
        _stop(started)
        why = "Ended" if signals else "One part ended by itself, and so the others were ended"
        _show(f"{why}: {_SERVICES}. What is stored stays.\n")


def _watch(
    started: Sequence[_Process], signals: Sequence[int], port: int, api: "Configuration"
) -> None:
    """Wait for a signal or an end; when all of it answers, show where it is."""
    begun, screen = time.monotonic(), None
    while not signals and all(process.poll() is None for process in started):
        if screen is None:
            part = "Dagster's UI" if _is_served(api) else "PostgreSQL and the dashboard"
            _show_seconds(f"Starting {part}", begun)
            screen = asyncio.run(_build_screen(port, api))
            if screen is not None:
                _show(screen)
        time.sleep(_POLL_SECONDS)


async def _build_screen(port: int, api: "Configuration") -> str | None:
    """Return the screen that ends the start; None while something does not answer."""
    from market_pipeline.api.dagster_client import DagsterClient
    from market_pipeline.api.problems import ProblemError

    client = DagsterClient(f"http://{_HOST}:{port}")
    try:
        return describe(port, api, await client.read_schedule()) if _is_served(api) else None
    except ProblemError:
        return None
    finally:
        await client.close()


def _is_served(api: "Configuration") -> bool:
    try:
        socket.create_connection((api.host, api.port), _ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def describe(port: int, api: "Configuration", schedule: tuple[str, bool] | None) -> str:
    """Return what there is, where, and how to go on.

    The schedule is its cron expression and whether it is on; None: Dagster knows none.
    """
    from market_pipeline.storage.server.urls import hide_password

    url = read_variable("DATABASE_URL")
    lines = {
        "Dagster's UI": f"http://{_HOST}:{port}",
        "Dashboard": f"http://{api.host}:{api.port}",
        "Schedule": _describe_schedule(schedule),
        "Data": hide_password(url) if url else f"PostgreSQL in {find_state_dir()}",
        "Look into it": "market-pipeline db shell",
        "End": "Ctrl-C",
    }
    return "".join(f"\n  {name:<13} {text}" for name, text in lines.items()) + "\n\n"


def _describe_schedule(schedule: tuple[str, bool] | None) -> str:
    if schedule is None:
        return "unknown: Dagster could not load the project, its page Deployment says why"
    cron, is_on = schedule
    switch = f"({cron}, UTC); ingest_schedule under Automation in the UI"
    if is_on:
        return f"on {switch} turns it off"
    return f"off {switch}\n{' ' * 16}turns it on, or INGESTION_SCHEDULE_ENABLED=true in .env"


def _show_seconds(doing: str, begun: float) -> None:
    """Show on a terminal that it goes on; the next line is written over it."""
    if sys.stdout.isatty():
        _show(f"{doing}: {time.monotonic() - begun:.0f} s\r")


def _show(text: str) -> None:
    """Write over what the line shows."""
    erase = "\r\x1b[K" if sys.stdout.isatty() else ""
    click.echo(f"{erase}{text}", nl=False)


def _stop(started: Sequence[_Process]) -> None:
    begun = time.monotonic()
    for process in started:
        if process.poll() is None:
            process.terminate()
    while any(process.poll() is None for process in started):
        _show_seconds("Ending", begun)
        time.sleep(_POLL_SECONDS)
        if time.monotonic() - begun > _STOP_SECONDS:
            for process in started:
                process.kill()
