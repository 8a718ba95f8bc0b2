"""Failures of the database in one sentence: the cause and what to do.

An engine of ours (``server.engine``) raises an operational error as :class:`DatabaseFailedError`,
which is SQLAlchemy's own ``OperationalError`` with these words instead of a statement and a link.
Not here: errors of data and of code, which keep their own words.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from sqlalchemy import Connection
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from market_pipeline.storage.server.watchdog import ServerHangsError

_AGAIN = "then run again; what was already committed stays"
# By SQLSTATE: the cause, and the cure.
_EXPLAINED = {
    "53100": ("the disk of PostgreSQL is full", "make room on it"),
    "53200": ("PostgreSQL is out of memory", "give its machine more"),
    "53300": ("PostgreSQL takes no more connections", "end some, or raise max_connections"),
    "55P03": ("another session held a lock for too long", "end that session, or wait for it"),
    "25P03": (
        "PostgreSQL ended a transaction that was idle for too long",
        "find out what held it up",
    ),
    "57P01": ("PostgreSQL was stopped, or somebody ended this session", "start it"),
    "57P02": ("PostgreSQL crashed and is recovering", "wait until it has"),
    "57P03": ("PostgreSQL is starting or stopping", "wait until it is up"),
    "25006": ("PostgreSQL accepts no writes", "point DATABASE_URL at the primary server"),
    "28P01": ("PostgreSQL refuses the password", "correct it in DATABASE_URL"),
}
_TOO_LONG = (
    "PostgreSQL ended a statement at its statement_timeout",
    "raise it for this role (ALTER ROLE ... SET statement_timeout)",
)
_CANCELLED = "somebody cancelled a statement in PostgreSQL", "find out who and why"
_HANGS = "", "it hangs, or the network does: restart it"
_UNREACHABLE = "PostgreSQL cannot be reached", "check the address, and that the server runs"
_REFUSED = "PostgreSQL refuses the connection", "correct DATABASE_URL, or the server's settings"
_LOST = "the connection to PostgreSQL broke", "start it if it is down"
_UNKNOWN = "PostgreSQL failed", "see its log"
# libpq has no words where it gets no socket.
_SPEECHLESS = (
    "no connection to PostgreSQL could be made, as if this process had too many open files",
    "raise its limit (ulimit -n)",
)
# A connection that is refused has no SQLSTATE in psycopg2.
_REFUSALS = {
    "too many clients": "53300",
    "connection slots": "53300",
    "starting up": "57P03",
    "shutting down": "57P03",
    "recovery mode": "57P03",
    "not yet accepting": "57P03",
    "password authentication": "28P01",
}


class DatabaseFailedError(OperationalError):
    """The database failed; the message says of what, and what to do."""

    def __str__(self) -> str:
        """Return the sentence."""
        return explain_failure(self)


def explain_failure(error: DBAPIError | psycopg2.Error) -> str:
    """Return the cause of an error, the server's own words, and the cure, in one line."""
    orig = error.orig if isinstance(error, DBAPIError) else error
    cause, cure = _find_explanation(orig)
    # Without the line of the statement that the driver shows below it.
    diagnosis = getattr(getattr(orig, "diag", None), "message_primary", None)
    said = " ".join((diagnosis or str(orig)).split())
    found = f"{cause} ({said})" if cause and said else cause or said
    return f"{found}: {cure}, {_AGAIN}"


def summarise_failure(error: DBAPIError) -> str:
    """Return cause and cure without the server's own words, for those who may not read them."""
    cause, cure = _find_explanation(error.orig)
    return f"{cause or 'PostgreSQL does not answer'}: {cure}"


def find_failure(error: BaseException) -> DBAPIError | psycopg2.Error | None:
    """Return the failure of the database that an error comes from, if it comes from one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OperationalError | InterfaceError | psycopg2.OperationalError):
            return seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def raise_in_a_sentence(context: ExceptionContext) -> DatabaseFailedError | None:
    """Return what is raised instead of an operational error; a listener of engines."""
    known = context.sqlalchemy_exception
    if context.is_pre_ping or not isinstance(known, OperationalError):
        return None
    failed = DatabaseFailedError(None, None, context.original_exception)
    failed.connection_invalidated = context.is_disconnect
    return failed


@contextmanager
def open_cursor(connection: Connection) -> Iterator[Any]:
    """Give psycopg2's own cursor, which COPY needs.

    Raises:
        DBAPIError: What psycopg2 raised, as it comes from SQLAlchemy's own statements.
    """
    pooled = connection.connection
    try:
        yield pooled.cursor()
    except psycopg2.Error as error:
        if pooled.dbapi_connection.closed:  # type: ignore[union-attr]
            connection.invalidate(error)
        if isinstance(error, psycopg2.OperationalError):
            raise DatabaseFailedError(None, None, error) from error
        raise DBAPIError.instance(None, None, error, psycopg2.Error) from error


def _find_explanation(error: BaseException | None) -> tuple[str, str]:
    code = getattr(error, "pgcode", None)
    if isinstance(error, ServerHangsError):
        return _HANGS
    if code == "57014":
        return _TOO_LONG if "statement timeout" in str(error) else _CANCELLED
    if code in _EXPLAINED:
        return _EXPLAINED[code]
    return _explain_words(str(error))


def _explain_words(said: str) -> tuple[str, str]:
    """Return the explanation of an error without a known SQLSTATE."""
    for words, code in _REFUSALS.items():
        if words in said:
            return _EXPLAINED[code]
    if not said.strip():
        return _SPEECHLESS
    if "connection to server" in said or "could not translate host" in said:
        return _REFUSED if "FATAL" in said else _UNREACHABLE
    return _LOST if "connection" in said else _UNKNOWN
