"""Opening the database: a misfit is one error that names DATABASE_URL and hides the password."""

import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from threading import Timer
from urllib.parse import quote

import pytest
from sqlalchemy import Engine, text

from market_pipeline.domain.errors import (
    DatabaseUnreachableError,
    PipelineError,
    ReadOnlyDatabaseError,
    WrongClockError,
)
from market_pipeline.storage.server import engine as server
from market_pipeline.storage.server.engine import (
    DatabaseAddress,
    check_clock,
    check_database,
    find_database,
    open_engine,
)
from market_pipeline.storage.server.programs import psql_path
from market_pipeline.storage.server.urls import build_psql_address
from market_pipeline.storage.server.watchdog import CONNECT_SECONDS
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.storage.tcp_server import PASSWORD, ROLE, TcpServer


def open_configured(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Open DATABASE_URL as every door does, and close it."""
    monkeypatch.setenv("DATABASE_URL", url)
    opened = open_engine(find_database())
    try:
        check_database(opened)
    finally:
        opened.dispose()


def assert_named_without_password(error: PipelineError) -> None:
    """The variable is in the message; the password is not, in either spelling."""
    assert "DATABASE_URL" in str(error)
    assert "\n" not in str(error)
    assert PASSWORD not in str(error)
    assert quote(PASSWORD, safe="") not in str(error)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_opens_a_server_over_tcp(
    tcp_server: TcpServer, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password with special characters arrives as it is when percent-encoded."""
    open_configured(monkeypatch, tcp_server.make_url(scheme=scheme))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda url, server: url.replace(f":{server.port}/", ":1/"), "refused"),
        (lambda url, _: url.replace("127.0.0.1", "nowhere.invalid"), "nowhere.invalid"),
        (lambda url, _: url.replace("/postgres", "/no_such_database"), "no_such_database"),
        (lambda url, _: url.replace(ROLE, "nobody_here"), "nobody_here"),
        (lambda url, server: url.replace(f":{server.port}/", ":99999/"), "99999"),
    ],
    ids=["port", "host", "database", "user", "port number"],
)
def test_a_wrong_part_of_the_address_is_told(
    tcp_server: TcpServer,
    change: Callable[[str, TcpServer], str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server's or the driver's own words are in the message."""
    with pytest.raises(DatabaseUnreachableError, match=said) as caught:
        open_configured(monkeypatch, change(tcp_server.make_url(), tcp_server))
    assert_named_without_password(caught.value)


def test_b16_a_wrong_password_is_told_and_not_shown(
    tcp_server: TcpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the right nor the wrong one."""
    with pytest.raises(DatabaseUnreachableError, match="authentication failed") as caught:
        open_configured(monkeypatch, tcp_server.make_url(password="wr@ng-secret"))  # noqa: S106 - a wrong one
    assert_named_without_password(caught.value)
    assert "ng-secret" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that accepts and keeps silent does not hold a run for ever."""
    monkeypatch.setitem(CONNECT_SECONDS, "command", 2)
    silent = socket.create_server(("127.0.0.1", 0))
    # No test timeout interrupts libpq; a client that would wait for ever is hung up on.
    hang_up = Timer(15, silent.close)
    hang_up.start()
    with pytest.raises(DatabaseUnreachableError, match="timeout expired"):
        open_configured(monkeypatch, f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/db")
    hang_up.cancel()
    silent.close()


def test_a_read_only_database_is_refused(
    tcp_server: TcpServer, tcp_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database whose transactions are read-only by default is no place to ingest into."""
    admin = open_engine(
        DatabaseAddress(tcp_server.make_url(scheme="postgresql+psycopg2"), is_embedded=False)
    )
    with admin.begin() as connection:
        connection.execute(
            text(f"ALTER DATABASE {tcp_database} SET default_transaction_read_only = on")
        )
    admin.dispose()
    with pytest.raises(ReadOnlyDatabaseError, match="default_transaction_read_only") as caught:
        open_configured(monkeypatch, tcp_server.make_url(tcp_database))
    assert_named_without_password(caught.value)


def test_b19_connections_speak_utc(database_url: str) -> None:
    """A server's own time zone never reaches what is read."""
    opened = open_engine(DatabaseAddress(database_url, is_embedded=True))
    assert read_column(opened, "SHOW timezone") == ["UTC"]
    opened.dispose()


def test_an_address_is_shown_without_its_password(tcp_server: TcpServer) -> None:
    """Tracebacks and logs show the repr."""
    shown = repr(DatabaseAddress(tcp_server.make_url(), is_embedded=False))
    assert "***" in shown
    assert quote(PASSWORD, safe="") not in shown


def test_of_several_hosts_the_one_that_accepts_writes_is_used(
    tcp_server: TcpServer, tcp_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is down is passed over; the command and psql take the same address."""
    url = tcp_server.make_url(tcp_database).replace("@", "@127.0.0.1:1,", 1)
    open_configured(monkeypatch, url)
    address, secrets = build_psql_address(find_database().url)
    done = subprocess.run(
        [psql_path(), address, "-Atc", "select 41 + 1"],
        env={**os.environ, **secrets}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "42\n"


@pytest.mark.parametrize(("minutes", "is_refused"), [(9, False), (11, True), (-9, False)])
def test_h2_a_clock_far_from_the_servers_is_refused_and_a_near_one_is_not(
    minutes: int, is_refused: bool, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both times are told, with what to do."""
    monkeypatch.setattr(server, "_CLOCK", text(f"SELECT now() + interval '{minutes} minutes'"))
    refused = pytest.raises(WrongClockError, match="Set the clock") if is_refused else nullcontext()
    with engine.connect() as connection, refused:
        check_clock(connection)
