"""What the database fails of is told in one sentence: the cause, the server's words, the cure."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import OperationalError

from market_pipeline.domain.errors import DatabaseUnreachableError
from market_pipeline.storage.server import engine as engine_module
from market_pipeline.storage.server.engine import DatabaseAddress, check_database, open_engine
from market_pipeline.storage.server.failures import (
    explain_failure,
    find_failure,
    open_cursor,
    summarise_failure,
)


@contextmanager
def told(*words: str) -> Iterator[None]:
    """The block fails; what is told is one line with these words, without statement or link."""
    with pytest.raises(OperationalError) as caught:
        yield
    said = str(caught.value)
    for word in (*words, "then run again; what was already committed stays"):
        assert word in said
    for alien in ("\n", "SELECT", "sqlalche.me", "psycopg2"):
        assert alien not in said


RAISED = "DO $$ BEGIN RAISE EXCEPTION 'as it says' USING ERRCODE = '{}'; END $$"


@pytest.mark.parametrize(
    ("code", "cause", "cure"),
    [
        ("53100", "the disk of PostgreSQL is full (as it says", "make room on it"),
        ("53200", "out of memory", "give its machine more"),
        ("57P01", "was stopped", "start it"),
        ("57014", "somebody cancelled", "find out who"),
    ],
)
def test_a_known_code_is_explained(engine: Engine, code: str, cause: str, cure: str) -> None:
    """The server raises it; whatever language its words have, the code is the same."""
    with told(cause, cure), engine.begin() as connection:
        connection.exec_driver_sql(RAISED.format(code))


def test_a_statement_timeout_is_told_as_what_it_is(engine: Engine) -> None:
    """Not as a wrong address."""
    with told("at its statement_timeout", "raise it"), engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL statement_timeout = '50ms'")
        connection.exec_driver_sql("SELECT pg_sleep(20)")


def test_opening_a_database_with_a_short_statement_timeout_says_so(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the setting; the address is right."""
    with engine.begin() as connection:
        name = make_url(database_url).database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET statement_timeout = '50ms'")
    engine.dispose()
    slow = text("SELECT 150000, false, false, 1 FROM pg_sleep(20)")
    monkeypatch.setattr(engine_module, "_QUESTION", slow)
    with pytest.raises(DatabaseUnreachableError, match="at its statement_timeout") as caught:
        check_database(engine)
    assert "address" not in str(caught.value)


def test_a_lock_that_is_held_too_long_is_told(engine: Engine) -> None:
    """The server gives up at lock_timeout."""
    with engine.begin() as holder, told("held a lock"), engine.begin() as waiter:
        holder.exec_driver_sql("LOCK TABLE market_data.market IN ACCESS EXCLUSIVE MODE")
        waiter.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
        waiter.exec_driver_sql("SELECT 1 FROM market_data.market")


def test_a_session_that_is_ended_from_outside_is_told(engine: Engine) -> None:
    """By an administrator, in the middle of a statement."""
    with engine.connect() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        end = threading.Timer(0.5, end_session, [engine, pid])
        end.start()
        with told("the connection to PostgreSQL broke", "start it if it is down"):
            connection.exec_driver_sql("SELECT pg_sleep(20)")
    end.join()


def end_session(engine: Engine, pid: int) -> None:
    """End it as an administrator does."""
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")


def test_copy_fails_in_the_same_words(engine: Engine) -> None:
    """It goes past SQLAlchemy, and its errors do not."""
    with told("at its statement_timeout"), engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL statement_timeout = '50ms'")
        with open_cursor(connection) as cursor:
            cursor.copy_expert("COPY (SELECT pg_sleep(20)) TO STDOUT", open("/dev/null", "w"))  # noqa: PTH123, SIM115


def test_a_server_that_is_not_there_is_told() -> None:
    """Nothing listens at the address."""
    url = "postgresql+psycopg2://me@127.0.0.1:1/nowhere"
    nowhere = open_engine(DatabaseAddress(url, is_embedded=False))
    with told("cannot be reached", "check the address, and that the server runs"):
        nowhere.connect()


def test_j1_a_driver_without_words_is_told_as_what_it_is() -> None:
    """It says nothing at all where the process may open no socket."""
    told = explain_failure(psycopg2.OperationalError(""))
    assert "too many open files: raise its limit (ulimit -n), then run again" in told
    assert "()" not in told


def test_a_summary_leaves_out_what_the_server_said(engine: Engine) -> None:
    """It may name files and relations; whoever asks over HTTP need not know them."""
    with pytest.raises(OperationalError) as caught, engine.begin() as connection:
        connection.exec_driver_sql(RAISED.format("53100"))
    assert summarise_failure(caught.value) == "the disk of PostgreSQL is full: make room on it"


def test_errors_of_data_and_code_keep_their_words(engine: Engine) -> None:
    """They are not the database's failure."""
    with pytest.raises(Exception, match="division by zero") as caught, engine.begin() as connection:
        connection.exec_driver_sql("SELECT 1 / 0")
    assert find_failure(caught.value) is None


def test_a_failure_is_found_behind_the_errors_of_others(engine: Engine) -> None:
    """Dagster raises its own when it could not record anything."""
    with pytest.raises(OperationalError) as caught, engine.begin() as connection:
        connection.exec_driver_sql(RAISED.format("53100"))
    outer = RuntimeError("too many retries")
    outer.__cause__ = caught.value
    assert find_failure(outer) is caught.value
