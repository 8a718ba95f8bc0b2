"""``market-pipeline db roles``: what each role may do, and that the pipeline runs as the writer."""

import subprocess
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError

from market_pipeline_tests.databases import create_database

Command = Callable[..., "subprocess.CompletedProcess[str]"]
OWNER, WRITER, READER = "owner", "writer", "reader"
STATEMENTS = {
    "SELECT * FROM market_data.market_aggregate": {OWNER, WRITER, READER},
    "SELECT version_num FROM market_data.alembic_version": {OWNER, WRITER, READER},
    "UPDATE market_data.market SET name = name": {OWNER, WRITER},
    "DELETE FROM market_data.fetch_claim": {OWNER, WRITER},
    "INSERT INTO market_data.coverage_hole SELECT * FROM market_data.coverage_hole WHERE false": {
        OWNER, WRITER,
    },
    "SELECT nextval('market_data.dataset_version_seq')": {OWNER, WRITER},
    "CREATE TEMP TABLE incoming (one int)": {OWNER, WRITER, READER},
    "SELECT * FROM dagster.runs": {OWNER, WRITER},
    "DELETE FROM dagster.event_logs WHERE false": {OWNER, WRITER},
    "UPDATE dagster.alembic_version SET version_num = version_num": {OWNER},
    "UPDATE market_data.alembic_version SET version_num = version_num": {OWNER},
    "TRUNCATE market_data.market_snapshot": {OWNER},
    "ALTER TABLE market_data.market ADD COLUMN extra int": {OWNER},
    "CREATE TABLE market_data.extra (one int)": {OWNER},
    "DROP TABLE market_data.market_snapshot": {OWNER},
    "DROP SCHEMA dagster CASCADE": {OWNER},
    "CREATE TABLE public.extra (one int)": set(),
    "CREATE ROLE another": set(),
    "COPY market_data.market TO PROGRAM 'cat'": set(),
}  # fmt: skip


@pytest.fixture
def prefix(server_url: str) -> Iterator[str]:
    """A prefix of this test's own: roles belong to the whole server, and go in the end."""
    name = f"test{uuid4().hex[:10]}"
    yield name
    for role in (OWNER, WRITER, READER):
        administer(server_url, f"DROP ROLE IF EXISTS {name}_{role}")


@pytest.fixture
def database(server_url: str, prefix: str) -> Iterator[str]:
    """An empty database; it goes before the roles that own its tables do."""
    assert prefix
    with create_database(server_url) as address:
        yield address


def administer(server_url: str, statement: str) -> None:
    """Run a statement as the server's own user."""
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(statement))
    admin.dispose()


@pytest.mark.faults
def test_roles_may_what_they_need_and_no_more(
    command: Command, database: str, server_url: str, prefix: str
) -> None:
    """Each role tries every statement; the pipeline then runs as the writer."""
    for _ in range(2):  # the second time nothing is left to do
        done = command("db", "roles", "--prefix", prefix, DATABASE_URL=database)
        assert (done.returncode, done.stderr) == (0, "")

    def become(role: str) -> None:
        # The test server knows one login; whoever comes to this database has the role's rights.
        url = make_url(database)
        setting = f"SET role = '{prefix}_{role}'"
        administer(server_url, f"ALTER ROLE {url.username} IN DATABASE {url.database} {setting}")

    may: dict[str, set[str]] = {statement: set() for statement in STATEMENTS}
    for role in (OWNER, WRITER, READER):
        become(role)
        engine = create_engine(database)
        for statement in STATEMENTS:
            if is_allowed(engine, statement):
                may[statement].add(role)
        engine.dispose()
    assert may == STATEMENTS

    place = {"DATABASE_URL": database}
    read = command("db", "shell", "--", "-Atc", "select count(*) from market_aggregate", **place)
    assert (read.returncode, read.stdout) == (0, "0\n"), read.stderr
    refused = command("ingest", "--lookback-days", "3", **place)
    assert refused.returncode == 1
    become(WRITER)
    ran = command("ingest", "--lookback-days", "3", **place)
    assert ran.returncode == 0, ran.stderr
    assert command("db", "prune", **place).returncode == 0
    refused = command("db", "roles", "--prefix", f"{prefix}x", **place)
    assert refused.returncode == 1
    assert "CREATEROLE" in refused.stderr
    become(OWNER)
    assert command("db", "upgrade", **place).returncode == 0


def is_allowed(engine: Engine, statement: str) -> bool:
    """Try a statement, and take it back.

    Raises:
        ProgrammingError: It failed for another reason than a missing right.
    """
    with engine.connect() as connection:
        try:
            connection.execute(text(statement))
        except ProgrammingError as error:
            if error.orig is None or not isinstance(error.orig, InsufficientPrivilege):
                raise
            return False
        finally:
            connection.rollback()
    return True


def test_a_prefix_that_is_no_word_is_refused(command: Command) -> None:
    """It becomes part of names in SQL."""
    refused = command("db", "roles", "--prefix", 'x"; drop table market')
    assert refused.returncode == 1
    assert "expected letters, digits and _" in refused.stderr
