"""Dagster's webserver and daemon as ``dagster dev`` starts them, and questions to them."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from market_pipeline_tests.system.processes import Background, run_in_background, wait_for

START_SECONDS = 300.0
_LOCATIONS = """{ workspaceOrError { __typename ... on Workspace { locationEntries {
  loadStatus locationOrLoadError { __typename } } } } }"""
_RUNS = """{ runsOrError { ... on Runs { results {
  runId status jobName runConfigYaml startTime endTime } } } }"""


@dataclass(frozen=True, slots=True)
class DagsterUI:
    """A webserver that has loaded the project."""

    address: str
    services: Background

    def query(self, text: str) -> Any:
        """Return the data of a GraphQL answer."""
        answer = httpx.post(f"{self.address}/graphql", json={"query": text}, timeout=30)
        return answer.raise_for_status().json()["data"]

    def list_runs(self, job: str = "") -> list[dict[str, Any]]:
        """Return the recorded runs, or those of a job, the newest first."""
        runs = self.query(_RUNS)["runsOrError"]["results"]
        return [run for run in runs if job in {"", run["jobName"]}]

    def is_ready(self) -> bool:
        """Say whether the code location has been loaded."""
        with contextlib.suppress(httpx.TransportError):
            entries = self.query(_LOCATIONS)["workspaceOrError"].get("locationEntries", [])
            loaded = [(one["locationOrLoadError"] or {}).get("__typename") for one in entries]
            return loaded == ["RepositoryLocation"]
        return False


@contextlib.contextmanager
def open_dagster_ui(
    command: list[str], port: int, environment: Mapping[str, str], folder: Path
) -> Iterator[DagsterUI]:
    """Start a command that serves Dagster's UI on a port of loopback, and wait until it does."""
    with run_in_background(command, environment, folder) as services:
        ui = DagsterUI(f"http://127.0.0.1:{port}", services)
        wait_for(ui.is_ready, START_SECONDS, "Dagster's webserver", services)
        yield ui
