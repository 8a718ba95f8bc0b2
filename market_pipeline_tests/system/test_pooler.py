"""A pooler before the database: refused at the start where it would disable what runs rely on."""

import pytest

from market_pipeline_tests.system.debian import Server
from market_pipeline_tests.system.pooler import run_pooler
from market_pipeline_tests.system.project import make_project

pytestmark = pytest.mark.system


def test_b17_a_pooler_in_transaction_mode_is_refused_with_the_reason(debian_server: Server) -> None:
    """Locks of a session do not last there; nothing says so but what is compared here."""
    name = debian_server.create_database()
    with run_pooler(debian_server, "transaction") as pooled:
        for _ in range(3):
            with make_project(DATABASE_URL=pooled.make_url("postgresql", name)) as project:
                done = project.run("market-pipeline", "db", "status")
            assert done.returncode == 1, done.stdout
            assert "pooler in transaction mode" in done.stderr
            assert "pool_mode = session" in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1


def test_b17_a_pooler_in_session_mode_is_as_good_as_none(debian_server: Server) -> None:
    """A connection has a session of its own for as long as it lives."""
    name = debian_server.create_database()
    with (
        run_pooler(debian_server, "session") as pooled,
        make_project(DATABASE_URL=pooled.make_url("postgresql", name)) as project,
    ):
        done = project.run("market-pipeline", "ingest", "--lookback-days", "3")
        assert done.returncode == 0, done.stderr
