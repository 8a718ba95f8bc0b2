"""A server that hangs: each call to it ends with its deadline, and says why."""

import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from market_pipeline.storage.server import watchdog
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.failures import open_cursor
from market_pipeline.storage.server.watchdog import CONNECT_SECONDS, SECONDS, SILENCE_SECONDS, allow
from market_pipeline_tests.children import start_child
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.storage.tcp_server import TcpServer, run_tcp_server

# Far more than a deadline takes on a busy machine, far less than for ever.
PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
def hanging() -> Iterator[TcpServer]:
    """A server of this module's own: whoever is suspended with it is nobody else's."""
    with run_tcp_server() as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of seconds, and no memory of a server that was silent before."""
    monkeypatch.setitem(SILENCE_SECONDS, "command", 0.0)
    for patience in SECONDS:
        monkeypatch.setitem(SECONDS, patience, 3.0)
    for patience in CONNECT_SECONDS:
        monkeypatch.setitem(CONNECT_SECONDS, patience, 1)


@pytest.fixture
def opened(hanging: TcpServer, quick: None) -> Iterator[Engine]:
    """An engine on that server, with those deadlines."""
    del quick
    engine = open_hanging(hanging)
    yield engine
    engine.dispose()


def open_hanging(server: TcpServer) -> Engine:
    """Open the server as every door does."""
    url = server.make_url(scheme="postgresql+psycopg2")
    return open_engine(DatabaseAddress(url, is_embedded=False))


def select(connection: Connection) -> None:
    """Ask a question."""
    connection.execute(text("SELECT 1"))


def copy_in(connection: Connection) -> None:
    """Send more than any buffer holds."""
    with open_cursor(connection) as cursor:
        cursor.copy_expert("COPY kept FROM STDIN", io.BytesIO(b"1\n" * 10**7))


def copy_out(connection: Connection) -> None:
    """Receive rows."""
    with open_cursor(connection) as cursor:
        cursor.copy_expert("COPY kept TO STDOUT", io.BytesIO())


def commit(connection: Connection) -> None:
    """End the transaction."""
    connection.commit()


def roll_back(connection: Connection) -> None:
    """End it the other way."""
    connection.rollback()


@pytest.mark.parametrize("act", [select, copy_in, copy_out, commit, roll_back])
def test_b9_every_call_to_a_hung_server_ends_with_its_deadline(
    act: Callable[[Connection], None], opened: Engine, hanging: TcpServer
) -> None:
    """The server says nothing, so the connection is shut; the error says who did not answer."""
    connection = opened.connect()
    connection.execute(text("CREATE TEMP TABLE kept (number int)"))
    begun = time.monotonic()
    with hanging.suspend(), pytest.raises(OperationalError) as caught:
        act(connection)
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert "PostgreSQL did not answer for 3 s" in str(caught.value)
    connection.close()


def test_a_pooled_connection_to_a_hung_server_is_given_up(
    opened: Engine, hanging: TcpServer
) -> None:
    """Neither the question whether it still works nor a new connection waits for ever."""
    assert read_column(opened, "SELECT 1") == [1]
    with hanging.suspend(), pytest.raises(OperationalError, match="PostgreSQL did not answer"):
        read_column(opened, "SELECT 2")
    assert read_column(opened, "SELECT 3") == [3]


def test_a_connection_shut_while_its_ping_was_answered_is_replaced(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer can come in the moment of the deadline: the socket is dead, the ping was good."""
    end = watchdog.WATCHDOG.end

    def shut_and_end(call: Any) -> None:
        if call.seconds == SECONDS["ping"]:
            call.shut("late")
        end(call)

    with engine.connect() as connection:
        before = connection.scalar(text("SELECT pg_backend_pid()"))
    monkeypatch.setattr(watchdog.WATCHDOG, "end", shut_and_end)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != before


def test_a_call_that_is_answered_is_left_alone(opened: Engine) -> None:
    """A deadline ends with its call: the connection works long after it."""
    with opened.connect() as connection:
        end = time.monotonic() + 4.5
        while time.monotonic() < end:
            assert connection.execute(text("SELECT pg_sleep(0.4), 7")).scalars().all() == [""]


