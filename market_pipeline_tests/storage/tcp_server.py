"""A PostgreSQL as other people run it: over TCP, with passwords, from the embedded programs."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import psutil
import psycopg2

from market_pipeline.storage.server import embedded_keeper
from market_pipeline.storage.server.places import ServerPlace, find_place
from market_pipeline.storage.server.programs import find_reachable_programs
from market_pipeline_tests.ports import choose_port

ROLE = "analyst"
# Each of these characters means something else in an address unless it is percent-encoded.
PASSWORD = "p@ss/w:rd#1?% é"  # noqa: S105 - of a server that lives for a minute
START_SECONDS = 300.0


@dataclass(slots=True)
class TcpServer:
    """A running server and the addresses it can be asked under."""

    port: int
    process: "subprocess.Popen[bytes]"
    programs: Path
    place: ServerPlace

    def make_url(
        self, database: str = "postgres", *, scheme: str = "postgresql", password: str = PASSWORD
    ) -> str:
        """Return an address as a user would write it in DATABASE_URL."""
        return f"{scheme}://{ROLE}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def end(self, how: signal.Signals) -> None:
        """End it: SIGINT breaks off what clients do, SIGQUIT is a crash, SIGKILL is one too."""
        backends = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(how)
        self.process.wait(START_SECONDS)
        for one in backends if how is signal.SIGKILL else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(backends, START_SECONDS)

    def start_again(self, prepare: Callable[[], None] | None = None, **options: str) -> None:
        """Start it on its data, and wait until it answers; its process is prepared before."""
        self.process = _start(self.programs, self.place, self.port, prepare, options)
        _wait_until_ready(self, self.process)

    @contextlib.contextmanager
    def suspend(self) -> Iterator[None]:
        """Let the server and all its backends hang until the block ends."""
        self._signal_all(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        # The postmaster first when it is stopped, so that it starts no backend meanwhile.
        postmaster = psutil.Process(self.process.pid)
        for process in [postmaster, *postmaster.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def kill_backend(pid: int) -> None:
    """Kill one session's process, and wait until its server has ended all others.

    It ends them one after the other, and until its turn comes each still answers.
    """
    server = psutil.Process(pid).parent()
    assert server is not None
    others = server.children()
    os.kill(pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(others, START_SECONDS)
    assert not alive, f"the server did not end {alive}"


@contextlib.contextmanager
def run_tcp_server() -> Iterator[TcpServer]:
    """Run a server on loopback; its data are gone at the end."""
    with _make_place() as place:
        programs = find_reachable_programs(None, place)
        _make_data(programs, place)
        with _serve(programs, place) as server:
            yield server


@contextlib.contextmanager
def run_standby(primary: TcpServer) -> Iterator[TcpServer]:
    """Run a standby that follows a server, over TCP."""
    with _make_place() as place:
        programs = find_reachable_programs(None, place)
        source = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", ROLE]
        options = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
        common = _as_account(place)
        common["env"] = {**embedded_keeper.program_environment(), "PGPASSWORD": PASSWORD}
        subprocess.run(
            [programs / "pg_basebackup", "-D", place.home / "data", *source, *options],
            check=True, capture_output=True, **common,
        )  # fmt: skip
        with _serve(programs, place) as server:
            yield server


@contextlib.contextmanager
def _make_place() -> Iterator[ServerPlace]:
    folder = Path(tempfile.mkdtemp(prefix="mp-tcp-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield find_place(folder)
    finally:
        shutil.rmtree(folder)


def _make_data(programs: Path, place: ServerPlace) -> None:
    password_file, data = place.home / "password", place.home / "data"
    password_file.write_text(PASSWORD)
    os.chown(password_file, place.account.pw_uid, place.account.pw_gid)
    initdb = [f"--pgdata={data}", f"--username={ROLE}", f"--pwfile={password_file}"]
    subprocess.run(
        [programs / "initdb", *initdb, "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"],
        check=True, capture_output=True, **_as_account(place),
    )  # fmt: skip


@contextlib.contextmanager
def _serve(programs: Path, place: ServerPlace) -> Iterator[TcpServer]:
    port = choose_port()
    server = TcpServer(port, _start(programs, place, port), programs, place)
    try:
        _wait_until_ready(server, server.process)
        yield server
    finally:
        server.process.send_signal(signal.SIGINT)  # Fast: SIGTERM would wait for every client.
        server.process.wait(START_SECONDS)


def _start(
    programs: Path,
    place: ServerPlace,
    port: int,
    prepare: Callable[[], None] | None = None,
    changed: Mapping[str, str] = MappingProxyType({}),
) -> "subprocess.Popen[bytes]":
    options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
    return subprocess.Popen(
        [programs / "postgres", "-D", place.home / "data", "-p", str(port)]
        + [f"--{name}={value}" for name, value in {**options, **changed}.items()],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=prepare,  # noqa: PLW1509 - no thread of ours holds a lock
        **_as_account(place),
    )  # fmt: skip


def _as_account(place: ServerPlace) -> dict[str, object]:
    common = {"env": embedded_keeper.program_environment(), "cwd": "/"}
    if os.geteuid() != 0:
        return common
    account = place.account
    return {**common, "user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _wait_until_ready(server: TcpServer, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(server.make_url()).close()
            return
        time.sleep(0.02)
    raise AssertionError("the server over TCP did not start")
