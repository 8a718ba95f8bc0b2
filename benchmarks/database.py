"""The server that is measured, embedded or DATABASE_URL, and databases of the benchmark's own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine, create_engine, make_url, text

from market_pipeline.settings import read_variable
from market_pipeline.storage.server import embedded
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.schema import upgrade_schema
from market_pipeline.storage.server.urls import build_psql_address, normalise_database_url


@dataclass(frozen=True, slots=True)
class Database:
    """A database of the benchmark's own.

    Attributes:
        url: Its SQLAlchemy address.
        engine: With the product's connection settings.
    """

    url: str
    engine: Engine

    def execute(self, *statements: str) -> None:
        """Run statements outside transactions, as VACUUM and CHECKPOINT want it."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.execute(text(statement))

    def ask(self, query: str) -> float:
        """Return the one number that a query answers."""
        with self.engine.connect() as connection:
            return float(connection.execute(text(query)).scalar_one())

    def list_foreign_keys(self, table: str) -> list[str]:
        """Return the names of a table's foreign keys."""
        query = "SELECT conname FROM pg_constraint WHERE contype = 'f' AND conrelid = :t ::regclass"
        with self.engine.connect() as connection:
            return list(connection.execute(text(query), {"t": table}).scalars())

    def run_psql(self, *arguments: str) -> None:
        """Run psql on this database.

        Raises:
            subprocess.CalledProcessError: It failed.
        """
        address, secrets = build_psql_address(self.url)
        command = [str(embedded.psql_path()), "-X", "-q", "-v", "ON_ERROR_STOP=1", address]
        subprocess.run(  # noqa: S603 - psql itself
            [*command, *arguments], env={**os.environ, **secrets}, check=True
        )


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a folder that the embedded server's account can enter, and remove it in the end."""
    folder = Path(tempfile.mkdtemp(prefix="market-pipeline-bench-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_server(folder: Path) -> str:
    """Return the address of DATABASE_URL, else of an embedded server whose data is in a folder."""
    configured = read_variable("DATABASE_URL")
    if configured:
        return normalise_database_url(configured)
    programs = read_variable("PG_BIN")
    return embedded.start(folder, Path(programs) if programs else None, linger_seconds=0)


@contextmanager
def open_database(server_url: str) -> Iterator[Database]:
    """Create a database with the product's tables, and drop it in the end."""
    name = f"market_pipeline_bench_{uuid4().hex[:12]}"
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
    try:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0"))
        engine = open_engine(DatabaseAddress(url, is_embedded=True))
        upgrade_schema(engine)
        yield Database(url, engine)
        engine.dispose()
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        admin.dispose()


def describe_server(server_url: str) -> str:
    """Return the server's version and the settings that decide how fast it writes."""
    names = ("server_version", "shared_buffers", "max_wal_size", "fsync", "synchronous_commit")
    engine = create_engine(server_url)
    with engine.connect() as connection:
        values = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]
    engine.dispose()
    return f"PostgreSQL {values[0]}, " + ", ".join(
        f"{name} {value}" for name, value in zip(names[1:], values[1:], strict=True)
    )
