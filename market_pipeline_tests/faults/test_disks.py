"""Full disks under PostgreSQL: for its tables, and for its log of changes."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.schema import upgrade_schema
from market_pipeline_tests.databases import BARS, read_column
from market_pipeline_tests.faults.crash_points import Points
from market_pipeline_tests.faults.installations import Disturbed, go_through
from market_pipeline_tests.faults.test_resources import fill
from market_pipeline_tests.ingestion.installation import MARCH
from market_pipeline_tests.storage.tcp_server import TcpServer, run_tcp_server
from market_pipeline_tests.system.processes import wait_for
from market_pipeline_tests.system.project import make_project
from market_pipeline_tests.test_runbook import Stack
from market_pipeline_tests.test_runbook import stack as stack  # noqa: PLC0414

pytestmark = pytest.mark.system
WAIT_SECONDS = 300.0
INGEST = "market-pipeline ingest"
STORED = f"SELECT count(*)::int FROM {BARS}"
FILL = "SELECT pg_logical_emit_message(true, 'x', repeat('x', 9000000))"
EARLIER = MARCH.replace(day=8)


@contextmanager
def mount(folder: Path, size: str, mode: str = "0700") -> Iterator[None]:
    """Mount a small file system of the folder's owner at a folder."""
    assert os.geteuid() == 0, "mounting takes root"
    owner = folder.stat()
    options = f"size={size},uid={owner.st_uid},gid={owner.st_gid},mode={mode}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def server() -> Iterator[TcpServer]:
    """A server whose disks a test fills."""
    with run_tcp_server() as running:
        yield running


@pytest.fixture
def opened(server: TcpServer) -> Iterator[Engine]:
    """An engine on its database, with the market tables."""
    url = server.make_url(scheme="postgresql+psycopg2")
    engine = open_engine(DatabaseAddress(url, is_embedded=False))
    upgrade_schema(engine)
    yield engine
    engine.dispose()


def execute(server: TcpServer, *statements: str) -> None:
    """Execute statements outside of transactions."""
    url = server.make_url(scheme="postgresql+psycopg2")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@contextmanager
def keep_bars_on_a_full_disk(server: TcpServer) -> Iterator[Callable[[], None]]:
    """Move the bars to a small disk and fill it, until the block ends; yield what makes room."""
    folder = server.place.home / "small"
    folder.mkdir()
    data = (server.place.home / "data").stat()
    os.chown(folder, data.st_uid, data.st_gid)

    def make_room() -> None:
        (folder / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=50m", folder], check=True)

    with mount(folder, "3m"):
        execute(
            server,
            f"CREATE TABLESPACE small LOCATION '{folder}'",
            f"ALTER TABLE {BARS} SET TABLESPACE small",
        )
        fill(folder)
        yield make_room
        execute(server, f"ALTER TABLE {BARS} SET TABLESPACE pg_default", "DROP TABLESPACE small")


def test_b10_a_full_disk_for_tables_loses_the_wave_alone_and_is_told(
    server: TcpServer, opened: Engine
) -> None:
    """The server lives; what was stored stays, and with room again the next run is whole."""
    installation = Disturbed(opened)
    installation.ingest(EARLIER)
    before = read_column(opened, STORED)
    with keep_bars_on_a_full_disk(server) as make_room:
        with pytest.raises(OperationalError, match="the disk of PostgreSQL is full") as caught:
            installation.ingest(MARCH, days=300)
        assert "make room on it" in str(caught.value)
        assert server.process.poll() is None
        assert read_column(opened, STORED) == before
        make_room()
        installation.recover(days=300)


def test_the_runbooks_entry_of_a_full_disk_is_followed(
    stack: Stack, server: TcpServer, opened: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run says what is full, the check finds what grows, and the run with room is whole."""
    title = "The disk is full"
    stack.set(DATABASE_URL=server.make_url())
    stack.type(INGEST)
    with keep_bars_on_a_full_disk(server) as make_room:
        stack.set(INGESTION_LOOKBACK_DAYS="300")
        told = " ".join(stack.type(INGEST, (1,)).split())
        assert "the disk of PostgreSQL is full" in told
        shown = stack.follow(title, "Check")
        assert re.search(rf"100% {server.place.home / 'small'}$", shown, re.MULTILINE)
        assert "market_aggregate" in capfd.readouterr().out
        assert "would be removed" in stack.follow(title, "Act")
        make_room()
        verified = stack.follow(title, "Verify")
        assert ": ok" in verified
        assert "The ledger and the bars agree." in verified
        opened.dispose()


def test_an_embedded_server_that_found_no_room_starts_when_there_is_some(stack: Stack) -> None:
    """Everything is on one disk: commands of the entry work when there is room, and not before."""
    title = "The disk is full"
    with make_project() as project:
        state = project.folder / "state"
        state.mkdir()
        stack.set(DATABASE_URL="", DAGSTER_HOME=str(project.folder), STATE_DIR=str(state))
        with mount(state, "220m", mode="0755"):
            stack.type(INGEST)
            fill(state)
            stack.set(INGESTION_LOOKBACK_DAYS="300")
            assert "the disk of PostgreSQL is full" in stack.type(INGEST, (1,))
            end_embedded(state)
            fill(state)
            assert "(0 MB free there)" in stack.type("market-pipeline db status", (1,))
            assert "100%" in stack.follow(title, "Check", (0, 1))
            (state / "filler").unlink()
            assert "removed" in stack.follow(title, "Act")
            assert "The ledger and the bars agree." in stack.follow(title, "Verify")
            end_embedded(state)


def end_embedded(state: Path) -> None:
    """End an embedded server, as a machine does that is switched off."""
    server = psutil.Process(int((state / "postgres/data/postmaster.pid").read_text().split()[0]))
    server.send_signal(signal.SIGINT)
    server.wait(WAIT_SECONDS)


def test_b11_a_full_disk_for_the_log_stops_the_server_and_loses_nothing_committed(
    server: TcpServer, opened: Engine
) -> None:
    """PostgreSQL panics in the middle of a run; with room again it recovers by its log."""
    installation = Disturbed(opened)
    installation.ingest(EARLIER)
    before = read_column(opened, STORED)
    opened.dispose()
    server.end(signal.SIGINT)
    log = server.place.home / "data" / "pg_wal"
    kept = shutil.copytree(log, server.place.home / "kept")
    with mount(log, "80m"):
        for one in kept.iterdir():
            moved = log / one.name
            shutil.copytree(one, moved) if one.is_dir() else shutil.copy(one, moved)
        for one in log.rglob("*"):
            os.chown(one, log.stat().st_uid, log.stat().st_gid)
        server.start_again()

        def fill_log() -> None:
            with suppress(OperationalError):
                execute(server, *[FILL] * 20)

        run = open_engine(DatabaseAddress(opened.url.render_as_string(False), is_embedded=False))
        Points(run, 25, fill_log)
        with go_through(installation, run), pytest.raises(OperationalError) as caught:
            installation.ingest(MARCH)
        run.dispose()
        assert "what was already committed stays" in str(caught.value)
        wait_for(lambda: server.process.poll() is not None, WAIT_SECONDS, "the server's end")
        subprocess.run(["mount", "-o", "remount,size=600m", log], check=True)
        server.start_again()
        assert read_column(opened, STORED) == before
        installation.recover()
        opened.dispose()
        server.end(signal.SIGINT)
