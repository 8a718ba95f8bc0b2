"""The roles on Debian's PostgreSQL, by logins with passwords, as docs/operations.md has them."""

import contextlib
from urllib.parse import quote

import psycopg2
import pytest
from psycopg2.errors import InsufficientPrivilege

from market_pipeline_tests.system.debian import Server
from market_pipeline_tests.system.project import make_project, read_query

pytestmark = pytest.mark.system

SPAN = ("--symbols", "BTC-USD", "--lookback-days", "3", "--window-end", "2024-03-15")
PASSWORD = "another: secret?"  # noqa: S105 - of a server that lives for a minute
LOGINS = """
    CREATE ROLE pipeline LOGIN PASSWORD '{password}' IN ROLE market_writer;
    CREATE ROLE analyst_login LOGIN PASSWORD '{password}' IN ROLE market_reader;
    CREATE ROLE migrator LOGIN PASSWORD '{password}' IN ROLE market_owner;
    ALTER ROLE migrator SET role = market_owner;"""


def sign_in(server: Server, login: str, database: str) -> str:
    """Return the address for a login."""
    secret = quote(PASSWORD, safe="")
    return f"postgresql://{login}:{secret}@127.0.0.1:{server.port}/{database}"


def test_the_main_job_runs_as_the_writer_and_migrations_as_the_owner(
    debian_server: Server,
) -> None:
    """The writer's and the owner's own logins; the reader reads and cannot write."""
    database = debian_server.create_database()
    admin = debian_server.make_url("postgresql", database)
    with make_project(DATABASE_URL=admin) as project:
        created = project.run("market-pipeline", "db", "roles")
        assert (created.returncode, created.stderr) == (0, "")
        with contextlib.closing(psycopg2.connect(admin)) as connection:
            connection.cursor().execute(LOGINS.format(password=PASSWORD))
            connection.commit()

        writer = project.with_settings(DATABASE_URL=sign_in(debian_server, "pipeline", database))
        ran = writer.run(
            "dagster", "job", "execute", "-m", "market_pipeline.definitions", "-j", "ingest"
        )
        assert ran.returncode == 0, ran.stderr[-2_000:]
        assert writer.run("market-pipeline", "ingest", *SPAN).returncode == 0
        owner = project.with_settings(DATABASE_URL=sign_in(debian_server, "migrator", database))
        assert owner.run("market-pipeline", "db", "upgrade").returncode == 0

        reader = sign_in(debian_server, "analyst_login", database)
        assert read_query(reader, "SELECT count(*) > 0 FROM market_data.market_aggregate")[0][0]
        with pytest.raises(InsufficientPrivilege):
            read_query(reader, "DELETE FROM market_data.market_aggregate RETURNING 1")
