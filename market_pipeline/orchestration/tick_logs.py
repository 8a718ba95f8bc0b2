"""The output of ticks of sensors and schedules: files that Dagster never removes."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from uuid import UUID

from market_pipeline.settings import find_state_dir


def find_logs_dir() -> Path:
    """Return the folder of everything that runs and ticks print."""
    return find_state_dir() / "dagster" / "logs"


def prune_tick_logs(written_before: datetime) -> int:
    """Remove the files of old ticks, and return how many went; a run's go with the run."""
    old = [file for file in _list_tick_logs() if file.stat().st_mtime < written_before.timestamp()]
    for file in old:
        file.unlink(missing_ok=True)
    return len(old)


def _list_tick_logs() -> Iterator[Path]:
    logs = find_logs_dir()
    for folder in logs.iterdir() if logs.is_dir() else ():
        try:
            UUID(folder.name)  # A run's.
        except ValueError:
            yield from (file for file in folder.rglob("*") if file.is_file())
