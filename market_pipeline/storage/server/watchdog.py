"""Deadlines for PostgreSQL: a call ends by itself if the server hangs and says nothing.

A stopped server is not noticed by ``statement_timeout`` (its own clock stands still) nor by
``tcp_user_timeout`` (the kernel goes on acknowledging). psycopg2 waits in C, where no signal's
handler runs. Its ``close`` from another thread blocks, its ``cancel`` freezes every thread. What
ends a call at once is to shut its socket down. One thread does that for the whole process.

A call costs an entry in a set. The thread sleeps until the earliest deadline it knew when it went
to sleep, so it wakes at most once each deadline however many calls there are.
"""

import contextlib
import functools
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg2
from psycopg2 import extensions
from sqlalchemy import Engine, event

from market_pipeline.domain.errors import DatabaseUnreachableError

# How long a call may take, in seconds. A lock is waited for 60 s (``lock_timeout``), so only pages
# give up before the server does.
SECONDS = {
    "ping": 1.5,  # whether a pooled connection still works; a new one is made where it does not
    "cleanup": 3.0,  # what is given back in the end, and ends by itself where that fails
    "page": 4.0,  # all that the API does
    "command": 120.0,  # commands and runs, Dagster's own records included
    "bulk": 1800.0,  # merges, migrations, scans of a whole table, exports
}
CONNECT_SECONDS = {"page": 2, "command": 5}
"""How long a connection may take to be made; libpq takes whole seconds, for each address."""
SILENCE_SECONDS = {"page": 3.0, "command": 10.0}
"""How long a server that let a connection wait is not asked for another."""
ENDING_SECONDS = 5.0
"""How long a call may still take in a process that was told to end."""
_ENDING_FOR_SECONDS = 300.0
"""As long as a busy machine may take to end a process, call by call."""
OURS = "market-pipeline"
"""What the application name of a watched connection begins with."""
DAGSTER = f"{OURS}-dagster"
GIVE_UP_SECONDS = 5.0
"""How long Dagster's own tries to connect may fail, one after the other, until they end at once."""
_PING = "SELECT 1"
_END_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_patience: ContextVar[str | None] = ContextVar("patience", default=None)
_Place: TypeAlias = tuple[object, object]
_outages: "dict[_Place, _Outage]" = {}


class ServerHangsError(psycopg2.OperationalError):  # type: ignore[misc]  # untyped
    """PostgreSQL did not answer within the deadline of a call."""


@contextlib.contextmanager
def allow(patience: str) -> Iterator[None]:
    """Give the calls of a block, or of a function, the time of a key of ``SECONDS``."""
    token = _patience.set(patience)
    try:
        yield
    finally:
        _patience.reset(token)


class _Call:
    """A call that waits for the server: until when, and how to end it."""

    __slots__ = ("connection", "seconds", "thread", "until")

    def __init__(self, connection: "WatchedConnection", seconds: float) -> None:
        self.connection, self.seconds = connection, seconds
        self.until = time.monotonic() + seconds
        self.thread = threading.get_ident()

    def shut(self, reason: str) -> None:
        self.connection.hung = reason
        self.connection.shut()


