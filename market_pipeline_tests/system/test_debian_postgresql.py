"""The main job on somebody else's PostgreSQL: Debian's, over TCP, with a password."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from market_pipeline_tests.system.debian import PASSWORD, Server
from market_pipeline_tests.system.project import make_project, read_query

pytestmark = pytest.mark.system

JOB = ("dagster", "job", "execute", "-m", "market_pipeline.definitions", "-j", "ingest")
WINDOW_END = "2024-03-15T12:00:00+00:00"
MARKET_TABLES = (
    "market",
    "market_aggregate",
    "market_comparison",
    "market_roi_statistic",
    "market_snapshot",
)
SPELLINGS = ("postgres", "postgresql", "postgresql+psycopg2")


def read_rows(server: Server, database: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all market tables' rows with their physical identity."""
    query = "SELECT xmin, ctid, t::text FROM market_data.{} t ORDER BY 3"
    url = server.make_url("postgresql", database)
    return {table: read_query(url, query.format(table)) for table in MARKET_TABLES}


@pytest.fixture(params=SPELLINGS)
def database(request: pytest.FixtureRequest, debian_server: Server) -> tuple[str, str]:
    """An empty database: its name, and its address in one of the spellings."""
    name = debian_server.create_database()
    return name, debian_server.make_url(request.param, name)


def test_job_execute_fills_a_foreign_database_and_twice_changes_nothing(
    debian_server: Server, database: tuple[str, str]
) -> None:
    """However DATABASE_URL is spelt, all lands there, and a repetition rewrites not one row."""
    name, url = database
    with make_project(DATABASE_URL=url) as project:
        config = write_config(project.folder)
        first = project.run(*JOB, "-c", str(config))
        assert first.returncode == 0, first.stderr
        before = read_rows(debian_server, name)
        assert all(before.values())

        second = project.run(*JOB, "-c", str(config))

        assert second.returncode == 0, second.stderr
        receipt = project.read("runs", "show")
        assert not project.is_served()
    assert [row["inserted"] + row["updated"] for row in receipt["tables"]] == [0] * 5
    assert read_rows(debian_server, name) == before
    plain = debian_server.make_url("postgresql", name)
    runs = read_query(plain, "SELECT pipeline_name, status FROM dagster.runs")
    assert runs == [("ingest", "SUCCESS")] * 2


def write_config(folder: Path) -> Path:
    """Write the run config that holds a job's clock still."""
    file = folder / "run.yaml"
    content = {"resources": {"request": {"config": {"window_end": WINDOW_END}}}}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def test_schemas_keep_to_themselves(debian_server: Server) -> None:
    """Dagster's tables lie in schema dagster, ours in market_data, and none in public."""
    name = debian_server.create_database()
    with make_project(DATABASE_URL=debian_server.make_url("postgres", name)) as project:
        ingested = project.run("market-pipeline", "ingest", "--window-end", WINDOW_END)
    assert ingested.returncode == 0, ingested.stderr

    query = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^(pg_|information_)'"
    found = read_query(debian_server.make_url("postgresql", name), query)

    assert {schema for schema, _ in found} == {"dagster", "market_data"}
    assert {("dagster", "runs"), ("dagster", "event_logs"), ("dagster", "snapshots")} <= {*found}
    assert {("market_data", table) for table in MARKET_TABLES} <= {*found}


@pytest.mark.parametrize("command", [("market-pipeline", "ingest"), JOB])
def test_b16_wrong_password_is_refused_without_showing_it(
    command: tuple[str, ...], debian_server: Server
) -> None:
    """The server's refusal names DATABASE_URL and the role; neither password is in any output."""
    wrong = "wr0ng-s3cret"
    name = debian_server.create_database()
    url = debian_server.make_url("postgresql", name, wrong)
    with make_project(DATABASE_URL=url) as project:
        refused = project.run(*command)

    said = refused.stdout + refused.stderr
    assert refused.returncode == 1
    assert "DATABASE_URL" in said
    assert 'password authentication failed for user "analyst"' in said
    assert wrong not in said
    assert PASSWORD not in said
