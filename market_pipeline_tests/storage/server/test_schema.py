"""Migrations: what they make equals tables.py, two at once end well, a misfit is refused."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url

from market_pipeline.domain.errors import StorageError
from market_pipeline.storage.ledgers import metadata
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.schema import (
    ensure_schema,
    make_alembic_config,
    read_newest_revision,
    read_revision,
    upgrade_schema,
)
from market_pipeline_tests.code_copies import VERSIONS, add_migration, copy_package
from market_pipeline_tests.commands import COMMAND_SECONDS, SCRIPTS, run_command
from market_pipeline_tests.databases import DESCRIPTIONS, create_database, read_column
from market_pipeline_tests.storage.tcp_server import ROLE, TcpServer

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def test_alembic_sees_no_difference_to_the_tables(engine: Engine) -> None:
    """What `db revision` would write now is nothing."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    options = {"include_schemas": True, "compare_server_default": True}
    options["include_name"] = lambda name, kind, _: kind != "schema" or name == "market_data"
    options["version_table_schema"] = "market_data"
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


@pytest.mark.parametrize("query", DESCRIPTIONS)
def test_migrations_make_what_the_tables_declare(
    engine: Engine, server_url: str, query: str
) -> None:
    """PostgreSQL describes both alike, with the CHECKs that Alembic does not compare."""
    with create_database(server_url) as address:
        declared = create_engine(address)
        with declared.begin() as connection:
            connection.execute(text("CREATE SCHEMA market_data"))
            metadata.create_all(connection)
        expected = read_column(declared, query)
        declared.dispose()
    assert expected
    assert read_column(engine, query) == expected


@pytest.mark.owner
def test_migrations_can_be_taken_back_and_applied_again(engine: Engine) -> None:
    """A downgrade leaves no table behind that would stop the next upgrade."""
    from alembic import command

    with engine.begin() as connection:
        command.downgrade(make_alembic_config(connection), "base")
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'market_data'"
    assert read_column(engine, tables) == ["alembic_version"]
    assert read_revision(engine) is None

    upgrade_schema(engine)

    assert read_revision(engine) == read_newest_revision()


def test_an_empty_database_is_set_up_without_asking(database_url: str) -> None:
    """Also one of DATABASE_URL: there is nothing in it that could be harmed."""
    opened = open_engine(DatabaseAddress(database_url, is_embedded=False))
    ensure_schema(opened, is_embedded=False)
    assert read_revision(opened) == read_newest_revision()
    opened.dispose()


def test_a_role_without_rights_gets_the_servers_words(
    tcp_server: TcpServer, tcp_database: str
) -> None:
    """What is missing is a GRANT, and the message says on what."""
    admin = create_engine(tcp_server.make_url(tcp_database, scheme="postgresql+psycopg2"))
    with admin.begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS visitor"))
        connection.execute(text("CREATE ROLE visitor LOGIN PASSWORD 'visit0r-pw'"))
    admin.dispose()
    url = make_url(tcp_server.make_url(tcp_database, scheme="postgresql+psycopg2"))
    visitor = create_engine(url.set(username="visitor", password="visit0r-pw"))  # noqa: S106 - above
    with pytest.raises(StorageError, match="nothing was changed: permission denied") as caught:
        ensure_schema(visitor, is_embedded=False)
    visitor.dispose()
    assert ROLE not in str(caught.value)
    assert "visit0r-pw" not in str(caught.value)


def test_i3_two_migrators_at_once_both_end_well(
    project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """The second waits for the first and finds nothing left to do."""
    command = [str(SCRIPTS / "market-pipeline"), "db", "upgrade"]
    both = [
        subprocess.Popen(
            command, env=dict(project_environment), cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [one.communicate(timeout=COMMAND_SECONDS)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert all(f"revision {read_newest_revision()}" in words for words in said)


@pytest.fixture
def newer(project_environment: Mapping[str, str], tmp_path: Path) -> Command:
    """Runs ``market-pipeline`` of a version with one migration more, on the test's database."""
    copy = copy_package(tmp_path / "newer")
    add_migration(copy, read_newest_revision(), "9998")
    environment = {**project_environment, "PYTHONPATH": str(copy)}
    return lambda *arguments: run_command(
        "market-pipeline", *arguments, environment=environment, folder=tmp_path
    )


@pytest.mark.owner
def test_i4_an_old_schema_is_refused_with_the_command_and_a_newer_one_too(
    engine: Engine, newer: Command, project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """One's own database is migrated when asked; code never runs on tables it does not know."""
    refused = newer("runs")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "`market-pipeline db upgrade`" in refused.stderr
    assert read_revision(engine) == read_newest_revision()

    upgraded = newer("db", "upgrade")
    assert upgraded.stdout == "The market tables are at revision 9998\n"

    for arguments in (["ingest"], ["db", "upgrade"]):
        current = run_command(
            "market-pipeline", *arguments, environment=project_environment, folder=tmp_path
        )
        assert current.returncode == 1
        assert current.stderr == (
            "Error: the market tables are at revision 9998, which this version does not know: "
            "upgrade market-pipeline\n"
        )


def test_a_revision_is_written_for_what_differs(
    engine: Engine, project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """Under the next number, beside the others; and not at all where nothing differs."""
    copy = copy_package(tmp_path / "copy")
    environment = {**project_environment, "PYTHONPATH": str(copy)}
    before = sorted((copy / VERSIONS).glob("*.py"))

    def write() -> str:
        revise = ("market-pipeline", "db", "revision", "add a remark")
        done = run_command(*revise, environment=environment, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert write() == "Nothing to write: the database equals tables.py\n"
    assert sorted((copy / VERSIONS).glob("*.py")) == before

    tables = copy / "market_pipeline/storage/tables.py"
    tables.write_text(
        tables.read_text() + '\nmarket.append_column(Column("remark", Text, comment="Free"))\n'
    )
    numbers = [int(one.name[:4]) for one in before if one.name[:4].isdecimal()]
    number = f"{max(numbers) + 1:04d}"
    file = copy / VERSIONS / f"{number}_add_a_remark.py"
    assert write() == f"Wrote {file}\n"
    assert "remark" in file.read_text()
    compile(file.read_text(), str(file), "exec")
    assert read_revision(engine) == read_newest_revision()
