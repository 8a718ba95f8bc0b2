"""The code location: one name for all commands, and what ``dg`` makes of it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from dagster._core.workspace.load_target import (
    ModuleTarget,
    PyProjectFileTarget,
    WorkspaceFileTarget,
    WorkspaceLoadTarget,
)
from sqlalchemy import Engine

from market_pipeline.api.dagster_client import LOCATION
from market_pipeline.definitions import build_definitions
from market_pipeline_tests.commands import ROOT, run_command
from market_pipeline_tests.databases import read_column

MODULE = "market_pipeline.definitions"
RECEIPTS = "SELECT outcome FROM market_data.ingestion_run"


def name_location(target: WorkspaceLoadTarget) -> str:
    """Return the name of a target's only code location."""
    (origin,) = target.create_origins()
    return origin.location_name


def test_every_way_to_load_the_definitions_gives_one_location() -> None:
    """Otherwise a daemon would refuse the runs that another command has queued."""
    ways = (
        WorkspaceFileTarget([os.fspath(ROOT / "workspace.yaml")]),
        PyProjectFileTarget(os.fspath(ROOT / "pyproject.toml")),
        ModuleTarget(MODULE, None, os.fspath(ROOT), None),
    )
    assert {name_location(way) for way in ways} == {LOCATION} == {MODULE}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project folder as ``dg`` sees the checkout, without its ``.env``."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "market_pipeline").symlink_to(ROOT / "market_pipeline")
    return folder


def test_dg_loads_and_lists_the_definitions(
    checkout: Path, project_environment: dict[str, str]
) -> None:
    """What it lists is what there is."""
    checked = run_command("dg", "check", "defs", environment=project_environment, folder=checkout)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    listed = run_command(
        "dg", "list", "defs", "--json", environment=project_environment, folder=checkout
    )
    found = json.loads(listed.stdout)
    definitions = build_definitions()
    assert {job["name"] for job in found["jobs"]} >= {job.name for job in definitions.jobs or ()}
    keys = {key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()}
    assert {asset["asset_key"] for asset in found["assets"]} == keys


def test_dg_launches_the_main_job(
    checkout: Path, engine: Engine, project_environment: dict[str, str]
) -> None:
    """In the command's own process, with a receipt as of any run."""
    done = run_command(
        "dg", "launch", "--job", "ingest", environment=project_environment, folder=checkout
    )
    assert done.returncode == 0, done.stderr
    assert read_column(engine, RECEIPTS) == ["ok"]
