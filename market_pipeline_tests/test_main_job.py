"""The whole, end to end: real commands, a real PostgreSQL, Dagster's storage beside the tables."""

import json
import subprocess
import sys
from pathlib import Path

from sqlalchemy import Engine, create_engine, text

from market_pipeline_tests.commands import COMMAND_SECONDS
from market_pipeline_tests.second_opinion import check_numbers

SCRIPTS = Path(sys.executable).parent
DEFINITIONS = "market_pipeline.definitions"
WINDOW_END = "2024-03-15T12:00:00+00:00"


def run(
    command: list[str], environment: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run one of the environment's commands in a folder without a .env."""
    return subprocess.run(
        [str(SCRIPTS / command[0]), *command[1:]],
        env=environment, cwd=folder, capture_output=True, text=True,
        timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip


def read_rows(engine: Engine, table: str) -> list[tuple[object, ...]]:
    """Return every row with its physical identity."""
    query = text(f"SELECT xmin, t::text FROM market_data.{table} t ORDER BY 2")
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query)]


def test_main_job_fills_every_table_and_twice_changes_nothing(
    project_environment: dict[str, str], tmp_path: Path
) -> None:
    """At a fixed window end a second run inserts, updates and rewrites not one row."""
    ingest = ["market-pipeline", "ingest", "--window-end", WINDOW_END, "--json"]
    first = run(ingest, project_environment, tmp_path)
    assert first.returncode == 0, first.stderr
    engine = create_engine(project_environment["DATABASE_URL"])
    tables = [
        "market",
        "market_aggregate",
        "market_snapshot",
        "market_comparison",
        "market_roi_statistic",
    ]
    before = {table: read_rows(engine, table) for table in tables}
    assert all(before.values())

    second = run(ingest, project_environment, tmp_path)

    assert second.returncode == 0, second.stderr
    receipt = json.loads(second.stdout)
    assert [row["inserted"] + row["updated"] for row in receipt["tables"]] == [0] * 5
    assert {table: read_rows(engine, table) for table in tables} == before
    assert check_numbers(engine) > 100
    engine.dispose()


def test_dagster_job_execute_runs_the_same_job(
    project_environment: dict[str, str], tmp_path: Path
) -> None:
    """Dagster's command and ours write to the same database, and both runs are recorded there."""
    executed = run(
        ["dagster", "job", "execute", "-m", "market_pipeline.definitions", "-j", "ingest"],
        project_environment, tmp_path,
    )  # fmt: skip
    assert executed.returncode == 0, executed.stderr

    shown = run(["market-pipeline", "runs", "show", "--json"], project_environment, tmp_path)

    assert json.loads(shown.stdout)["outcome"] == "ok"
    engine = create_engine(project_environment["DATABASE_URL"])
    with engine.connect() as connection:
        recorded = connection.execute(text("SELECT status FROM dagster.runs")).scalars().all()
    assert recorded == ["SUCCESS"]
    engine.dispose()


def test_snapshots_can_be_materialised_alone(
    project_environment: dict[str, str], tmp_path: Path
) -> None:
    """An asset reads its inputs from PostgreSQL, also before they were ever materialised."""
    materialised = run(
        ["dagster", "asset", "materialize", "-m", DEFINITIONS, "--select", "market_snapshots"],
        project_environment, tmp_path,
    )  # fmt: skip

    assert materialised.returncode == 0, materialised.stderr
    engine = create_engine(project_environment["DATABASE_URL"])
    with engine.connect() as connection:
        assert (
            connection.execute(text("SELECT count(*) FROM market_data.market_snapshot")).scalar()
            == 3
        )
    engine.dispose()
