"""Backups between versions of PostgreSQL: up, as a major upgrade, and down to the oldest server."""

import pytest

from market_pipeline_tests.system.debian import Server, find_programs
from market_pipeline_tests.system.processes import wait_for
from market_pipeline_tests.system.project import make_project

pytestmark = pytest.mark.system

STOP_SECONDS = 300.0
SPAN = ("--symbols", "BTC-USD", "--lookback-days", "3", "--window-end", "2024-03-15")


def test_the_embedded_database_is_upgraded_to_the_next_major_version() -> None:
    """The recipe of docs/operations.md: dump with the old programs, move the data, restore."""
    _, programs = find_programs()
    with make_project() as project:
        old = project.with_settings(PG_BIN=str(programs))
        assert old.run("market-pipeline", "ingest", *SPAN).returncode == 0
        file = str(project.folder / "old.dump")
        assert old.run("market-pipeline", "db", "dump", file).returncode == 0
        wait_for(lambda: not project.is_served(), STOP_SECONDS, "the server to stop")
        refused = project.run("market-pipeline", "db", "status")
        assert refused.returncode == 1
        assert "market-pipeline db dump" in refused.stderr
        data = project.folder / "state/postgres"
        data.rename(data.with_name("postgres-old"))

        restored = project.run("market-pipeline", "db", "restore", file)

        assert restored.returncode == 0, restored.stderr
        again = project.run("market-pipeline", "ingest", *SPAN)
        assert again.returncode == 0, again.stderr
        assert " 0 inserted, 0 updated" in again.stderr


def test_a_backup_moves_to_an_older_server_with_a_password(debian_server: Server) -> None:
    """From the embedded server to PostgreSQL 15 over TCP; the password is on no command line."""
    with make_project() as project:
        assert project.run("market-pipeline", "ingest", *SPAN).returncode == 0
        file = str(project.folder / "new.dump")
        assert project.run("market-pipeline", "db", "dump", file).returncode == 0
        url = debian_server.make_url("postgresql", debian_server.create_database())
        moved = project.with_settings(DATABASE_URL=url)
        restored = moved.run("market-pipeline", "db", "restore", file)
        assert (restored.returncode, restored.stderr) == (0, "")
        again = moved.run("market-pipeline", "ingest", *SPAN)
        assert again.returncode == 0, again.stderr
        assert " 0 inserted, 0 updated" in again.stderr
