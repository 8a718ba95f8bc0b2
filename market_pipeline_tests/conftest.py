"""What every room's tests may use: a database of their own on a real, embedded PostgreSQL."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import hypothesis
import psutil
import psycopg2
import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from market_pipeline.cache import redis_store
from market_pipeline.storage.latest import listener
from market_pipeline.storage.server import embedded
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.schema import upgrade_schema
from market_pipeline_tests.commands import ROOT, run_command
from market_pipeline_tests.readers.writing import write_markets_with_prices

# A busy machine is no failure of the property.
# The same examples each time, unless SEEDS asks to look further: chance turns no suite red.
# Of a mutant any failure will do: looking for the smallest one takes minutes.
_WITHOUT_SHRINKING = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
hypothesis.settings.register_profile(
    "any_speed",
    deadline=None,
    derandomize="SEEDS" not in os.environ,
    phases=_WITHOUT_SHRINKING if "MUTANT" in os.environ else hypothesis.settings().phases,
)
hypothesis.settings.load_profile("any_speed")

PLENTY_BYTES = 6 * 1024**3

# A script's background job ignores SIGINT, and so would every process that a test starts and ends.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the suite run with the rights that `market-pipeline db roles` leaves a writer."""
    parser.addoption("--as-writer", action="store_true", help="use databases as their writer")


@pytest.fixture(autouse=True)
def wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give healthy servers on a busy machine longer than production waits for them."""
    monkeypatch.setattr(redis_store, "TIMEOUT_SECONDS", 10.0)
    monkeypatch.setattr(listener, "LEASE_SECONDS", 60.0)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The address of a server that lives as long as the test session."""
    # Not tmp_path: its parents are closed to the account the server runs as when root starts it.
    parent = find_quick_folder()
    _remove_left(parent)
    folder = Path(tempfile.mkdtemp(prefix=f"mp-tests-{os.getpid()}-", dir=parent))
    folder.chmod(0o755)
    url = embedded.start(folder)
    forget_safety(url)
    yield url
    shutil.rmtree(folder, ignore_errors=True)


def find_quick_folder() -> Path:
    """Return a folder in memory if there is plenty: databases are made in half the time there."""
    memory = Path("/dev/shm")  # noqa: S108 - the folder in it is made by mkdtemp
    is_plenty = memory.is_dir() and shutil.disk_usage(memory).free > PLENTY_BYTES
    return memory if is_plenty else Path("/tmp")  # noqa: S108 - so is that


def _remove_left(parent: Path) -> None:
    """Remove what killed sessions have left: nothing else would free the memory."""
    for left in parent.glob("mp-tests-[0-9]*-*"):
        if not psutil.pid_exists(int(left.name.split("-")[2])):
            shutil.rmtree(left, ignore_errors=True)


def forget_safety(url: str) -> None:
    """Let the server lose everything in a power cut, as nobody needs it afterwards."""
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        _execute(url, f"ALTER SYSTEM SET {setting} = off")
    _execute(url, "ALTER SYSTEM SET max_wal_size = '256MB'")
    _execute(url, "SELECT pg_reload_conf()")


@contextmanager
def make_database(server_url: str, source: str) -> Iterator[str]:
    """Yield the address of a copy of a database, which is dropped afterwards."""
    name = f"test_{uuid4().hex}"
    # Not through the log: without fsync, files are copied in a quarter of the time.
    _execute(server_url, f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY file_copy")
    yield server_url.replace("/market_pipeline?", f"/{name}?")
    _execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(server_url: str, statement: str) -> None:
    """Execute a statement outside of transactions; an engine asks five questions of its own."""
    address = server_url.replace("+psycopg2", "")
    with closing(psycopg2.connect(address)) as connection:
        connection.autocommit = True
        connection.cursor().execute(statement)


@pytest.fixture(scope="session")
def template(server_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a database with the market tables: a copy is quicker than migrations."""
    with make_database(server_url, "template0") as url:
        opened = open_engine(DatabaseAddress(url, is_embedded=True))
        upgrade_schema(opened)
        if request.config.getoption("--as-writer"):
            _give_to_writer(url)
        opened.dispose()
        yield str(make_url(url).database)


def _give_to_writer(url: str) -> None:
    """Do what docs/operations.md tells: create the roles, over Dagster's tables as well."""
    with tempfile.TemporaryDirectory() as home:
        shutil.copy(ROOT / "dagster.yaml", home)
        environment = {**os.environ, "DATABASE_URL": url, "DAGSTER_HOME": home}
        made = run_command(
            "market-pipeline", "db", "roles", environment=environment, folder=Path(home)
        )
        assert made.returncode == 0, made.stderr


@pytest.fixture(scope="session")
def template_with_prices(server_url: str, template: str) -> Iterator[str]:
    """The name of a database with what ``stored`` promises: a copy is quicker than runs."""
    with make_database(server_url, template) as url:
        opened = open_engine(DatabaseAddress(url, is_embedded=True))
        write_markets_with_prices(opened)
        opened.dispose()
        yield str(make_url(url).database)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, server_url: str) -> Iterator[str]:
    """The address of a database: with the market tables where ``engine`` is used, else empty."""
    is_migrated = "engine" in request.fixturenames
    name = "template_with_prices" if "stored" in request.fixturenames else "template"
    source = request.getfixturevalue(name) if is_migrated else "template0"
    with make_database(server_url, source) as url:
        is_owners = request.node.get_closest_marker("owner") is not None
        if is_migrated and not is_owners and request.config.getoption("--as-writer"):
            _sign_in_as_writer(url)
        yield url


def _sign_in_as_writer(url: str) -> None:
    """Let whoever connects to the database have the writer's rights from then on."""
    address, admin = make_url(url), create_engine(url)
    with admin.begin() as connection:
        place = f'"{address.username}" IN DATABASE "{address.database}"'
        connection.execute(text(f"ALTER ROLE {place} SET role = 'market_writer'"))
    admin.dispose()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a database with the market tables."""
    opened = open_engine(DatabaseAddress(database_url, is_embedded=True))
    yield opened
    opened.dispose()


@pytest.fixture
def stored(engine: Engine) -> Engine:
    """Two markets with ten days of bars and prices; Bitcoin with statistics."""
    return engine


@pytest.fixture
def project_environment(database_url: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a command that works on this test's database."""
    return make_environment(database_url, tmp_path)


def make_environment(database_url: str, folder: Path) -> dict[str, str]:
    """Return the environment of a command that works on a database, with a home of its own."""
    home = folder / "home"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "DATABASE_URL": database_url, "DAGSTER_HOME": str(home)}
