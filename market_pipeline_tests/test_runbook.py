"""RUNBOOK.md is executed: each entry's symptom is caused, and then its commands are typed.

Symptoms that take longer to cause are in ``faults/test_runbook_*.py``, that of a full disk is in
``faults/test_disks.py``.

An entry's parts are read from the file, and so are the commands: code that begins with one of this
project's programs. Those that need a service manager or a served port are in ``NEEDS_A_SERVICE``.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, create_engine, make_url, text

from market_pipeline.cli.main import main
from market_pipeline.definitions import build_definitions
from market_pipeline.domain import errors
from market_pipeline.domain.errors import PipelineError
from market_pipeline.settings import SETTINGS
from market_pipeline.storage.ledgers import metadata
from market_pipeline_tests.cache.valkey import Valkey
from market_pipeline_tests.commands import ROOT, SCRIPTS
from market_pipeline_tests.databases import hold_up_writers, read_column
from market_pipeline_tests.replay import ReplayServer, answer_with
from market_pipeline_tests.storage.tcp_server import run_tcp_server
from market_pipeline_tests.system.processes import run_in_background, wait_for

CLAIMS = "SELECT count(*) FROM market_data.fetch_claim"
ABOUT_COINBASE = """SELECT kind FROM market_data.alert
    WHERE members::text LIKE '%coinbase%' AND cleared_at IS NULL"""
RUNBOOK = (ROOT / "RUNBOOK.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "RUNBOOK.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOLD = ("Check", "Act", "Verify")
PARTS = ("Symptom", *TOLD)
# Not entries: an index.
INDEX = "What an error means"
PROGRAMS = ("market-pipeline", "dagster-daemon", "df", "env")
NEEDS_A_SERVICE = (
    "curl", "docker", "git", "journalctl", "make", "systemctl", "market-pipeline serve",
)  # fmt: skip
WORDS = {
    "MARKET": "ETH-USD",
    "ALERT_ID": "00000000-0000-0000-0000-000000000000",
    "ID": "1",
    "V1..V2": "0..1",
    "V1": "1",
    "why ...": "why BTC-USD sharpe",
    "--from ...": "--from 2024-03-01 --to 2024-03-10",
}
START_SECONDS = 300.0
QUICK = {"INGESTION_MARKETS": "BTC-USD,ETH-USD", "INGESTION_LOOKBACK_DAYS": "3"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One situation: its parts, and the commands in each."""

    title: str
    parts: dict[str, str]

    def list_commands(self, part: str) -> list[str]:
        """Return the commands that a part tells to type, on one line each."""
        spans = re.findall(r"`([^`]+)`", self.parts[part])
        joined = [" ".join(span.split()) for span in spans]
        known = (*PROGRAMS, *NEEDS_A_SERVICE)
        return [one for one in joined if one.split()[0] in known or one.startswith(known)]


def read_entries() -> dict[str, Entry]:
    """Return the runbook's entries by title."""
    entries = {}
    for section in re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        found = re.split(r"^- \*\*(\w+)\*\*: ", body, flags=re.MULTILINE)
        entries[title] = Entry(title, dict(zip(found[1::2], found[2::2], strict=True)))
    del entries[INDEX]
    return entries


ENTRIES = read_entries()


@dataclass
class Stack:
    """A project at work: its environment, and commands typed into it."""

    monkeypatch: pytest.MonkeyPatch
    folder: Path
    ran: list[str] = field(default_factory=list)

    def set(self, **variables: str) -> None:
        """Change the environment, as an operator changes settings."""
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value)

    def type(self, command: str, expected: tuple[int, ...] = (0,)) -> str:
        """Run a command of the runbook and return what it printed."""
        self.ran.append(command)
        words = shlex.split(fill(command, self.folder))
        if words[0] == "market-pipeline":
            done = CliRunner().invoke(main, words[1:])
            code, said = done.exit_code, done.output
            assert done.exception is None or isinstance(done.exception, SystemExit), command
        else:
            run = subprocess.run(words, capture_output=True, text=True, check=False)
            code, said = run.returncode, run.stdout + run.stderr
        assert code in expected, f"{command}: exit code {code}\n{said}"
        return said

    def follow(self, title: str, part: str, expected: tuple[int, ...] = (0,)) -> str:
        """Type all commands of a part that need no service, and return what they printed."""
        commands = ENTRIES[title].list_commands(part)
        here = [one for one in commands if not one.startswith(NEEDS_A_SERVICE)]
        return "\n".join(self.type(command, expected) for command in here)


def fill(command: str, folder: Path) -> str:
    """Return a command with the words in capitals replaced by something that is there."""
    for word, meaning in WORDS.items():
        command = re.sub(rf"(?<![\w-]){re.escape(word)}(?!\w)", meaning, command)
    return re.sub(r"\b([A-Z]+)\.dump\b", rf"{folder}/\1.dump", command)


