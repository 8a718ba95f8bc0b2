"""Finding and opening the database: DATABASE_URL, or the embedded server."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from market_pipeline.domain.errors import (
    DatabaseUnreachableError,
    ReadOnlyDatabaseError,
    StorageError,
    WrongClockError,
)
from market_pipeline.settings import find_state_dir, read_variable
from market_pipeline.storage.server import embedded
from market_pipeline.storage.server.failures import DatabaseFailedError, raise_in_a_sentence
from market_pipeline.storage.server.urls import (
    hide_password,
    normalise_database_url,
    redact_password,
)
from market_pipeline.storage.server.watchdog import OURS

_OLDEST_SERVER = 150_000
# The last one: a statement whose client was killed ends, and with it its locks.
SERVER_OPTIONS = (
    "-c timezone=UTC -c lock_timeout=60s -c idle_in_transaction_session_timeout=300s "
    "-c client_connection_check_interval=1s"
)
# What kind of server answers, and by which of its processes.
_QUESTION = text(
    "SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), "
    "current_setting('transaction_read_only') = 'on', pg_backend_pid()"
)
MOST_CLOCK_DIFFERENCE = timedelta(minutes=10)
_CLOCK = text("SELECT clock_timestamp()")
_SESSION = text("SELECT pg_backend_pid()")
_CURE_POOLER = (
    "goes through a pooler in transaction mode. Sessions do not last there, so the locks of "
    "runs would be lost without an error. Give it the server's own address, or "
    "set pool_mode = session in the pooler"
)

_CURE_READ_ONLY = "its transactions are read-only by default (default_transaction_read_only)"


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """Where the database is; an embedded one may be migrated without asking."""

    url: str
    is_embedded: bool

    def __repr__(self) -> str:
        """Return the address without its password."""
        return f"DatabaseAddress({hide_password(self.url)!r}, is_embedded={self.is_embedded})"


def find_database() -> DatabaseAddress:
    """Return the address of DATABASE_URL, else of the embedded server, which is then running.

    Raises:
        SettingError: DATABASE_URL is not a PostgreSQL address.
        EmbeddedServerError: The embedded server cannot be started.
    """
    configured = read_variable("DATABASE_URL")
    if configured:
        return DatabaseAddress(normalise_database_url(configured), is_embedded=False)
    programs = read_variable("PG_BIN")
    return DatabaseAddress(
        embedded.start(find_state_dir(), Path(programs) if programs else None), is_embedded=True
    )


def open_engine(address: DatabaseAddress, patience: str = "command") -> Engine:
    """Return an engine whose connections speak UTC and give up on a server that does not answer.

    ``patience`` is how long its calls may take: a key of ``watchdog.SECONDS``.
    """
    engine = create_engine(
        address.url,
        pool_pre_ping=True,
        pool_size=2,
        connect_args={
            "patience": patience,
            "application_name": OURS,
            "keepalives_idle": 30,
            "options": SERVER_OPTIONS,
        },
    )
    event.listen(engine, "handle_error", raise_in_a_sentence)
    return engine


def check_database(engine: Engine) -> None:
    """Make sure the server answers, accepts writes, and is not too old.

    Raises:
        DatabaseUnreachableError: It does not answer or refuses the credentials.
        ReadOnlyDatabaseError: It is a replica or read-only.
        StorageError: It is older than PostgreSQL 15, or behind a pooler in transaction mode.
    """
    address = engine.url.render_as_string(hide_password=False)
    shown = hide_password(address)
    try:
        with engine.connect() as connection:
            version, is_standby, is_read_only, pid = connection.execute(_QUESTION).one()
            # A pooler tells clients numbers of its own.
            driver: Any = connection.connection.dbapi_connection
            is_pooled = driver.info.backend_pid != pid
            changes_sessions = is_pooled and _changes_sessions(connection, pid)
    except DBAPIError as error:
        reason = describe_database_error(error, address)
        raise DatabaseUnreachableError(f"DATABASE_URL ({shown}) cannot be used: {reason}") from None
    if changes_sessions:
        raise StorageError(f"DATABASE_URL ({shown}) {_CURE_POOLER}")
    if version < _OLDEST_SERVER:
        raise StorageError(
            f"DATABASE_URL ({shown}) is PostgreSQL {version // 10_000}: 15 or newer is needed"
        )
    if is_standby or is_read_only:
        cure = "point it at the primary server" if is_standby else _CURE_READ_ONLY
        raise ReadOnlyDatabaseError(f"DATABASE_URL ({shown}) accepts no writes: {cure}")


def check_clock(connection: Connection) -> None:
    """Make sure that this machine and the server agree about the time, but for some minutes.

    Raises:
        WrongClockError: They do not, so a run would take bars for final that are not.
    """
    theirs = connection.execute(_CLOCK).scalar_one()
    ours = datetime.now(UTC)
    if abs(ours - theirs) > MOST_CLOCK_DIFFERENCE:
        raise WrongClockError(
            f"this machine's clock says {ours:%Y-%m-%d %H:%M} UTC, and the database's says "
            f"{theirs:%Y-%m-%d %H:%M}: a run could not tell which bars are final. Set the clock "
            "that is wrong, and run again. Nothing was fetched"
        )


def _changes_sessions(connection: Connection, pid: int) -> bool:
    """Tell whether a connection's transactions come to different sessions of the server.

    When ours has ended, another connection's transaction takes the session that we had, or at least
    ours the next time gets another one.
    """
    connection.commit()
    with connection.engine.connect() as other:
        other_pid = other.execute(_SESSION).scalar_one()
        return bool(other_pid == pid or connection.execute(_SESSION).scalar_one() != pid)


def describe_database_error(error: DBAPIError, address: str) -> str:
    """Return what was wrong and what to do, in one line and without the password."""
    said = str(error) if isinstance(error, DatabaseFailedError) else str(error.orig)
    reason = redact_password(" ".join(said.split()), address)
    password = os.environ.get("PGPASSWORD", "")
    return reason.replace(password, "***") if password else reason
