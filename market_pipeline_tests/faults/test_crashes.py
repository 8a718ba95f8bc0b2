"""Processes and servers that die at any point of a run, drawn by a seed."""

import signal
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import OperationalError

from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.schema import upgrade_schema
from market_pipeline_tests.databases import BARS, create_database, read_column
from market_pipeline_tests.faults.crash_points import (
    SEEDS,
    Points,
    draw_point,
)
from market_pipeline_tests.faults.installations import Disturbed, go_through
from market_pipeline_tests.faults.kills.theatre import (
    WORK,
    Played,
    Theatre,
    compare,
)
from market_pipeline_tests.faults.refused_calls import refuse_fdatasync
from market_pipeline_tests.ingestion.installation import MARCH
from market_pipeline_tests.storage.tcp_server import TcpServer, kill_backend, run_tcp_server
from market_pipeline_tests.system.processes import wait_for

WAIT_SECONDS = 300.0
FEWEST_POINTS = 40
"""So many at least has a run that adds a week to what is stored."""
LAST = f"{BARS} WHERE is_final AND interval = '1h' ORDER BY open_time DESC LIMIT 1"
SPOILING = (
    f"ALTER TABLE {BARS} DROP CONSTRAINT market_aggregate_pkey",
    f"DELETE FROM {BARS} WHERE ctid = (SELECT ctid FROM {LAST})",
    f"INSERT INTO {BARS} SELECT * FROM {LAST}",
    # What is in another place is lost there and invented here.
    f"""UPDATE {BARS} SET open_time = open_time - interval '1 year'
    WHERE ctid = (SELECT ctid FROM {BARS} WHERE is_final AND interval = '1d' LIMIT 1)""",
    "UPDATE market_data.ingestion_run SET ended_at = NULL",
)
STORED = f"SELECT count(*)::int FROM {BARS}"


@pytest.fixture(scope="module")
def server() -> Iterator[TcpServer]:
    """A server of this module's own, to crash."""
    with run_tcp_server() as running:
        yield running


@pytest.fixture
def crashing(server: TcpServer) -> Iterator[Engine]:
    """An engine on an empty database of that server, with the market tables."""
    with create_database(server.make_url(scheme="postgresql+psycopg2")) as url:
        opened = open_engine(DatabaseAddress(url, is_embedded=False))
        upgrade_schema(opened)
        yield opened
        opened.dispose()


@pytest.mark.faults
@pytest.mark.parametrize("seed", SEEDS)
def test_a1_a_run_that_is_killed_at_any_point_is_repaired_by_the_next(
    seed: int, theatre: Theatre
) -> None:
    """Whatever it did: every bar that was served is there once, and every receipt has its end."""
    played = theatre.play(seed)
    assert played.is_good, played
    assert played.kills


@pytest.mark.faults
def test_a1_what_a_kill_loses_doubles_invents_or_leaves_open_is_counted(theatre: Theatre) -> None:
    """Rows that are changed by hand show that the counting sees them."""
    with theatre.copy() as place:
        place.do(WORK["ingest"].killed)
        bars = place.read_bars()
        assert compare(place, bars).is_good
        for statement in SPOILING:
            place.execute(statement)
        assert compare(place, bars) == Played(lost=2, doubled=1, invented=1, left_open=1)


@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGKILL])
@pytest.mark.parametrize("seed", SEEDS)
def test_b1_a_server_that_crashes_at_any_point_loses_nothing_that_was_committed(
    seed: int, how: signal.Signals, crashing: Engine, server: TcpServer
) -> None:
    """The run goes on or ends in words; a good run makes everything right."""
    at = draw_point(seed, FEWEST_POINTS)
    installation = Disturbed(crashing)
    installation.ingest(MARCH.replace(day=8))
    before = read_column(crashing, STORED)

    def crash() -> None:
        server.end(how)
        server.start_again()

    run = open_engine(DatabaseAddress(crashing.url.render_as_string(False), is_embedded=False))
    points = Points(run, at, crash)
    with go_through(installation, run):
        said = ingest_or_say(installation)
    run.dispose()
    assert points.count >= at
    assert said is None or "then run again; what was already committed stays" in said
    assert read_column(crashing, STORED) >= before
    installation.recover()


def test_b2_a_killed_session_ends_every_connection_and_the_pool_replaces_them(
    crashing: Engine, server: TcpServer
) -> None:
    """Kill -9 of one backend: the server restarts, and the same engine works on."""
    installation = Disturbed(crashing)
    installation.ingest(MARCH.replace(day=8))
    with crashing.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
    assert isinstance(pid, int)
    kill_backend(pid)
    wait_for(lambda: answers(crashing), WAIT_SECONDS, "the server")
    assert server.process.poll() is None
    installation.recover()


def test_b2_a_session_that_is_killed_inside_of_a_wave_takes_the_wave_with_it(
    crashing: Engine,
) -> None:
    """Nothing of it is there, the run ends in words, and the next one is whole."""
    installation = Disturbed(crashing)
    run = open_engine(DatabaseAddress(crashing.url.render_as_string(False), is_embedded=False))

    killed: list[int] = []

    def strike(connection: Connection, _: object, statement: str, *__: object) -> None:
        if "INTO market_data.dataset_version" in statement and not killed:
            killed.append(connection.connection.dbapi_connection.info.backend_pid)  # type: ignore[union-attr]
            kill_backend(killed[0])

    event.listen(run, "before_cursor_execute", strike)
    with go_through(installation, run), pytest.raises(OperationalError) as caught:
        installation.ingest(MARCH)
    run.dispose()
    assert killed
    assert "what was already committed stays" in str(caught.value)
    wait_for(lambda: answers(crashing), WAIT_SECONDS, "the server")
    assert read_column(crashing, STORED) == [0]
    installation.recover()


@pytest.mark.faults
def test_b12_a_log_that_the_disk_does_not_take_stops_the_server_and_loses_nothing(
    crashing: Engine, server: TcpServer
) -> None:
    """The server gives up at the first commit; what was committed before is there again."""
    installation = Disturbed(crashing)
    installation.ingest(MARCH.replace(day=8))
    before = read_column(crashing, STORED)
    server.end(signal.SIGINT)
    server.start_again(refuse_fdatasync, fsync="on", restart_after_crash="off")
    assert "then run again; what was already committed stays" in str(ingest_or_say(installation))
    server.process.wait(WAIT_SECONDS)
    server.start_again()
    assert read_column(crashing, STORED) == before
    installation.recover()


def ingest_or_say(installation: Disturbed) -> str | None:
    """Ingest, and return what it failed of; None: it did not."""
    try:
        installation.ingest(MARCH)
    except OperationalError as error:
        return str(error)
    return None


def answers(engine: Engine) -> bool:
    """Tell whether the server is up again."""
    try:
        return read_column(engine, "SELECT 1") == [1]
    except OperationalError:
        return False
