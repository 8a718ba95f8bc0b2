"""Fixtures of the command's tests: the real command on a database of its own."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from market_pipeline.cli.main import main
from market_pipeline_tests.commands import run_command

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(project_environment: Mapping[str, str], tmp_path: Path) -> Command:
    """Runs ``market-pipeline`` in a process of its own; keywords are further variables."""

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        environment = {**project_environment, **variables}
        return run_command("market-pipeline", *arguments, environment=environment, folder=tmp_path)

    return run


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs ``market-pipeline`` in this process, where nobody answers at DATABASE_URL.

    What was opened in spite of a bad option would end in another error than the one expected.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@127.0.0.1:1/nowhere")

    def run(*arguments: str, **variables: str) -> Result:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(main, arguments)

    return run
