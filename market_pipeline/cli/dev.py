"""``market-pipeline dev``: Dagster's UI with its daemon, and the API with the dashboard."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

import click

from market_pipeline.domain.errors import PipelineError
from market_pipeline.settings import read_dagster_retention_days

_POLL_SECONDS = 0.2
_STOP_SECONDS = 60.0
_HOST = "127.0.0.1"


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
    click.echo(f"Dagster's UI: http://{_HOST}:{port} (Ctrl-C ends all)")
    click.echo(f"Dashboard and API: http://{api.host}:{api.port}")
    environment = {**os.environ, "DAGSTER_UI_URL": f"http://{_HOST}:{port}"}
    command = str(Path(sys.executable).parent / "market-pipeline")
    commands = (
        [command, "dagster-dev", "-h", _HOST, "-p", str(port)],
        [command, "serve"],
    )
    sys.exit(_run(commands, environment))


def _refuse_taken(port: int, cure: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            raise PipelineError(
                f"Port {port} of {_HOST} cannot be used (another make dev?): {cure}"
            ) from None


def _run(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> int:
    """Run commands until one ends or a signal comes; return the exit code of the first to end."""
    is_told: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        is_told.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    # In sessions of their own: a Ctrl-C reaches this process alone, which passes it on once.
    started = [
        subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603 - ours
        for command in commands
    ]
    try:
        while not is_told and all(one.poll() is None for one in started):
            time.sleep(_POLL_SECONDS)
        return 0 if is_told else next(filter(None, (one.poll() for one in started)), 0)
    finally:
        _stop(started)


def _stop(started: Sequence["subprocess.Popen[bytes]"]) -> None:
    for one in started:
        if one.poll() is None:
            one.terminate()
    for one in started:
        try:
            one.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            one.kill()
