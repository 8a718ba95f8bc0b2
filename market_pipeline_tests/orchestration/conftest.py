"""Fixtures of the orchestration's tests: the real graph on a real database and a real instance."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from market_pipeline.definitions import build_definitions

GLOBAL_JOB = "__ASSET_JOB"
Materialise = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture(scope="session")
def migrated_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an instance whose storage is set up: a copy is quicker than that."""
    folder = tmp_path_factory.mktemp("instance")
    with dg.instance_for_test(temp_dir=str(folder)) as running:
        running.get_runs()
    return folder


@pytest.fixture
def instance(migrated_home: Path, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A real instance with storage of its own."""
    folder = shutil.copytree(migrated_home, tmp_path / "instance")
    with dg.instance_for_test(temp_dir=str(folder)) as running:
        yield running


@pytest.fixture
def materialise(
    database_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Materialise:
    """Runs what the UI's buttons run: the global asset job, with empty config unless told."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    definitions = build_definitions()

    def run(*assets: str, **request: object) -> dg.ExecuteInProcessResult:
        config = {"resources": {"request": {"config": request}}} if request else {}
        return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            run_config=config,
            instance=instance,
            asset_selection=[dg.AssetKey(name) for name in assets] or None,
            raise_on_error=False,
        )

    return run
