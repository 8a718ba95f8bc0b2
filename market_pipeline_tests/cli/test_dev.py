"""``market-pipeline dev``: what it says of the schedule and the data, and how it ends."""

import os
import sys
from pathlib import Path

import pytest

from market_pipeline.api.configuration import Configuration
from market_pipeline.cli import dev
from market_pipeline_tests.terminal import run_in_terminal

OFF, ON = ("0 * * * *", False), ("0 * * * *", True)


def show(schedule: tuple[str, bool] | None) -> str:
    """Return the screen in one line."""
    return " ".join(dev.describe(3000, Configuration(), schedule).split())


def test_the_screen_says_how_to_turn_the_schedule_on_or_off() -> None:
    """As Dagster has it: a switch in its UI counts more than the setting."""
    switch = "(0 * * * *, UTC); ingest_schedule under Automation in the UI turns it"
    assert f"Schedule off {switch} on, or INGESTION_SCHEDULE_ENABLED=true in .env" in show(OFF)
    assert f"Schedule on {switch} off" in show(ON)
    assert "Schedule unknown: Dagster could not load the project" in show(None)


def test_the_screen_says_where_data_lives_without_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder of the embedded server, or the address of the other one."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    assert f"Data PostgreSQL in {tmp_path} Look" in show(OFF)
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:s3cret@db.example/prices")
    assert "@db.example/prices" in show(OFF)
    assert "s3cret" not in show(OFF)


def test_the_screen_fits_80_columns() -> None:
    """It is read on any terminal."""
    assert max(map(len, dev.describe(65_535, Configuration(), OFF).splitlines())) <= 80


def test_when_one_part_ends_so_do_the_others(tmp_path: Path) -> None:
    """With its exit code, and a sentence that says which case it was."""
    (tmp_path / "run.py").write_text(
        "import sys; from market_pipeline.api.configuration import Configuration as C\n"
        "from market_pipeline.cli import dev\n"
        "parts = [['sh', '-c', 'exit 3'], ['sleep', '60']]\n"
        "sys.exit(dev._run(parts, 1, C(port=1)))\n"
    )
    shown = run_in_terminal([sys.executable, "run.py"], os.environ, tmp_path)
    assert shown.code == 3
    assert shown.screen == (
        "One part ended by itself, and so the others were ended: "
        "Dagster's UI, its daemon and the dashboard. What is stored stays."
    )
