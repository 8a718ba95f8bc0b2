"""What every room's tests may use: a database of their own on a real, embedded PostgreSQL."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from market_pipeline.storage import embedded
from market_pipeline.storage.engine import DatabaseAddress, open_engine
from market_pipeline.storage.schema import upgrade_schema

# A busy machine is no failure of the property.
hypothesis.settings.register_profile("any_speed", deadline=None)
hypothesis.settings.load_profile("any_speed")


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The address of a server that lives as long as the test session."""
    # Not tmp_path: its parents are closed to the account the server runs as when root starts it.
    folder = Path(tempfile.mkdtemp(prefix="mp-tests-", dir="/tmp"))
    folder.chmod(0o755)
    yield embedded.start(folder)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def make_database(server_url: str, source: str) -> Iterator[str]:
    """Yield the address of a copy of a database, which is dropped afterwards."""
    name = f"test_{uuid4().hex}"
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {source}"))
    yield server_url.replace("/market_pipeline?", f"/{name}?")
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a database with the market tables: a copy is quicker than migrations."""
    with make_database(server_url, "template0") as url:
        opened = open_engine(DatabaseAddress(url, is_embedded=True))
        upgrade_schema(opened)
        opened.dispose()
        yield str(make_url(url).database)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, server_url: str) -> Iterator[str]:
    """The address of a database: with the market tables where ``engine`` is used, else empty."""
    is_migrated = "engine" in request.fixturenames
    source = request.getfixturevalue("template") if is_migrated else "template0"
    with make_database(server_url, source) as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a database with the market tables."""
    opened = open_engine(DatabaseAddress(database_url, is_embedded=True))
    yield opened
    opened.dispose()


@pytest.fixture
def project_environment(database_url: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a command that works on this test's database."""
    home = tmp_path / "home"
    home.mkdir()
    root = Path(__file__).resolve().parent.parent
    shutil.copy(root / "dagster.yaml", home)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "DATABASE_URL": database_url, "DAGSTER_HOME": str(home)}
