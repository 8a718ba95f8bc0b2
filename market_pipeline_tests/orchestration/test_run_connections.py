"""Dagster's connections: kept while a run lasts, none elsewhere, and right whatever happens."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, Pool, create_engine, event, text

from market_pipeline.orchestration.dagster_internals import list_unpooled_storages
from market_pipeline.orchestration.run_connections import keep_connection
from market_pipeline.storage.server.watchdog import DAGSTER, OURS
from market_pipeline_tests.commands import ROOT, run_command
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.system.processes import wait_for

EXECUTE = ("dagster", "job", "execute", "-m", "market_pipeline.definitions", "-j", "ingest")
SESSIONS = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
OPEN = f"SELECT pid FROM pg_stat_activity WHERE application_name = '{DAGSTER}'"
OPEN_HERE = f"{OPEN} AND datname = current_database()"


@pytest.fixture
def stored(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance as dagster.yaml describes it, on this test's database."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    with dg.DagsterInstance.from_config(str(ROOT)) as instance:
        yield instance


def list_open(database_url: str) -> list[object]:
    """Return the server's processes that Dagster's connections have."""
    return read_column(database_url, OPEN_HERE)


def wait_until_open(database_url: str, expected: list[object]) -> None:
    """Wait until these processes are left: one ends a moment after its connection was closed."""
    wait_for(lambda: list_open(database_url) == expected, 300, f"the processes {expected} alone")


def end_connections(database_url: str) -> None:
    """End Dagster's connections, as a server does that is started anew."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        found = OPEN_HERE.replace("pid", "pg_terminate_backend(pid, 5000)", 1)
        connection.execute(text(found))
    engine.dispose()


def test_one_connection_answers_while_a_run_lasts(
    stored: dg.DagsterInstance, database_url: str
) -> None:
    """Every storage of the instance uses it, and the end closes it."""
    wait_until_open(database_url, [])
    with keep_connection(stored):
        stored.get_runs()
        (first,) = list_open(database_url)
        stored.all_asset_keys()
        stored.all_instigator_state()
        stored.get_runs()
        assert list_open(database_url) == [first]
    wait_until_open(database_url, [])
    stored.get_runs()
    wait_until_open(database_url, [])


def test_what_dagster_asks_about_its_tables_is_asked_once(stored: dg.DagsterInstance) -> None:
    """It looks at its columns before each of many questions."""
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if "pg_attribute" in statement:
            asked.append(statement)

    with keep_connection(stored):
        event.listen(Engine, "before_cursor_execute", note)
        try:
            counts = [len(asked) for _ in range(3) if stored.get_run_records() == []]
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    assert counts == [1, 1, 1]


def test_a_run_within_a_run_leaves_the_connection_to_the_outer_one(
    stored: dg.DagsterInstance, database_url: str
) -> None:
    """Its end is not the end of the other."""
    wait_until_open(database_url, [])
    with keep_connection(stored):
        with keep_connection(stored):
            stored.get_runs()
            (kept,) = list_open(database_url)
        stored.get_runs()
        assert list_open(database_url) == [kept]


def test_a_connection_that_was_lost_is_opened_anew(
    stored: dg.DagsterInstance, database_url: str
) -> None:
    """A server that was started anew in the middle of a run does not end the run."""
    wait_until_open(database_url, [])
    with keep_connection(stored):
        stored.get_runs()
        (lost,) = list_open(database_url)
        end_connections(database_url)
        assert stored.get_runs() == []
        (opened,) = list_open(database_url)
        assert opened != lost


def test_threads_do_not_share_a_connection(stored: dg.DagsterInstance, database_url: str) -> None:
    """Who asks while another is answered gets a connection that is closed after use."""
    with keep_connection(stored):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: stored.get_runs(), range(64)))
        assert answers == [[]] * 64
        wait_for(lambda: len(list_open(database_url)) == 1, 300, "all but one to be closed")
        (kept,) = list_open(database_url)
        # And it was not merely the last to end: it is used again.
        assert stored.get_runs() == []
        wait_until_open(database_url, [kept])


def test_a_forked_child_leaves_its_parents_connection_alone(
    stored: dg.DagsterInstance, database_url: str
) -> None:
    """Two processes on one connection would read each other's answers."""
    wait_until_open(database_url, [])
    with keep_connection(stored):
        stored.get_runs()
        before = list_open(database_url)
        assert len(before) == 1
        assert _succeeds_in_a_fork(stored.get_runs)
        stored.get_runs()
        wait_until_open(database_url, before)


def _succeeds_in_a_fork(act: Callable[[], object]) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def test_an_instance_whose_tables_are_there_does_not_look_for_them(
    stored: dg.DagsterInstance,
) -> None:
    """Every command, daemon and code server opens one, and asks our own question first."""
    opened: list[object] = []

    def note(connection: Any, _record: object) -> None:
        opened.append(connection.info.dsn_parameters["application_name"])

    event.listen(Pool, "connect", note)
    try:
        with dg.DagsterInstance.from_config(str(ROOT)) as another:
            assert opened == [OURS]
            assert another.get_runs() == stored.get_runs()
    finally:
        event.remove(Pool, "connect", note)


def test_an_instance_without_postgresql_stays_as_it_is(instance: dg.DagsterInstance) -> None:
    """On SQLite, and in memory as where a job is executed in Python."""
    for other in (instance, dg.DagsterInstance.ephemeral()):
        assert list_unpooled_storages(other) == []
        with keep_connection(other):
            assert other.get_runs() == []


@pytest.mark.usefixtures("stored")  # Sets Dagster's tables up.
@pytest.mark.parametrize(
    ("executor", "most"),
    [("in_process", 100), pytest.param("multiprocess", 150, marks=pytest.mark.faults)],
)
def test_a_run_opens_few_connections(
    executor: str, most: int, project_environment: dict[str, str], engine: Engine, tmp_path: Path
) -> None:
    """There were two hundred in one process, and twice as many with a process for each step."""
    environment = {
        **project_environment,
        "INGESTION_MARKETS": "BTC-USD",
        "INGESTION_LOOKBACK_DAYS": "2",
        "INGESTION_EXECUTOR": executor,
    }
    (before,) = read_column(engine, SESSIONS)
    done = run_command(*EXECUTE, environment=environment, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (after,) = read_column(engine, SESSIONS)
    assert int(str(after)) - int(str(before)) <= most
