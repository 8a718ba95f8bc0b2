"""Debian's PostgreSQL as other people run it: over TCP, with a password (scram-sha-256).

The oldest server that is installed and supported is taken: the newest is the embedded one, which
the other tests use. A server that listens on loopback only, on a data folder of its own, which does
not outlive the tests.
"""

import contextlib
import getpass
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psycopg2

from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.system.processes import wait_for

PROGRAMS = Path("/usr/lib/postgresql")
OLDEST_VERSION = 15
ROLE = "analyst"
# Each of these characters means something else in an address unless it is percent-encoded.
PASSWORD = "p@ss/w:rd#1?%"  # noqa: S105 - of a server that lives for a minute
START_SECONDS = 300.0
STOP_SECONDS = 300.0
OPTIONS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and what the tests connect with."""

    port: int
    version: int

    def make_url(self, scheme: str, database: str, password: str = PASSWORD) -> str:
        """Return a database's address as a user would write it in DATABASE_URL."""
        return f"{scheme}://{ROLE}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Create an empty database and return its name."""
        name = f"market_{uuid4().hex[:12]}"
        connection = psycopg2.connect(self.make_url("postgresql", "postgres"))
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        return name

    def answers(self) -> bool:
        """Say whether it lets the role in."""
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(self.make_url("postgresql", "postgres"), connect_timeout=5).close()
            return True
        return False


def find_programs() -> tuple[int, Path]:
    """Return version and program folder of the oldest supported server.

    Raises:
        AssertionError: None is installed.
    """
    versions = sorted(int(one.name) for one in PROGRAMS.glob("*") if one.name.isdigit())
    supported = [one for one in versions if one >= OLDEST_VERSION]
    assert supported, f"no PostgreSQL {OLDEST_VERSION} or newer in {PROGRAMS}: make system-deps"
    return supported[0], PROGRAMS / str(supported[0]) / "bin"


@contextlib.contextmanager
def run_server() -> Iterator[Server]:
    """Run a server for as long as the context; its data are gone at the end."""
    version, programs = find_programs()
    account = choose_account()
    # Not below a private folder: the account could not get in.
    home = Path(tempfile.mkdtemp(prefix="mp-debian-", dir="/tmp"))
    home.chmod(0o755)
    try:
        data = create_data(home, programs, account)
        with serve(data, programs, account, Server(choose_port(), version)) as server:
            yield server
    finally:
        shutil.rmtree(home)


def choose_account() -> str:
    """Return the account the server runs as: PostgreSQL refuses to be root."""
    if os.geteuid() != 0:
        return getpass.getuser()
    accounts = {one.pw_name for one in pwd.getpwall()}
    return "postgres" if "postgres" in accounts else "nobody"


def become(account: str) -> list[str]:
    """Return the words that run a command as an account, killed if the tests are."""
    guard = ["setpriv", "--pdeathsig=INT"]
    if os.geteuid() != 0:
        return guard
    entry = pwd.getpwnam(account)
    return [*guard, f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]


def create_data(home: Path, programs: Path, account: str) -> Path:
    """Make a data folder whose one role needs its password."""
    data, password_file = home / "data", home / "password"
    data.mkdir(mode=0o700)
    password_file.write_text(PASSWORD, encoding="utf-8")
    if os.geteuid() == 0:
        shutil.chown(data, account)
    options = [f"--username={ROLE}", f"--pwfile={password_file}", "--auth=scram-sha-256"]
    initdb = [str(programs / "initdb"), f"--pgdata={data}", "--encoding=UTF8", "--locale=C"]
    subprocess.run(
        [*become(account), *initdb, *options, "--no-sync"],
        check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=START_SECONDS,
    )  # fmt: skip
    return data


@contextlib.contextmanager
def serve(data: Path, programs: Path, account: str, server: Server) -> Iterator[Server]:
    """Start the server on its data, wait until it answers, stop it at the end."""
    options = [word for name, value in OPTIONS.items() for word in ("-c", f"{name}={value}")]
    command = [str(programs / "postgres"), "-D", str(data), "-p", str(server.port), *options]
    log = data.parent / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*become(account), *command],
            cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: server.answers() or process.poll() is not None, START_SECONDS, "postgres")
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield server
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server without waiting for its clients (SIGTERM would)."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
