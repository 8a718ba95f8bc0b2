"""The wheel of the tree in an empty folder elsewhere: installed, set up, run, served."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import install
from market_pipeline_tests.api.conftest import serve_api
from market_pipeline_tests.commands import COMMAND_SECONDS, SCRIPTS
from market_pipeline_tests.ports import choose_port
from market_pipeline_tests.system.dagster_ui import open_dagster_ui
from market_pipeline_tests.system.project import ROOT, Project

pytestmark = pytest.mark.system

SOURCES = ("setup.py", "pyproject.toml", "dagster.yaml", "workspace.yaml", "README.md")
PAGES = (
    "/", "/markets/BTC-USD", "/docs/openapi.json", "/api/markets/SPX/latest",
    "/api/markets/SPX/aggregates?interval=1d&format=arrow",
)  # fmt: skip


def run(*command: str | Path, folder: Path, **variables: str) -> str:
    """Run a command to its end and return its stdout."""
    done = subprocess.run(
        command, env={**os.environ, **variables}, cwd=folder, capture_output=True, text=True,
        timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "market_pipeline", source / "market_pipeline", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run(*pip, "-w", "dist", ".", folder=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def home(wheel: Path) -> Iterator[Path]:
    """An empty folder, which the account of an embedded server can enter, and an environment.

    The environment borrows the packages of others from the tests' own, but not the product.
    """
    with tempfile.TemporaryDirectory(prefix="mp-wheel-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        venv.create(folder / "env")
        names = {"base": str(folder / "env"), "platbase": str(folder / "env")}
        packages = Path(sysconfig.get_path("purelib", vars=names))
        (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        pip = [sys.executable, "-m", "pip", "--python", folder / "env/bin/python", "install"]
        run(*pip, "-q", "--no-deps", "--no-index", str(wheel), folder=folder)
        (folder / "project").mkdir()
        yield folder


def enter(home: Path, **settings: str) -> Project:
    """Return the empty folder as a project whose commands are the environment's."""
    return Project(home / "project", {"PATH": f"{home}/env/bin:/usr/bin:/bin", **settings})


def call(project: Project, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment in the project, with nothing set but its path."""
    return subprocess.run(
        [project.folder.parent / "env/bin" / command[0], *command[1:]],
        env={"PATH": project.environment["PATH"]}, cwd=project.folder,
        capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip


def test_the_wheel_has_everything_that_is_no_python(wheel: Path) -> None:
    """Templates, pages' files, the template of migrations, Dagster's two files; and no tests."""
    ours = ROOT / "market_pipeline"
    data = [file for file in ours.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {str(file.relative_to(ROOT)) for file in data}
    assert expected - names == set()
    assert {
        "market_pipeline/project/dagster.yaml",
        "market_pipeline/project/workspace.yaml",
    } <= names
    assert [name for name in names if "tests" in name] == []


def test_a_folder_becomes_a_project_that_runs_and_is_served(home: Path) -> None:
    """`init`, `ingest` and `dagster dev`, one after the other as a new user types them."""
    project = enter(home)

    made = call(project, "market-pipeline", "init")
    assert made.returncode == 0, made.stderr
    for name in ("dagster.yaml", "workspace.yaml"):
        assert (project.folder / name).read_bytes() == (ROOT / name).read_bytes()
    assert (project.folder / ".env").read_text() == f"DAGSTER_HOME='{project.folder}'\n"
    (project.folder / "dagster.yaml").write_text(f"# mine\n{(ROOT / 'dagster.yaml').read_text()}")
    again = call(project, "market-pipeline", "init")
    assert "Wrote" not in again.stdout
    assert (project.folder / "dagster.yaml").read_text().startswith("# mine\n")

    ran = call(project, "market-pipeline", "ingest")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.rstrip().endswith(": ok")
    assert (project.folder / ".state").is_dir()

    port = choose_port()
    command = [str(home / "env/bin/python"), "-m", "dagster", "dev", "-p", str(port)]
    environment = {"PATH": project.environment["PATH"]}
    with open_dagster_ui(command, port, environment, project.folder) as ui:
        assert [run["status"] for run in ui.list_runs()] == ["SUCCESS"]


@pytest.fixture
def oldest(wheel: Path) -> Iterator[Path]:
    """An environment with the lowest version of each library that setup.py takes."""
    with tempfile.TemporaryDirectory(prefix="mp-floors-", dir="/tmp") as name:
        folder, uv = Path(name), [str(SCRIPTS / "uv"), "-q"]
        folder.chmod(0o755)
        pinned, index = folder / "floors.txt", install.find_index(Path(sys.executable))
        lowest = ["--resolution", "lowest-direct", str(ROOT / "setup.py"), "-o", str(pinned)]
        run(*uv, "pip", "compile", *lowest, folder=folder, **index)
        run(*uv, "venv", "--python", sys.executable, "env", folder=folder)
        here = [*uv, "pip", "install", "--python", "env/bin/python"]
        run(*here, "-r", pinned, folder=folder, **index)
        run(*here, "--no-deps", str(wheel), folder=folder)
        (folder / "project").mkdir()
        yield folder


def test_i7_the_oldest_libraries_that_are_declared_run_the_job_and_serve_it(oldest: Path) -> None:
    """Each floor of setup.py holds, all of them together."""
    project = enter(oldest)
    for command in ("init", "ingest"):
        done = call(project, "market-pipeline", command)
        assert done.returncode == 0, done.stderr
    path = {"PATH": project.environment["PATH"]}
    with serve_api(path, project.folder, oldest / "env/bin") as (client, server):
        for page in PAGES:
            answer = client.get(page)
            assert answer.is_success, f"{page}: {answer.text}\n{server.read_last_words()}"


def test_the_command_names_the_version_that_the_changelog_describes(home: Path) -> None:
    """One place for the number; a release is the heading with a date."""
    told = call(enter(home), "market-pipeline", "--version")
    number = version("market-pipeline")
    assert told.stdout == f"market-pipeline {number}\n"
    assert f"\n## {number} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