def test_work_that_takes_long_is_given_the_time_it_takes(
    opened: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is allowed to be long is, within the block alone."""
    monkeypatch.setitem(SECONDS, "bulk", 60.0)
    with opened.connect() as connection:
        with allow("bulk"):
            connection.execute(text("SELECT pg_sleep(4)"))
        with pytest.raises(OperationalError, match="did not answer"):
            connection.execute(text("SELECT pg_sleep(20)"))


def test_an_engine_for_pages_has_the_patience_of_pages(
    hanging: TcpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table says how long each kind of call may take."""
    url = hanging.make_url(scheme="postgresql+psycopg2")
    engine = open_engine(DatabaseAddress(url, is_embedded=False), patience="page")
    with engine.connect() as connection:
        monkeypatch.setitem(SECONDS, "page", 0.5)
        with pytest.raises(OperationalError, match=r"for 0\.5 s"):
            connection.execute(text("SELECT pg_sleep(20)"))
    engine.dispose()


def test_a_silent_server_is_not_asked_again_at_once(
    hanging: TcpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one waited in vain, the others need not: they fail until it is time to look again."""
    monkeypatch.setitem(SILENCE_SECONDS, "command", 60.0)
    monkeypatch.setattr(watchdog, "_outages", {})
    engine = open_hanging(hanging)
    with hanging.suspend():
        with pytest.raises(OperationalError, match=r"did not answer: .* timeout expired"):
            engine.connect()
        begun = time.monotonic()
        for _ in range(50):
            with pytest.raises(OperationalError, match="did not answer a moment ago"):
                engine.connect()
        assert time.monotonic() - begun < PATIENCE_SECONDS
    monkeypatch.setattr(watchdog, "_outages", {})
    assert read_column(engine, "SELECT 1") == [1]
    engine.dispose()


def test_the_watchdog_sleeps_while_calls_are_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand statements wake its thread at most once each deadline, not once each."""
    wakes: list[float] = []
    shut_late = watchdog.WATCHDOG.shut_late
    monkeypatch.setattr(
        watchdog.WATCHDOG, "shut_late", lambda: (wakes.append(time.monotonic()), shut_late())
    )
    with engine.connect() as connection:
        for _ in range(1_000):
            connection.execute(text("SELECT 2"))  # SELECT 1 is a ping.
    assert len(wakes) < 100


def test_nobody_closes_or_cancels_a_connection_that_another_thread_waits_on(
    opened: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg2 would block the one, and freeze every thread in the other."""
    monkeypatch.setitem(SECONDS, "command", 60.0)
    with opened.connect() as connection:
        own = connection.connection.dbapi_connection
        asking = threading.Thread(target=lambda: connection.execute(text("SELECT pg_sleep(4)")))
        asking.start()
        while len(watchdog.WATCHDOG._calls) == 0:
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match="another thread"):
            own.close()
        with pytest.raises(RuntimeError, match="freezes"):
            own.cancel()
        asking.join()


def ask_in_a_fork(pipe: object, url: str) -> None:
    """Ask, fork, and let both ask what hangs; say what the forked child heard."""
    SECONDS["command"] = 1.0
    engine = open_engine(DatabaseAddress(url, is_embedded=False))
    read_column(engine, "SELECT 1")
    engine.dispose(close=False)
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            read_column(engine, "SELECT pg_sleep(20)")
        except OperationalError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    pipe.send(os.read(read, 10_000).decode())  # type: ignore[attr-defined]


def test_a_forked_process_has_a_watchdog_of_its_own(hanging: TcpServer) -> None:
    """Threads do not survive a fork."""
    with start_child(ask_in_a_fork, hanging.make_url(scheme="postgresql+psycopg2")) as child:
        assert "PostgreSQL did not answer" in child.hear()


def wait_with_a_handler(pipe: object, url: str) -> None:
    """Hang in the main thread with a handler of SIGTERM, as Dagster has one."""
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    engine = open_engine(DatabaseAddress(url, is_embedded=False))
    with engine.connect() as connection:
        pipe.send("asking")  # type: ignore[attr-defined]
        try:
            connection.execute(text("SELECT pg_sleep(600)"))
        except OperationalError as error:
            pipe.send((heard, str(error)))  # type: ignore[attr-defined]


def test_a_process_that_is_told_to_end_waits_for_nobody(hanging: TcpServer) -> None:
    """A signal's handler runs only when the call returns, so the call is ended."""
    with start_child(wait_with_a_handler, hanging.make_url(scheme="postgresql+psycopg2")) as child:
        assert child.hear() == "asking"
        child.send_signal(signal.SIGTERM)
        heard, said = child.hear()
    assert heard == [signal.SIGTERM]
    assert "was stopped" in said


def test_a_watched_connection_is_freed_with_its_descriptor(hanging: TcpServer) -> None:
    """The watchdog's duplicate of the descriptor goes with the connection, closed or forgotten."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
    for _ in range(20):
        connection = watchdog.WatchedConnection(hanging.make_url(), patience="command")
        connection.close()
        watchdog.WatchedConnection(hanging.make_url(), patience="command")
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208 - a count


def test_errors_of_the_server_itself_stay_what_they_are(engine: Engine) -> None:
    """Only a call that was cut is explained by the deadline."""
    with engine.connect() as connection, pytest.raises(psycopg2.Error, match="nonsense"):
        connection.connection.cursor().execute("nonsense")