@pytest.fixture
def stack(
    engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Stack:
    """A project on a real database, two markets, three days."""
    del engine
    monkeypatch.chdir(tmp_path)
    for name in {setting.name for setting in SETTINGS} & set(os.environ):
        monkeypatch.delenv(name)
    made = Stack(monkeypatch, tmp_path)
    made.set(PATH=f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}")
    made.set(DATABASE_URL=database_url, DAGSTER_HOME=str(ROOT), STATE_DIR=str(tmp_path), **QUICK)
    return made


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_every_entry_has_four_parts_and_commands_that_exist(entry: Entry) -> None:
    """Symptom, check, act, verify; and no command or option that the program does not have."""
    assert tuple(entry.parts) == PARTS
    for part in TOLD:
        for command in entry.list_commands(part):
            words = shlex.split(fill(command, Path()))
            if words[0] == "market-pipeline":
                parse(main, words[1:])


def parse(command: click.Command, words: list[str]) -> None:
    """Parse a command line down to its last command; click refuses what does not exist."""
    context = command.make_context(command.name, list(words), resilient_parsing=False)
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest and command.invoke_without_command:
            return
        _, found, rest = command.resolve_command(context, rest)
        assert found is not None
        parse(found, rest)


def test_every_entry_has_a_test_that_causes_its_symptom() -> None:
    """The test names the entry."""
    files = (ROOT / "market_pipeline_tests").rglob("test_*.py")
    told = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert [title for title in ENTRIES if f'"{title}"' not in told] == []


def test_every_link_leads_to_an_entry() -> None:
    """The table of errors, and what entries say of each other."""
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in ENTRIES}
    anchors.add("what-an-error-means")
    assert set(re.findall(r"\(#([a-z0-9-]+)\)", RUNBOOK)) <= anchors


@pytest.mark.faults
def test_a_run_failed(stack: Stack) -> None:
    """Every market times out; then the provider is well again."""
    stack.set(MOCK_FAULTS="BTC-USD:timeout,ETH-USD:timeout")
    assert "in time" in stack.type("market-pipeline ingest", (1,))
    assert "failed" in stack.follow("A run failed", "Check")
    stack.set(MOCK_FAULTS="")
    assert stack.follow("A run failed", "Act").rstrip().endswith(": ok")


@pytest.mark.faults
def test_a_source_is_blocked(stack: Stack, database_url: str) -> None:
    """Its location is refused for good; another source serves the symbols, as other markets."""
    title = "A source is blocked or retired"
    with ReplayServer() as server:
        server.misbehave(answer_with(b"{}", 451), times=99, path="/coinbase")
        stack.set(**server.environ, INGESTION_PROVIDER="coinbase")
        said = "does not serve this machine's location"
        assert said in " ".join(stack.type("market-pipeline ingest", (1,)).split())
        assert "451" in stack.follow(title, "Check", (0, 3))
        stack.set(INGESTION_PROVIDER="mock,coinbase")
        stack.follow(title, "Act")
        assert stack.follow(title, "Verify").rstrip().endswith(": ok")
        assert read_column(database_url, ABOUT_COINBASE) != []
        for symbol in QUICK["INGESTION_MARKETS"].split(","):
            stack.type(f"market-pipeline markets deactivate coinbase:{symbol}")
        stack.type("market-pipeline alerts deliver")
        assert read_column(database_url, ABOUT_COINBASE) == []


@pytest.mark.faults
def test_a_provider_is_down(stack: Stack) -> None:
    """One market comes short, and the next run fills what is missing."""
    stack.set(MOCK_FAULTS="ETH-USD:timeout")
    assert ": partial" in stack.type("market-pipeline ingest", (3,))
    shown = stack.follow("A provider is down", "Check")
    assert "ETH-USD" in shown
    assert "in time" in shown
    stack.set(MOCK_FAULTS="")
    verified = stack.follow("A provider is down", "Verify")
    assert ": ok" in verified
    assert "fetch_failed" not in verified


@pytest.mark.faults
def test_the_calendar_is_suspect(stack: Stack) -> None:
    """A file has rows of four holidays; somebody looks, and finds the provider to be odd."""
    closed = pd.DatetimeIndex(["2023-11-23", "2023-12-25", "2024-01-01", "2024-01-15"])
    dates = pd.bdate_range("2023-08-01", "2024-02-02").difference(pd.DatetimeIndex(["2023-09-04"]))
    rows = [f"{date:%Y-%m-%d},{20 + at}\n" for at, date in enumerate(dates)]
    assert closed.isin(dates).all()
    (stack.folder / "VIX.csv").write_text("date,close\n" + "".join(rows))
    stack.set(INGESTION_PROVIDER="file", INGESTION_MARKETS="VIX", INGESTION_LOOKBACK_DAYS="150")
    stack.set(FILE_PROVIDER_PATH=str(stack.folder))
    told = stack.type("market-pipeline ingest --window-end 2024-02-02T12:00Z", (3,))
    assert "calendar XNYS is suspect: bars came on 4 of 5 weekdays" in told
    shown = stack.follow("The calendar is suspect", "Check")
    assert "not_a_session" in shown
    assert "XNYS" in shown
    assert "1 rows discarded" in stack.follow("The calendar is suspect", "Act")
    healed = stack.type("market-pipeline ingest --window-end 2024-02-02T12:00Z")
    assert healed.rstrip().endswith(": ok")


