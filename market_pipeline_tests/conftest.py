"""What every room's tests may use: a database of their own on a real, embedded PostgreSQL."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, text

from market_pipeline.storage import embedded
from market_pipeline.storage.engine import DatabaseAddress, open_engine
from market_pipeline.storage.schema import upgrade_schema


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The address of a server that lives as long as the test session."""
    # Not tmp_path: its parents are closed to the account the server runs as when root starts it.
    folder = Path(tempfile.mkdtemp(prefix="mp-tests-", dir="/tmp"))
    folder.chmod(0o755)
    yield embedded.start(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database_url(server_url: str) -> Iterator[str]:
    """The address of an empty database."""
    name = f"test_{uuid4().hex}"
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server_url.replace("/market_pipeline?", f"/{name}?")
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a database with the market tables."""
    opened = open_engine(DatabaseAddress(database_url, is_embedded=True))
    upgrade_schema(opened)
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
