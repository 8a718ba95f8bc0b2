"""A seed's kills: real runs die of SIGKILL anywhere in their work, and a good run follows.

A seed draws the work, what was stored before, and where in it the process dies: before a statement
or commit, or after a share of the time that the work takes undisturbed. Half of the time the runs
that were to repair it are killed too.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import dagster as dg
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from market_pipeline.cli.main import main as type_command
from market_pipeline.ingestion import drive
from market_pipeline.ingestion.calendars import load_calendars
from market_pipeline.ingestion.request import build_request
from market_pipeline.ingestion.ticks import open_tick
from market_pipeline.orchestration import dead_runs, io_manager
from market_pipeline.providers import mock
from market_pipeline.storage.server.database import open_database
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.schema import upgrade_schema
from market_pipeline_tests.children import ANSWER_SECONDS, Child, start_child
from market_pipeline_tests.conftest import make_database, make_environment
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.faults.crash_points import Points
from market_pipeline_tests.faults.installations import STORED, Bar, Watched
from market_pipeline_tests.faults.invariants import OPEN, assert_invariants
from market_pipeline_tests.orchestration.test_ticks import Daemon

PRELOADED = [
    "market_pipeline_tests.faults.kills.theatre", "market_pipeline.cli.run", "rich.progress",
    "market_pipeline.cli.run_request", "dagster._core.execution.execute_in_process", "upath",
    "dagster._core.instance.factory", "psycopg2.extras", "pyarrow.pandas_compat",
]  # fmt: skip
SYMBOLS = ("BTC-USD", "SPX", "ETH-USD", "VOD")
ASKED = ("--symbols", ",".join(SYMBOLS), "--lookback-days", "8", "--window-end")
INGEST = ("ingest", *ASKED, "2024-03-15T12:00")
BACKFILL = ("backfill", *ASKED[:2], "--from", "2023-05-01", "--to", "2023-06-15")
RESTATED = "BTC-USD:rescaled=1.03, SPX:restated_bar=1.01@2024-03-01..2024-03-05"
OPEN_TICKS = "SELECT tick_id FROM market_data.ingestion_tick WHERE ended_at IS NULL"
# The database refuses the bars of one market, so the wave with it is halved.
SPOIL = "ALTER TABLE market_data.market_aggregate ADD CONSTRAINT spoilt CHECK (market_id <> 3)"
MEND = "ALTER TABLE market_data.market_aggregate DROP CONSTRAINT IF EXISTS spoilt"
BLOWS = (1, 1, 2, 3)
"""How often a seed kills before it repairs: the run, and then the runs that were to repair it."""
Bars = dict[tuple[Any, ...], tuple[Any, ...]]


class Step(NamedTuple):
    """What one process does: a command or a part of a tick, with its variables and waves."""

    typed: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    waves: drive.WaveLimits = drive.WaveLimits()


class Work(NamedTuple):
    """What is killed, what precedes it, and what repairs: the same again where nothing is named."""

    killed: Step
    before: tuple[Step, ...] = ()
    repairs: tuple[Step, ...] = ()
    spoil: str = "SELECT 1"


EARLIER = (Step(("ingest", *ASKED, "2024-03-06T12:00")),)
CARRIED_ON = (Step(("tick", "rest")), Step(INGEST))
WORK = {
    "ingest": Work(Step(INGEST)),
    "waves": Work(Step(INGEST, (("FETCH_WORKERS", "4"),), drive.WaveLimits(2, 200, 0.0))),
    "halving": Work(Step(INGEST, waves=drive.WaveLimits(seconds=5.0)), spoil=f"{SPOIL} NOT VALID"),
    "traces": Work(Step(INGEST, (("MOCK_FAULTS", RESTATED),)), EARLIER),
    "backfill": Work(Step(BACKFILL)),
    "shard": Work(Step(("tick", "shards")), (), CARRIED_ON),
    "derive": Work(Step(("tick", "rest")), (Step(("tick", "shards")),), CARRIED_ON),
}


class Blow(NamedTuple):
    """Where a process is killed: at this share of its statements, or else of its time."""

    share: float
    is_statement: bool


class Measured(NamedTuple):
    """What a step had and took undisturbed."""

    points: int
    seconds: float


class Played(NamedTuple):
    """What became of one seed: rows and receipts, and what does not hold."""

    seed: int = 0
    kind: str = ""
    kills: int = 0
    lost: int = 0
    doubled: int = 0
    invented: int = 0
    left_open: int = 0
    seconds: float = 0.0
    said: str = ""

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not any((self.lost, self.doubled, self.invented, self.left_open, self.said))


class Logged(Watched):
    """The mock; what it is about to answer stands in a file that outlives the process."""

    log = Path("served")

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ.get("MOCK_FAULTS", ""))

    def note(self, bars: set[Bar]) -> None:
        """Write the bars down as one line."""
        with self.log.open("ab", buffering=0) as log:
            log.write(json.dumps(list(bars), default=datetime.isoformat).encode() + b"\n")


def live(pipe: Any, environment: Mapping[str, str], step: Step, at: int) -> None:
    """Do a step and say how it ended, or die at a point; the work of a child process."""
    os.environ.clear()
    os.environ.update({**environment, **dict(step.variables)})
    os.chdir(Path(environment["DAGSTER_HOME"]).parent)
    mock.MockProvider = Logged  # type: ignore[misc]
    drive.BarStream.__init__.__defaults__ = (step.waves,)
    dead_runs.SILENT_SECONDS = -1.0
    # Half of the time would go into pictures.
    io_manager.draw_picture = lambda *_: None
    points = Points(Engine, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    act = carry_tick if step.typed[0] == "tick" else type_command
    code = act(list(step.typed), standalone_mode=False)
    pipe.send((code, points.count))


def carry_tick(part: Sequence[str], **_: object) -> int:
    """Open a tick and carry out its shards, or end dead runs and carry out what is left of it."""
    with open_database() as engine, dg.DagsterInstance.get() as instance:
        daemon = Daemon(engine, instance)
        if part[1] == "shards":
            request = build_request(datetime.now(UTC), SYMBOLS, "mock", 8, INGEST[-1])
            open_tick(engine, uuid4(), request, "schedule", 3)
            for one in daemon.look():
                daemon.run(one)
            return 0
        look = dead_runs.DeadRunScan()
        for _ in range(2):
            with engine.begin() as connection:
                look, _ = dead_runs.end_dead_runs(instance, connection, look)
        daemon.carry_out()
        return 0


class Place:
    """A database in which steps are done, with a home of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.engine = open_engine(DatabaseAddress(url, is_embedded=True))
        self.environment = make_environment(url, folder)
        # No daemon is there to launch what Dagster would try again.
        switch_off_retries(folder / "home")

    def execute(self, statement: str) -> None:
        """Execute a statement."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql(statement)

    def begin(self, step: Step, at: int = -1) -> AbstractContextManager[Child]:
        """Begin a step, which is killed before a statement if one is given."""
        return start_child(live, self.environment, step, at, method="forkserver")

    def do(self, step: Step, *, well: bool = True) -> Measured:
        """Do a step undisturbed, which must end well unless told otherwise."""
        began = time.monotonic()
        with self.begin(step) as child:
            code, points = child.hear()
            assert code == 0 or not well, f"{step.typed[0]} ended with {code}: {child.read_log()}"
            return Measured(points, time.monotonic() - began)

    def kill(self, step: Step, blow: Blow, known: Measured) -> bool:
        """Kill a step; tell whether it had not ended before."""
        at = 1 + int(blow.share * known.points) if blow.is_statement else -1
        patience = ANSWER_SECONDS if blow.is_statement else blow.share * known.seconds
        with self.begin(step, at) as child:
            if not child.pipe.poll(patience):
                assert not blow.is_statement, f"it neither died nor ended: {child.read_log()}"
                child.process.kill()
            with suppress(EOFError):
                return child.pipe.recv() is None
            child.process.join(ANSWER_SECONDS)
            assert child.process.exitcode == -signal.SIGKILL, child.read_log()
        return True

    def read_stored(self) -> list[Bar]:
        """Return the final bars that are stored."""
        with self.engine.connect() as connection:
            return [tuple(row)[:-1] for row in connection.execute(text(STORED)) if row.is_final]

    def read_bars(self) -> Bars:
        """Return the prices of each final bar that is stored."""
        return {bar[:3]: bar[3:] for bar in self.read_stored()}

    def read_served(self) -> Bars:
        """Return the final bars as the provider served them last; a torn line was not served."""
        *lines, _ = (self.folder / Logged.log).read_text().split("\n")
        bars = (bar for line in lines for bar in json.loads(line))
        return {(*bar[:2], datetime.fromisoformat(bar[2])): tuple(bar[3:]) for bar in bars}


def switch_off_retries(home: Path) -> None:
    """Let Dagster not try runs again whose process died."""
    file, tried = home / "dagster.yaml", "run_retries:\n  enabled: "
    file.write_text(file.read_text().replace(f"{tried}true", f"{tried}false"))


class Theatre:
    """Where seeds are played: on copies of databases that were prepared once."""

    def __init__(self, server_url: str, stack: ExitStack) -> None:
        self._url, self._stack = server_url, stack
        self._sources: dict[tuple[Step, ...], Place] = {}
        self._known: dict[object, tuple[Measured, Measured, Bars]] = {}

    def play(self, seed: int) -> Played:
        """Kill as a seed says, and repair; a work that ended first is killed earlier."""
        draw, kind = random.Random(seed), list(WORK)[seed % len(WORK)]  # noqa: S311 - no secret
        before = WORK[kind].before or EARLIER[: draw.randint(0, 1)]
        blows = [Blow(draw.random(), draw.random() < 0.5) for _ in range(draw.choice(BLOWS))]
        while True:
            try:
                played = self._strike(WORK[kind], before, blows)
            except (AssertionError, SQLAlchemyError) as error:
                return Played(seed, kind, len(blows), said=str(error))
            if played is not None:
                return played._replace(seed=seed, kind=kind)
            blows = [blow._replace(share=blow.share / 2) for blow in blows]

    def _strike(self, work: Work, before: tuple[Step, ...], blows: Sequence[Blow]) -> Played | None:
        """Kill and repair, and count what is wrong then; None: the work had ended first."""
        killed, repairing, bars = self._measure(work, before)
        repairs = work.repairs or (work.killed,)
        with self.copy(before) as place:
            place.execute(work.spoil)
            if not place.kill(work.killed, blows[0], killed):
                return None
            kills, began = 1, time.monotonic()
            place.execute(MEND)
            assert_invariants(place.engine)
            for blow in blows[1:]:
                kills += place.kill(repairs[0], blow, repairing)
                began = time.monotonic()
                assert_invariants(place.engine)
            for step in repairs:
                place.do(step)
            seconds = time.monotonic() - began
            assert_invariants(place.engine, is_repaired=True, is_closed=True)
            return compare(place, bars)._replace(kills=kills, seconds=seconds)

    def _measure(self, work: Work, before: tuple[Step, ...]) -> tuple[Measured, Measured, Bars]:
        """Return what a work and its repair take undisturbed, and what is stored then."""
        if (work, before) not in self._known:
            with self.copy(before) as place:
                place.execute(work.spoil)
                killed = place.do(work.killed, well=False)
                place.execute(MEND)
                repaired = [place.do(step) for step in work.repairs or (work.killed,)]
                bars = place.read_bars()
                assert compare(place, bars).is_good, "the undisturbed run is wrong"
                self._known[work, before] = killed, repaired[0], bars
        return self._known[work, before]

    def copy(self, before: tuple[Step, ...] = ()) -> AbstractContextManager[Place]:
        """Open a copy of a database in which these steps were done, once."""
        if before not in self._sources:
            opened = _open_place(self._url) if not before else self.copy()
            source = self._sources[before] = self._stack.enter_context(opened)
            upgrade_schema(source.engine)
            load_calendars(source.engine, ["XNYS"])
            # The first process makes Dagster's tables.
            for step in before or (Step(("tick", "rest")),):
                source.do(step)
            source.engine.dispose()
        return _open_place(self._url, self._sources[before])


@contextmanager
def _open_place(server_url: str, source: Place | None = None) -> Iterator[Place]:
    name = "template0" if source is None else str(source.engine.url.database)
    folder = tempfile.TemporaryDirectory(prefix="mp-kills-")
    with make_database(server_url, name) as url, folder as path:
        place = Place(url, Path(path))
        for served in source.folder.glob(Logged.log.name) if source is not None else ():
            shutil.copy(served, path)
        yield place
        place.engine.dispose()


def compare(place: Place, undisturbed: Bars) -> Played:
    """Count what is not as the provider served it, or as an undisturbed run stores it."""
    rows = place.read_stored()
    wanted, stored = undisturbed | place.read_served(), place.read_bars()
    return Played(
        lost=sum(stored.get(key) != prices for key, prices in wanted.items()),
        doubled=len(rows) - len(stored),
        invented=len(stored.keys() - wanted.keys()),
        left_open=sum(len(read_column(place.engine, query)) for query in (OPEN, OPEN_TICKS)),
    )


@contextmanager
def open_theatre(server_url: str) -> Iterator[Theatre]:
    """Open what seeds are played on, until the block ends."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    with ExitStack() as stack:
        yield Theatre(server_url, stack)
