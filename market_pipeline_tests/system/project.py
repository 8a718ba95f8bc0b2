"""A project folder as a user has one: Dagster's two files, local state, no ``.env``.

Commands run there and not in the checkout, whose ``.env`` would win over the test's environment.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
COMMAND_SECONDS = 400


@dataclass(frozen=True, slots=True)
class Project:
    """A folder in which the project's commands run, and their environment."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Return what a command sees: nothing of the tests' own settings."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        place = {"DAGSTER_HOME": str(self.folder), "STATE_DIR": str(self.folder / "state")}
        path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
        return {**kept, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **place, **self.settings}

    def with_settings(self, **settings: str) -> "Project":
        """Return the same folder with further settings."""
        return Project(self.folder, {**self.settings, **settings})

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's commands to its end."""
        return subprocess.run(
            [str(SCRIPTS / command[0]), *command[1:]],
            env=self.environment, cwd=self.folder, capture_output=True, text=True,
            timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip

    def read(self, *command: str) -> Any:
        """Return what a listing of ``market-pipeline`` says as JSON."""
        done = self.run("market-pipeline", *command, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def make(self, task: str, *options: str) -> list[str]:
        """Return the command of a task of the Makefile, with this environment as its .venv."""
        place = ["-C", str(self.folder), "-f", str(ROOT / "Makefile")]
        return [
            "make",
            "--no-print-directory",
            *place,
            "-o",
            ".venv/.stamp",
            f"BIN={SCRIPTS}",
            *options,
            task,
        ]

    def find_database(self) -> str:
        """Return the address of the database in use, as libpq reads it."""
        given = self.settings.get("DATABASE_URL")
        address = given or str(self.read("db", "status")[0]["database"])
        return address.replace("+psycopg2", "", 1)

    def count_rows(self, *tables: str) -> dict[str, int]:
        """Return how many rows market tables hold."""
        url, query = self.find_database(), "SELECT count(*) FROM market_data.{}"
        return {table: read_query(url, query.format(table))[0][0] for table in tables}

    def is_served(self) -> bool:
        """Say whether an embedded server works on the state folder."""
        return (self.folder / "state" / "postgres" / "data" / "postmaster.pid").exists()


def read_query(url: str, query: str) -> list[tuple[Any, ...]]:
    """Return a query's rows; the connection holds no embedded server up."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


@contextmanager
def make_project(**settings: str) -> Iterator[Project]:
    """Make a project folder that the account of an embedded server can enter."""
    folder = Path(tempfile.mkdtemp(prefix="mp-system-", dir="/tmp"))
    folder.chmod(0o755)
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, folder)
    try:
        yield Project(folder, settings)
    finally:
        shutil.rmtree(folder)
