"""The keeper: starts one embedded PostgreSQL server and stops it after its last client.

A server that dies meanwhile is started again on the same socket: clients that only hold its address
run no command that would do it.

It runs as a process of its own, by file path, and imports the standard library only: it starts in
milliseconds, needs no more than an interpreter, and no package of the project is loaded as root.
What a client does (finding the folder, joining, waiting until the server answers) is in
``embedded.py``.

Four lock files lie beside the data. The kernel gives an ``flock`` back however its holder ends, so
none of them is ever stale:

========== ============================== ==========================================================
file       held by                        meaning
========== ============================== ==========================================================
clients    each client, shared            somebody needs the server. The keeper waits for the
                                          exclusive lock and holds it while stopping, so a client
                                          that arrives then waits, and starts a new server
start      a client while it starts one   one start at a time
keeper     the keeper, exclusive          somebody will stop the server
server     initdb, the server and each    something works on the data folder. Inherited, so it
           of its backends (inherited)    outlives a killed keeper and even a killed postmaster
========== ============================== ==========================================================
"""

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

ROLE = "market_pipeline"
PORT = 5432
POLL_SECONDS = 0.02
# Fast, at once, by force: each signal, and how long it is given.
STOP_STEPS = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 15.0), (signal.SIGKILL, 15.0))
RESTART_TRIES = 5
FIRST_PAUSE_SECONDS = 0.3
# A server that ran so long before it died is not one that cannot start.
CALM_SECONDS = 300.0
ORPHAN_PATIENCE_SECONDS = 5.0
ORPHAN_DEADLINE_SECONDS = 90.0
LOG_CHECK_SECONDS = 60.0
LOG_MAX_BYTES = 16 * 2**20

# Written once, into postgresql.conf of a new data folder: the user may change them there.
CONFIGURATION = """
# Market Pipeline's settings
max_connections = 100
shared_buffers = '128MB'
max_wal_size = '2GB'
wal_compression = on
# Bars are read in the order of their key, and from memory or a disk without a head.
random_page_cost = 1.1
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %q%u@%d '
"""


class KeeperError(Exception):
    """The server could not be started; the message says why."""


class ServerSpec(NamedTuple):
    """What the keeper is told on its command line."""

    home: Path
    socket_dir: Path
    pg_bin: Path
    account: str
    linger_seconds: float

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> "ServerSpec":
        """Read it from a command line, to which a client has written each field in turn."""
        home, socket_dir, pg_bin, account, linger_seconds = arguments
        return cls(Path(home), Path(socket_dir), Path(pg_bin), account, float(linger_seconds))


