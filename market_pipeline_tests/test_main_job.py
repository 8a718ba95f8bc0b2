"""The whole, end to end: real commands, a real PostgreSQL, Dagster's storage beside the tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

SCRIPTS = Path(sys.executable).parent
DEFINITIONS = "market_pipeline.definitions"
WINDOW_END = "2024-03-15T12:00:00+00:00"


def run(
    command: list[str], environment: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run one of the environment's commands in a folder without a .env."""
    return subprocess.run(
        [str(SCRIPTS / command[0]), *command[1:]],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def read_rows(engine: Engine, table: str) -> list[tuple[object, ...]]:
    """Return every row with its physical identity."""
    query = text(f"SELECT xmin, t::text FROM market_data.{table} t ORDER BY 2")  # noqa: S608 - ours
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

    shown = run(["market-pipeline", "runs", "--json"], project_environment, tmp_path)

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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--provider", "nobody"], "nobody"),
        (["--symbols", "BTC USD;"], "BTC USD;"),
        (["--lookback-days", "-3"], "36525"),
        (["--window-end", "tomorrow"], "tomorrow"),
        (["--window-end", "2999-01-01"], "2999-01-01"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    arguments: list[str], named: str, project_environment: dict[str, str], tmp_path: Path
) -> None:
    """A wrong value ends in a non-zero exit, its text in the message, and empty tables."""
    refused = run(["market-pipeline", "ingest", *arguments], project_environment, tmp_path)

    assert refused.returncode == 1
    assert named in refused.stderr + refused.stdout


def test_unreachable_database_is_named_without_its_password(
    tmp_path: Path, project_environment: dict[str, str]
) -> None:
    """An address where nobody answers fails quickly, names the variable, hides the password."""
    environment = {**project_environment, "DATABASE_URL": "postgres://me:s3cretpw@127.0.0.1:9/none"}

    refused = run(["market-pipeline", "ingest"], environment, tmp_path)

    assert refused.returncode == 1
    assert "DATABASE_URL" in refused.stderr
    assert "s3cretpw" not in refused.stderr + refused.stdout


def test_definitions_load_in_an_empty_environment(tmp_path: Path) -> None:
    """Neither a server nor a variable is needed to load the code location."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import market_pipeline.definitions"],
        env={}, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr


def test_bad_cron_expression_is_named_at_load(tmp_path: Path) -> None:
    """A schedule that can never run is refused before anything starts."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import market_pipeline.definitions"],
        env={"INGESTION_CRON_EXPRESSION": "every day"}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "INGESTION_CRON_EXPRESSION='every day'" in loaded.stderr