class Watchdog:
    """Knows the calls of this process, and ends those that are late."""

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._calls: set[_Call] = set()
        self._wakes_at = float("inf")
        self._ends_until, self._heard = float("-inf"), int(signal.SIGTERM)
        self._thread: threading.Thread | None = None
        self._ear, self._bell = socket.socketpair()
        self._bell.setblocking(False)

    def leave_parent(self) -> None:
        """Begin anew in a forked child, which has the parent's sockets but no thread."""
        parents = self._ear, self._bell
        hears = parents[1].fileno() == signal.set_wakeup_fd(-1)
        self._begin_anew()
        for end in parents:
            end.close()
        if hears:
            self.hear_signals()

    def begin(self, connection: "WatchedConnection", seconds: float) -> _Call:
        """Note a call; ``end`` it."""
        call = _Call(connection, seconds)
        with self._lock:
            if self._ends_until > call.until - seconds:
                call.until = min(call.until, call.until - seconds + ENDING_SECONDS)
            self._calls.add(call)
            is_earliest = call.until < self._wakes_at
            if is_earliest:
                self._wakes_at = call.until
        if is_earliest:
            self._wake()
        return call

    def end(self, call: _Call) -> None:
        """Forget a call: its connection is not touched afterwards."""
        with self._lock:
            self._calls.discard(call)

    @property
    def is_ending(self) -> bool:
        """Whether this process was told to end a moment ago."""
        return time.monotonic() < self._ends_until

    def insist_on_ending(self) -> None:
        """Send the signal again that told this process to end, if its exception was lost.

        Python raises it wherever the main thread is; in a callback of a weak reference or of a C
        library it is printed and forgotten. Whoever calls this would go on with its work.
        """
        if self.is_ending and threading.current_thread() is threading.main_thread():
            signal.raise_signal(self._heard)

    def hear_signals(self) -> None:
        """Hear of signals while the main thread waits in C; called in it, else it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        ours = self._bell.fileno()
        before = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
        if before not in (-1, ours):  # An event loop's, which does not wait in C.
            signal.set_wakeup_fd(before)

    def shut_late(self) -> None:
        """End the calls that are late, and note when the next one will be."""
        with self._lock:
            now = time.monotonic()
            for call in [late for late in self._calls if late.until <= now]:
                reason = f"PostgreSQL did not answer for {call.seconds:g} s"
                if now < self._ends_until:
                    reason = "PostgreSQL had not answered when this process was stopped"
                call.shut(reason)
                self._calls.discard(call)
            self._wakes_at = min((call.until for call in self._calls), default=float("inf"))

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()
        with contextlib.suppress(BlockingIOError):  # It is full of news already.
            self._bell.send(b"\0")

    def _run(self) -> None:
        while True:
            pause = self._wakes_at - time.monotonic()
            self._ear.settimeout(None if pause == float("inf") else max(pause, 0.001))
            with contextlib.suppress(TimeoutError):
                if heard := _END_SIGNALS.intersection(self._ear.recv(4096)):
                    self._hurry(max(heard))
            self.shut_late()

    def _hurry(self, heard: int) -> None:
        with self._lock:
            now, self._heard = time.monotonic(), heard
            self._ends_until = now + _ENDING_FOR_SECONDS
            for call in self._calls:
                call.until = min(call.until, now + ENDING_SECONDS)


WATCHDOG = Watchdog()
os.register_at_fork(after_in_child=WATCHDOG.leave_parent)


class WatchedConnection(extensions.connection):  # type: ignore[misc]  # untyped
    """A connection whose calls end with their deadline; ``patience`` is a key of ``SECONDS``."""

    def __init__(self, *args: Any, patience: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cursor_factory = WatchedCursor
        self.hung = ""
        self._own_patience = patience
        self._call: _Call | None = None
        # libpq may close its own descriptor in the middle of a call; the number may be another's.
        self._plug = os.dup(self.fileno())
        self._unplug = weakref.finalize(self, os.close, self._plug)

    def watch(self, act: Callable[..., Any], *args: Any, patience: str | None = None) -> Any:
        """Do something that waits for the server; ``ServerHangsError``: not answered in time."""
        seconds = SECONDS[patience or _patience.get() or self._own_patience]
        call = self._call = WATCHDOG.begin(self, seconds)
        try:
            return act(*args)
        except psycopg2.Error as error:
            if self.hung:
                raise ServerHangsError(self.hung) from error
            raise
        finally:
            self._call = None
            WATCHDOG.end(call)

    def shut(self) -> None:
        """Shut the socket down: whoever waits on it gets an error at once."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._plug)) as plug:
            plug.shutdown(socket.SHUT_RDWR)

    def commit(self) -> None:
        """Commit."""
        self.watch(super().commit)

    def rollback(self) -> None:
        """Roll back."""
        self.watch(super().rollback)

    def close(self) -> None:
        """Close, unless another thread is in the middle of a call: then raise."""
        if self._call is not None and self._call.thread != threading.get_ident():
            raise RuntimeError("closing a connection that another thread waits on blocks both")
        super().close()
        self._unplug()

    def cancel(self) -> None:
        """Refuse, always."""
        raise RuntimeError("cancelling freezes every thread while the server hangs: wait for it")


class WatchedCursor(extensions.cursor):  # type: ignore[misc]  # untyped
    """A cursor of such a connection."""

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - psycopg2's name
        """Execute a statement.

        A ping whose answer came in the moment of the deadline is a ``ServerHangsError`` too: the
        socket is shut all the same.
        """
        is_ping = query == _PING
        self.connection.watch(super().execute, query, vars, patience="ping" if is_ping else None)
        if is_ping and self.connection.hung:
            self.connection.close()  # By this a pool knows that it is to make another.
            raise ServerHangsError(self.connection.hung)

    def executemany(self, query: Any, vars_list: Any) -> None:
        """Execute a statement for each of many parameters."""
        self.connection.watch(super().executemany, query, vars_list)

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        """Copy rows from a file or into one."""
        self.connection.watch(super().copy_expert, sql, file, size)


@dataclass(slots=True)
class _Outage:
    """A server that cannot be reached: since when, and when it is worth another try."""

    since: float
    again_at: float = float("-inf")


def connect_watched(dialect: Any, _record: object, args: Any, options: dict[str, Any]) -> Any:
    """Make a connection of an engine: a watched one, where it bears our application name.

    Raises:
        ServerHangsError: The server took the connection and said nothing, now or a moment ago.
        DatabaseUnreachableError: To Dagster, which repeats every attempt by itself, when others
            have failed for a while.
    """
    name = str(options.get("application_name", ""))
    if not name.startswith(OURS):
        return None
    place = options.get("host"), options.get("port")
    try:
        connection = _connect(dialect, args, options, place)
    except psycopg2.OperationalError as error:
        lasted = time.monotonic() - _outages[place].since
        if name == DAGSTER and (lasted >= GIVE_UP_SECONDS or WATCHDOG.is_ending):
            raise DatabaseUnreachableError(" ".join(str(error).split())) from error
        raise
    _outages.pop(place, None)
    return connection


def _connect(dialect: Any, args: Any, options: dict[str, Any], place: _Place) -> Any:
    begun = time.monotonic()
    outage = _outages.get(place) or _Outage(begun)
    if begun < outage.again_at:
        raise ServerHangsError("PostgreSQL did not answer a moment ago")
    patience = options.pop("patience", "command")
    is_brief = WATCHDOG.is_ending or place in _outages
    options.setdefault("connect_timeout", CONNECT_SECONDS["page" if is_brief else patience])
    WATCHDOG.hear_signals()
    factory = functools.partial(WatchedConnection, patience=patience)
    try:
        return dialect.connect(*args, connection_factory=factory, **options)
    except psycopg2.OperationalError as error:
        _outages[place] = outage
        said = " ".join(str(error).split())
        if "timeout expired" not in said:
            raise
        outage.again_at = time.monotonic() + SILENCE_SECONDS[patience]
        raise ServerHangsError(f"PostgreSQL did not answer: {said}") from error


# For all engines of the process: Dagster makes those of its storage itself.
event.listen(Engine, "do_connect", connect_watched)