@pytest.mark.faults
def test_the_database_cannot_be_used(stack: Stack, database_url: str, server_url: str) -> None:
    """A server that stopped, one that accepts no writes as after a fail-over, the new primary."""
    title = "The database cannot be used"
    with run_tcp_server() as server:
        stack.set(DATABASE_URL=server.make_url())
        assert ": ok" in stack.follow(title, "Verify")
    assert "check the address, and that the server runs" in stack.follow(title, "Check", (1,))
    stack.set(DATABASE_URL=database_url)
    administer(server_url, database_url, "SET default_transaction_read_only = on")
    assert "accepts no writes" in stack.follow(title, "Check", (1,))
    administer(server_url, database_url, "RESET default_transaction_read_only")
    stack.follow(title, "Act")
    assert ": ok" in stack.follow(title, "Verify")


def administer(server_url: str, database_url: str, setting: str) -> None:
    """Change a setting of a database from outside of it."""
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {make_url(database_url).database} {setting}"))
    admin.dispose()


@pytest.mark.faults
def test_the_cache_is_in_trouble(stack: Stack) -> None:
    """Redis stopped: the run is as good as with it, and says so in the words quoted."""
    server = Valkey().start()
    try:
        stack.set(REDIS_URL=server.url)
        server.kill()
        said, told = stack.type("market-pipeline ingest"), "the cache server is in trouble ("
        assert ": ok" in said
        assert told in said
        assert told in ENTRIES["The cache is in trouble"].parts["Symptom"]
        server.start()
        assert "in trouble" not in stack.type("market-pipeline ingest")
    finally:
        server.close()


@pytest.mark.faults
def test_a_run_does_not_end(stack: Stack, database_url: str, tmp_path: Path) -> None:
    """A run is killed while it holds claims; the entry shows them, and the next run goes on."""
    kill_at_work(database_url, tmp_path, "ingest")
    stack.follow("A run does not end", "Check", (0, 1))  # 1: it had committed nothing
    assert read_column(database_url, CLAIMS) != [0]
    assert ": ok" in stack.follow("A run does not end", "Verify")
    assert read_column(database_url, CLAIMS) == [0]


def kill_at_work(database_url: str, folder: Path, *arguments: str) -> None:
    """Begin a run of the command, and kill it while it holds claims."""
    command = [str(SCRIPTS / "market-pipeline"), *arguments]
    with hold_up_writers(database_url), run_in_background(command, os.environ, folder) as run:
        wait_for(lambda: read_column(database_url, CLAIMS) != [0], START_SECONDS, "a claim", run)
        run.process.kill()


def execute(address: str, statement: str) -> None:
    """Change the database."""
    engine = create_engine(address)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


@pytest.mark.faults
def test_i6_tables_are_lost_and_restored(stack: Stack, database_url: str) -> None:
    """Backup, loss, restore; then an upgrade that is taken back, and ledger and bars agree."""
    stack.type("market-pipeline ingest")
    stack.follow("Restore from a backup", "Check")
    execute(database_url, "DROP SCHEMA market_data CASCADE; DROP SCHEMA dagster CASCADE")
    lost = stack.type("market-pipeline db status")
    assert "none" in lost
    stack.follow("Restore from a backup", "Act")
    verified = stack.follow("Restore from a backup", "Verify")
    assert "The ledger and the bars agree." in verified
    assert ": ok" in verified
    stack.follow("Upgrade and rollback", "Check")
    stack.follow("Upgrade and rollback", "Act")
    assert ": ok" in stack.follow("Upgrade and rollback", "Verify")


def list_error_classes(base: type[PipelineError]) -> Iterator[str]:
    """Yield the class and all below it that this project defines for its users."""
    yield base.__name__
    for one in base.__subclasses__():
        if one.__module__ == errors.__name__:
            yield from list_error_classes(one)


def list_names() -> dict[str, list[str]]:
    """Return everything that an operator may meet by name."""
    repository = build_definitions().get_repository_def()
    jobs = [job.name for job in repository.get_all_jobs() if not job.name.startswith("__")]
    return {
        "setting": [setting.name for setting in SETTINGS],
        "job": jobs,
        "schedule": [schedule.name for schedule in repository.schedule_defs],
        "sensor": [sensor.name for sensor in repository.sensor_defs],
        "asset": [key.to_user_string() for key in repository.assets_defs_by_key],
        "table": [table.name for table in metadata.sorted_tables],
        "error": list(list_error_classes(PipelineError)),
    }


@pytest.mark.parametrize(("kind", "names"), list_names().items(), ids=list_names())
def test_the_documents_name_everything_an_operator_may_meet(kind: str, names: list[str]) -> None:
    """Settings, jobs, schedules, sensors, assets, tables and errors, in code quotes."""
    told = "\n".join(one.read_text(encoding="utf-8") for one in DOCUMENTS)
    prose = re.sub(r"^```.*?^```", "", told, flags=re.MULTILINE | re.DOTALL)
    quoted = set(re.findall(r"[A-Za-z_0-9/]+", " ".join(re.findall(r"`[^`]+`", prose))))
    assert names, kind
    assert [name for name in names if name not in quoted] == []
