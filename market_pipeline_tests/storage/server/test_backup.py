"""A backup whose server hangs, or whose tables stay locked, ends in words and loses nothing."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from market_pipeline.domain.errors import StorageError
from market_pipeline.storage.server import backup
from market_pipeline.storage.server.backup import dump_database, replace_file, restore_database
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.watchdog import SECONDS
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.storage.tcp_server import TcpServer
from market_pipeline_tests.system.processes import wait_for

WAIT_SECONDS = 300.0
WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
# More than the pipes between the programs hold.
WIDE = """CREATE TABLE market_data.wide AS
    SELECT repeat('x', 100000) FROM generate_series(1, 20)"""
Act = Callable[[Engine, Path], object]


@pytest.fixture
def opened(tcp_server: TcpServer, tcp_database: str) -> Iterator[Engine]:
    """A database with two tables."""
    url = tcp_server.make_url(tcp_database, scheme="postgresql+psycopg2")
    engine = open_engine(DatabaseAddress(url, is_embedded=False))
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA market_data"))
        connection.execute(text("CREATE TABLE market_data.kept AS SELECT 1 AS one"))
        connection.execute(text(WIDE))
    yield engine
    engine.dispose()


@pytest.fixture
def folder(opened: Engine, tmp_path: Path) -> Path:
    """A folder with a backup of it."""
    dump_database(opened, tmp_path / "backup.dump")
    return tmp_path


@contextmanager
def begin(act: Act, engine: Engine, file: Path) -> Iterator["Future[object]"]:
    """Let a backup wait for a table that another session locks."""
    with ThreadPoolExecutor(1) as pool, engine.connect() as other:
        other.execute(text("LOCK TABLE market_data.kept"))
        yield pool.submit(act, engine, file)


@pytest.mark.parametrize("act", [dump_database, restore_database])
def test_b9_a_backup_ends_when_its_server_hangs(
    act: Act, opened: Engine, tcp_server: TcpServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL's programs would wait for ever; the file and the table are as before."""
    monkeypatch.setattr(backup, "_LOOK_SECONDS", 0.1)
    file = folder / "backup.dump"
    before = file.read_bytes()
    with begin(act, opened, file) as running:
        wait_for(lambda: read_column(opened, WAITING), WAIT_SECONDS, "the lock")
        monkeypatch.setitem(SECONDS, "command", 1.0)
        with tcp_server.suspend(), pytest.raises(OperationalError, match="did not answer for 1 s"):
            running.result(WAIT_SECONDS)
    check_nothing_changed(opened, file, before)


@pytest.mark.parametrize(
    ("act", "words"),
    [(dump_database, "statement timeout"), (restore_database, "lock timeout")],
)
def test_b5_a_backup_does_not_wait_for_ever_for_a_lock(
    act: Act, words: str, opened: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the words that RUNBOOK explains; the file and the table are as before."""
    monkeypatch.setattr(backup, "_LOCK_TIMEOUT", "100ms")
    monkeypatch.setattr(backup, "SERVER_OPTIONS", "-c lock_timeout=100ms")
    file = folder / "backup.dump"
    before = file.read_bytes()
    with begin(act, opened, file) as running, pytest.raises(StorageError, match=words):
        running.result(WAIT_SECONDS)
    check_nothing_changed(opened, file, before)


def test_a_restore_ends_when_psql_is_killed(opened: Engine, folder: Path) -> None:
    """What hands the script over would wait for it for ever; the table is as before."""
    file = folder / "backup.dump"
    before = file.read_bytes()
    with begin(restore_database, opened, file) as running:
        wait_for(lambda: read_column(opened, WAITING), WAIT_SECONDS, "the lock")
        (psql,) = [one for one in psutil.Process().children() if one.name() == "psql"]
        psql.kill()
        with pytest.raises(StorageError, match="pg_restore failed"):
            running.result(WAIT_SECONDS)
    check_nothing_changed(opened, file, before)


def check_nothing_changed(engine: Engine, file: Path, before: bytes) -> None:
    """The table has its row, and the backup is whole and alone."""
    assert read_column(engine, "SELECT one FROM market_data.kept") == [1]
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_backup_is_on_the_disk_before_it_is_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut, the rows of which it is the only copy are in it."""
    file, synced = tmp_path / "backup.dump", []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, file.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with replace_file(file) as draft:
        draft.write_text("rows")
    assert synced == [(file.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
