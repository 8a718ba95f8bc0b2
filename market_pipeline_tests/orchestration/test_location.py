"""The name of the code location: schedules, sensors and queued runs are kept under it."""

import os
from pathlib import Path

from dagster._core.workspace.load_target import ModuleTarget, WorkspaceFileTarget

from market_pipeline.api.dagster_client import LOCATION
from market_pipeline_tests.commands import ROOT

MODULE = "market_pipeline.definitions"


def name_location(target: ModuleTarget | WorkspaceFileTarget) -> str:
    """Return the name of a target's only code location."""
    (origin,) = target.create_origins()
    return origin.location_name


def test_every_way_to_load_the_definitions_gives_one_location() -> None:
    """Otherwise a daemon would refuse the runs that another command has queued."""
    by_workspace = WorkspaceFileTarget([os.fspath(Path(ROOT) / "workspace.yaml")])
    by_module = ModuleTarget(MODULE, None, os.fspath(ROOT), None)
    assert name_location(by_workspace) == name_location(by_module) == LOCATION == MODULE
