"""Whole commands: the ingest job beside one that does nothing, and how fast the code loads."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks import empty_job
from benchmarks.bench import Bench, Measurement
from benchmarks.database import open_database
from benchmarks.figures import Figure
from benchmarks.rounds import Way, compare
from market_pipeline.settings import SETTINGS, find_project_dir

_SCRIPTS = Path(sys.executable).parent
_NOTES = {
    "ingest": "dagster job execute; mock provider, default markets, one hour later in each round",
    "noop_ingest": "dagster job execute; the same hour again, with nothing to do",
}
_IMPORT_FACTOR = 2
"""Twice the rounds: an import takes a second or two, and varies with the disk's cache."""


def measure_ingest(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield the ratios of the ingest job, with and without an hour's new bars, to the empty job."""
    home = bench.folder / "home"
    home.mkdir()
    shutil.copy(find_project_dir() / "dagster.yaml", home)
    with open_database(bench.server_url) as database:
        job = _Jobs(home, database.url, bench.rounds)
        job.ingest()
        runs = {"ingest": job.ingest, "noop_ingest": job.ingest_again}
        ways = [Way(name, run) for name, run in runs.items() if f"{name}_vs_empty_job" in wanted]
        comparison = compare([*ways, Way("empty_job", job.run_empty)], bench.rounds, bench.report)
    for way in ways:
        name = f"{way.name}_vs_empty_job"
        yield comparison.build_ratio(name, way.name, "empty_job", _NOTES[way.name])


class _Jobs:
    """The two commands on one database; each ingest sees one hour more than the last."""

    def __init__(self, home: Path, url: str, rounds: int) -> None:
        self._home = home
        self._environment = build_environment(
            {"DATABASE_URL": url, "DAGSTER_HOME": str(home), **count_definitions()}
        )
        now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        self._window_end = now - timedelta(hours=rounds + 1)

    def ingest(self) -> None:
        """Run the product's job as of an hour after the last."""
        self._window_end += timedelta(hours=1)
        self.ingest_again()

    def ingest_again(self) -> None:
        """Run the product's job as of the same time as the last."""
        options = {"window_end": self._window_end.isoformat()}
        config = self._home / "run.yaml"
        config.write_text(json.dumps({"resources": {"request": {"config": options}}}))
        self._execute("-m", "market_pipeline.definitions", "-j", "ingest", "-c", str(config))

    def run_empty(self) -> None:
        """Run the job that does nothing."""
        self._execute("-f", str(empty_job.__file__), "-j", "empty")

    def _execute(self, *arguments: str) -> None:
        # In a folder without a .env, which would beat this environment.
        command = [str(_SCRIPTS / "dagster"), "job", "execute", *arguments]
        run_quietly(command, self._environment, self._home)


def count_definitions() -> dict[str, str]:
    """Return how many assets and checks the empty job has to have."""
    from market_pipeline.definitions import defs

    graph = defs.resolve_asset_graph()
    counts = (len(graph.materializable_asset_keys), len(graph.asset_check_keys))
    return dict(zip(empty_job.COUNT_VARIABLES, map(str, counts), strict=True))


def build_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with the product's defaults; compiled modules are kept, as usual."""
    ours = {setting.name for setting in SETTINGS}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ours and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**kept, **variables}


def run_quietly(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
    """Run a command; what it says is shown only when it fails.

    Raises:
        RuntimeError: It failed; holds the end of what it said.
    """
    done = subprocess.run(  # noqa: S603 - the project's own commands
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-2_000:]
        raise RuntimeError(f"{' '.join(command)} exited {done.returncode}: {said}")


def measure_import(bench: Bench, wanted: frozenset[str]) -> Iterator[Figure]:
    """Yield the ratio of loading the definitions to loading Dagster and pandas alone."""
    del wanted
    environment = build_environment({})

    def build_way(name: str, statement: str) -> Way:
        command = [sys.executable, "-c", statement]
        return Way(name, lambda: run_quietly(command, environment, bench.folder))

    ways = [
        build_way("definitions", "import market_pipeline.definitions"),
        build_way("libraries", "import dagster, pandas"),
    ]
    compare(ways, 1, bench.report)
    comparison = compare(ways, bench.rounds * _IMPORT_FACTOR, bench.report)
    note = "a new interpreter each; after one run of each that is not counted"
    yield comparison.build_ratio("import_seconds_vs_dagster", "definitions", "libraries", note)


INGEST = Measurement(
    "the ingest job", tuple(f"{way}_vs_empty_job" for way in _NOTES), measure_ingest
)
IMPORT = Measurement("loading the definitions", ("import_seconds_vs_dagster",), measure_import)
