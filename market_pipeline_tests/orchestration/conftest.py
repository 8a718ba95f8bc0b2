"""Fixtures of the orchestration's tests: the real graph on a real database and a real instance."""

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from market_pipeline.definitions import build_definitions
from market_pipeline.orchestration import io_manager

GLOBAL_JOB = "__ASSET_JOB"
Materialise = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance with storage of its own: in memory, as SQLite's files cost more than a run.

    With the marker ``files`` it is one that other processes find, or that keeps what the UI's
    switches say.
    """
    if request.node.get_closest_marker("files"):
        folder = tmp_path / "instance"
        folder.mkdir()
        opened = dg.instance_for_test(temp_dir=str(folder))
    else:
        opened = dg.DagsterInstance.ephemeral()
    with opened as running:
        yield running


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs draw none: a third of their time, where pictures are not the subject."""
    monkeypatch.setattr(io_manager, "draw_picture", lambda *_: None)


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
