"""A database that hangs, dies or is full in the middle of a run: it ends with one sentence."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.schema import upgrade_schema
from market_pipeline_tests.cli.conftest import Command
from market_pipeline_tests.conftest import make_environment
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.storage.tcp_server import TcpServer, run_tcp_server
from market_pipeline_tests.system.processes import Background, run_in_background, wait_for

# The same command with deadlines that a test can wait for.
IMPATIENT = """
import sys
from market_pipeline.storage.server import watchdog
watchdog.SECONDS.update(command=float(sys.argv.pop(1)), bulk=6.0)
from market_pipeline.cli.main import main
main()
"""
# Half of the calls are refused for a second, so that there is a middle.
SLOW = {"MOCK_FAULTS": "*:429=1 50%", "INGESTION_LOOKBACK_DAYS": "400"}
END_SECONDS = 120.0
WAIT_SECONDS = 300.0
"""However busy the machine is."""
BARS = "SELECT 1 FROM market_data.market_aggregate LIMIT 1"


@pytest.fixture
def server() -> Iterator[TcpServer]:
    """A server of the test's own, with the market tables."""
    with run_tcp_server() as running:
        engine = open_engine(DatabaseAddress(address_of(running), is_embedded=False))
        upgrade_schema(engine)
        engine.dispose()
        yield running


def address_of(server: TcpServer) -> str:
    """Return the address under which SQLAlchemy opens it."""
    return server.make_url(scheme="postgresql+psycopg2")


def begin_run(
    server: TcpServer, folder: Path, deadline_seconds: float
) -> AbstractContextManager[Background]:
    """Start a run whose calls have this deadline."""
    environment = {**make_environment(server.make_url(), folder), **SLOW}
    command = [sys.executable, "-c", IMPATIENT, str(deadline_seconds), "ingest"]
    return run_in_background(command, environment, folder)


def wait_for_bars(engine: Engine, run: Background) -> None:
    """Wait for the first commit."""
    wait_for(lambda: read_column(engine, BARS), WAIT_SECONDS, "the first bars", run)


def read_end(run: Background) -> str:
    """Wait for the command's end and return what it printed; it failed in words."""
    assert run.process.wait(WAIT_SECONDS) == 1, run.read_last_words()
    said = run.read_log()
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


@pytest.mark.faults
def test_b9_a_run_on_a_server_that_hangs_ends_with_the_deadline(
    server: TcpServer, tmp_path: Path
) -> None:
    """Within thirty seconds of it, though Dagster repeats each attempt to record anything."""
    engine = create_engine(address_of(server))
    with begin_run(server, tmp_path, 3) as run:
        wait_for_bars(engine, run)
        with server.suspend():
            begun = time.monotonic()
            assert "it hangs, or the network does: restart it" in read_end(run)
    assert time.monotonic() - begun < END_SECONDS
    engine.dispose()


@pytest.mark.faults
def test_a_run_on_a_server_that_hangs_ends_when_it_is_told_to(
    server: TcpServer, tmp_path: Path
) -> None:
    """SIGTERM counts though the process waits for the server."""
    engine = create_engine(address_of(server))
    with begin_run(server, tmp_path, 600) as run:
        wait_for_bars(engine, run)
        with server.suspend():
            run.process.send_signal(signal.SIGTERM)
            assert run.process.wait(WAIT_SECONDS) == 1, run.read_last_words()
            # Not all of it: psycopg2 prints what a signal raises while it reads a message.
            said = run.read_log().strip().splitlines()[-1]
    assert "it hangs, or the network does: restart it" in said
    engine.dispose()


@pytest.mark.faults
def test_a_run_whose_server_dies_says_so(server: TcpServer, tmp_path: Path) -> None:
    """The cause and the cure, and no frames of the libraries."""
    engine = create_engine(address_of(server))
    with begin_run(server, tmp_path, 600) as run:
        wait_for_bars(engine, run)
        engine.dispose()
        server.process.send_signal(signal.SIGQUIT)
        assert "check the address, and that the server runs" in read_end(run)


REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'could not extend file "base/5/1": No space left on device'
        USING ERRCODE = 'disk_full';
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON market_data.market_aggregate
    FOR EACH STATEMENT EXECUTE FUNCTION refuse()
"""
STEP_ERRORS = """SELECT event FROM dagster.event_logs WHERE dagster_event_type = 'STEP_FAILURE'"""


def test_a_full_disk_is_told_in_a_sentence(command: Command, engine: Engine) -> None:
    """At the command and in the step's error: the cause, the server's words, the cure."""
    with engine.begin() as connection:
        connection.execute(text(REFUSE))
    done = command("ingest", INGESTION_MARKETS="BTC-USD", INGESTION_LOOKBACK_DAYS="2")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = (
        'the disk of PostgreSQL is full (could not extend file "base/5/1": No space left on device'
    )
    lines = map(json.loads, done.stderr.splitlines())
    (line,) = [one["event"] for one in lines if one["level"] == "error"]
    assert told in line
    assert "make room on it, then run again; what was already committed stays" in line
    assert "INSERT INTO" not in line
    (event,) = read_column(engine, STEP_ERRORS)
    assert "make room on it" in str(event)