def open_lock(path: Path) -> int:
    """Open a lock file, made if missing and given to its folder's owner; return the descriptor."""
    if os.geteuid() == 0 and not path.exists():
        _make_lock(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    owner = path.parent.stat()
    if os.geteuid() == 0 and os.fstat(descriptor).st_uid != owner.st_uid:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def _make_lock(path: Path) -> None:
    """Make a lock file and its owner in one step: the owner never finds it closed as root's."""
    owner = path.parent.stat()
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
        with contextlib.suppress(FileExistsError):  # somebody else made it meanwhile
            os.link(draft, path)
    finally:
        os.close(descriptor)
        Path(draft).unlink()


def try_lock(descriptor: int, kind: int) -> bool:
    """Take a lock (``LOCK_SH`` or ``LOCK_EX``) if it is free; say whether it was."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Say whether somebody holds the exclusive lock on a file."""
    descriptor = open_lock(path)
    try:
        return not try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def is_listening(socket_dir: Path) -> bool:
    """Say whether a server accepts connections on the socket in a folder."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        with contextlib.suppress(OSError):
            probe.connect(str(socket_dir / f".s.PGSQL.{PORT}"))
            return True
    return False


def become(account: str) -> None:
    """Give up root for an account; an ordinary user stays what they are."""
    if os.geteuid() != 0:
        return
    entry = pwd.getpwnam(account)
    os.initgroups(account, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def take_server_lock(spec: ServerSpec) -> int | None:
    """Wait until nothing works on the data folder; None if a server does and answers.

    Backends that outlived their postmaster leave by themselves when they next wait for anything;
    those that do not are told to after a few seconds. One that stays for too long is an error.
    """
    descriptor = open_lock(spec.home / "server.lock")
    begun = time.monotonic()
    while not try_lock(descriptor, fcntl.LOCK_EX):
        if is_listening(spec.socket_dir):
            os.close(descriptor)
            return None
        waited = time.monotonic() - begun
        if waited > ORPHAN_DEADLINE_SECONDS:
            raise KeeperError(f"processes of an earlier server still run after {waited:.0f} s")
        if waited > ORPHAN_PATIENCE_SECONDS:
            dismiss_orphans(spec)
        time.sleep(POLL_SECONDS if waited < ORPHAN_PATIENCE_SECONDS else 1.0)
    return descriptor


def cluster_name(spec: ServerSpec) -> str:
    """Name the server in its processes' titles; ASCII, at most 63 characters."""
    return f"{ROLE}-{spec.home.stat().st_ino}"


def dismiss_orphans(spec: ServerSpec) -> None:
    """Tell backends whose postmaster is dead to leave (SIGQUIT: at once, nothing is lost)."""
    title = f"postgres: {cluster_name(spec)}: "
    with contextlib.suppress(OSError, KeeperError):
        listing = run_program(["ps", "-A", "-o", "pid=", "-o", "command="])
        for pid, _, command in (line.strip().partition(" ") for line in listing.splitlines()):
            if command.startswith(title):
                os.kill(int(pid), signal.SIGQUIT)


def run_program(command: list[str], keep_open: int | None = None) -> str:
    """Run a program to its end and return what it printed; a failure holds its last words."""
    done = subprocess.run(  # noqa: S603 - our own programs
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        pass_fds=() if keep_open is None else (keep_open,),
        env=program_environment(),
    )
    if done.returncode:
        last_words = done.stdout[-1500:].strip()
        raise KeeperError(f"{command[0]} ended with {done.returncode}: {last_words}")
    return done.stdout


def program_environment() -> dict[str, str]:
    """Build a small environment: none of the caller's PG* variables, English messages."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C"}


def create_data(spec: ServerSpec, server_lock: int) -> None:
    """Make the data folder: in a sibling first, so a kill leaves nothing half made."""
    draft = spec.home / "data.new"
    shutil.rmtree(draft, ignore_errors=True)
    options = ["--encoding=UTF8", "--locale=C", "--data-checksums", "--auth=peer"]
    initdb = [str(spec.pg_bin / "initdb"), "--pgdata", str(draft), f"--username={ROLE}"]
    run_program([*initdb, *options], keep_open=server_lock)
    with (draft / "postgresql.conf").open("a", encoding="utf-8") as configuration:
        configuration.write(CONFIGURATION)
        configuration.flush()
        os.fsync(configuration.fileno())
    draft.rename(spec.home / "data")


def write_authentication(spec: ServerSpec) -> None:
    """Let the server's own account and root in as the role; nobody else, and no password."""
    names = dict.fromkeys((spec.account, pwd.getpwuid(0).pw_name))
    lines = [f'{ROLE} "{name}" "{ROLE}"\n' for name in names]
    (spec.home / "hba.conf").write_text(f"local all all peer map={ROLE}\n", encoding="utf-8")
    (spec.home / "ident.conf").write_text("".join(lines), encoding="utf-8")


def server_command(spec: ServerSpec) -> list[str]:
    """Build the command line; it holds what depends on the place, so a folder can be moved."""
    # A list of folders in the server's eyes: quoted, a comma or space in the path is harmless.
    sockets = '"' + str(spec.socket_dir).replace('"', '""') + '"'
    place = {
        "listen_addresses": "",
        "unix_socket_directories": sockets,
        "unix_socket_permissions": "0700",
        "hba_file": str(spec.home / "hba.conf"),
        "ident_file": str(spec.home / "ident.conf"),
        "logging_collector": "off",
        "lc_messages": "C",
        "cluster_name": cluster_name(spec),
    }
    options = [word for name, value in place.items() for word in ("-c", f"{name}={value}")]
    data = str(spec.home / "data")
    return [str(spec.pg_bin / "postgres"), "-D", data, "-p", str(PORT), *options]


def launch(spec: ServerSpec, server_lock: int, is_first: bool) -> int:
    """Start the server, which inherits the lock that we hold; return its process id.

    After the first server of this keeper, the files of the dead one stay, and the server itself
    decides whether they are stale.
    """
    data = spec.home / "data"
    if not (data / "PG_VERSION").exists():
        create_data(spec, server_lock)
    write_authentication(spec)
    data.chmod(0o700)  # a copy made with other permissions is refused by the server
    if is_first:
        # We hold the lock, so the process these name is no server of this folder, whatever its
        # number: after a restart of a container it may be another process.
        (data / "postmaster.pid").unlink(missing_ok=True)
        (spec.socket_dir / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
    with (spec.home / "server.log").open("ab") as log:
        server = subprocess.Popen(  # noqa: S603 - our own program
            server_command(spec),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(server_lock,),
            start_new_session=True,
            env=program_environment(),
        )
    os.close(server_lock)  # the server has its own
    server.returncode = 0  # waited for by ``Server``, not by this object
    return server.pid


def read_server_pid(home: Path) -> int:
    """Read the running server's process id from its own file."""
    return int((home / "data" / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])


def trim_log(log: Path, max_bytes: int = LOG_MAX_BYTES) -> None:
    """Move a long log to ``server.log.1`` in place: the server appends to the same file."""
    with contextlib.suppress(OSError):
        if log.stat().st_size <= max_bytes:
            return
        with contextlib.suppress(OSError):
            shutil.copyfile(log, log.with_name("server.log.1"))
        os.truncate(log, 0)


def trim_log_forever(home: Path) -> NoReturn:
    """Keep the log short while the server runs."""
    while True:
        trim_log(home / "server.log")
        time.sleep(LOG_CHECK_SECONDS)


class Server:
    """The running server: started again when it dies, until it is to stop.

    A server that was stopped in order, or never came up, removes its pid file: it stays down, and
    this process ends. An adopted server is not our child: its lock says when its last process is
    gone.
    """

    def __init__(self, spec: ServerSpec, pid: int) -> None:
        self._spec, self._pid = spec, pid
        self._is_stopping = False
        self._was_killed = False
        self._turn = threading.Lock()

    def keep_running(self) -> NoReturn:
        """Start the server again after each death; leave when it ended otherwise."""
        tries = 0
        while True:
            begun = time.monotonic()
            has_died = self._wait_for_end()
            if not has_died:
                os._exit(0)
            tries = 0 if time.monotonic() - begun > CALM_SECONDS else tries
            if tries == RESTART_TRIES:
                os._exit(1)
            time.sleep(FIRST_PAUSE_SECONDS * 2**tries)
            tries += 1
            sys.stdout.write(f"the server died and is started again, try {tries}\n")
            sys.stdout.flush()
            self._start_again()

    def stop(self) -> None:
        """Stop it: fast, then at once, then by force; ``keep_running`` ends the wait."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for signal_number, seconds in STOP_STEPS:
            with self._turn:
                self._is_stopping = True
                if not self._pid:
                    os._exit(0)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal_number)
            time.sleep(seconds)

    def _wait_for_end(self) -> bool:
        """Wait until the server is gone, and say whether it is to be started again."""
        status = 1
        try:
            # Not reaped before nobody can send a signal to its number any more.
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            descriptor = open_lock(self._spec.home / "server.lock")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.close(descriptor)
        with self._turn:
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(self._pid, 0)
            self._pid = 0
            self._was_killed |= (self._spec.home / "data" / "postmaster.pid").exists()
            return self._was_killed and status != 0 and not self._is_stopping

    def _start_again(self) -> None:
        with self._turn:
            if self._is_stopping:
                os._exit(0)
            try:
                self._pid = start_or_adopt(self._spec, is_first=False)
            except (KeeperError, OSError, ValueError) as error:
                sys.stdout.write(f"{error}\n")
                sys.stdout.flush()
                os._exit(1)


def wait_for_last_client(home: Path, linger_seconds: float) -> None:
    """Return once there was no client for a while; the lock stays ours until this process ends."""
    clients = open_lock(home / "clients.lock")
    while True:
        fcntl.flock(clients, fcntl.LOCK_EX)
        fcntl.flock(clients, fcntl.LOCK_UN)
        time.sleep(linger_seconds)
        if try_lock(clients, fcntl.LOCK_EX):
            return


def leave_on_request(_signal_number: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM (a shutdown of the machine, an administrator) into an orderly stop."""
    raise SystemExit(0)


def become_keeper(home: Path) -> bool:
    """Take the keeper's lock; False if another keeper has it.

    A client that only looks holds it for microseconds, so one refusal is no answer.
    """
    descriptor = open_lock(home / "keeper.lock")
    deadline = time.monotonic() + 1.0
    while not try_lock(descriptor, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def start_or_adopt(spec: ServerSpec, is_first: bool = True) -> int:
    """Return the process id of the server, started unless one already answers."""
    server_lock = take_server_lock(spec)
    if server_lock is None:
        return read_server_pid(spec.home)
    return launch(spec, server_lock, is_first)


def hang_up(home: Path) -> None:
    """Point standard output and error at the log: the client waits for the end of our output."""
    log = os.open(home / "server.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)


def keep(spec: ServerSpec) -> None:
    """Start or adopt the server, wait for its last client, stop it."""
    become(spec.account)
    os.umask(0o077)
    if not become_keeper(spec.home):
        return
    signal.signal(signal.SIGTERM, leave_on_request)
    server = Server(spec, start_or_adopt(spec))
    hang_up(spec.home)
    threading.Thread(target=server.keep_running, daemon=True).start()
    threading.Thread(target=trim_log_forever, args=(spec.home,), daemon=True).start()
    try:
        wait_for_last_client(spec.home, spec.linger_seconds)
    finally:
        server.stop()


def main(arguments: list[str]) -> None:
    """Detach from the client, then keep; what goes wrong is printed for the client to report."""
    if os.fork():
        os._exit(0)
    try:
        keep(ServerSpec.from_arguments(arguments))
    except (KeeperError, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        sys.stdout.write(f"{error}\n")
        sys.stdout.flush()
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
