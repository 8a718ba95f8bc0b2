"""A client that openapi-python-client makes of the description drives every route."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine

from market_pipeline_tests.api.conftest import NOWHERE, MakeClient, serve_api
from market_pipeline_tests.system.project import SCRIPTS

TOKEN, CRON_SECRET = "t" * 32, "c" * 32
PACKAGE = "made_market_pipeline_client"
NEEDED: Mapping[str, Any] = {
    "symbol": "BTC-USD",
    "older": 0,
    "newer": 1,
    "run_id": uuid4(),
}
BODIES = {
    "ingest": {
        "symbols": ["ETH-USD"], "provider": "mock", "lookback_days": 2,
        "window_end": "2024-06-01T00:00:00Z",
    },
    "backfill": {
        "symbols": ["LTC-USD"], "start": "2024-01-01T00:00:00Z", "end": "2024-01-20T00:00:00Z",
    },
}  # fmt: skip


@pytest.fixture
def made(make_client: MakeClient, tmp_path: Path) -> Iterator[ModuleType]:
    """The package that the generator makes, imported."""
    app = make_client(token=TOKEN).app
    assert isinstance(app, FastAPI)
    description, config = tmp_path / "openapi.json", tmp_path / "config.yaml"
    description.write_text(json.dumps(app.openapi()))
    config.write_text("post_hooks: []\n")
    command = [SCRIPTS / "openapi-python-client", "generate", "--meta", "none", "--fail-on-warning"]
    places = ["--path", description, "--output-path", tmp_path / PACKAGE, "--config", config]
    told = subprocess.run([*command, *places], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    sys.path.insert(0, str(tmp_path))
    yield importlib.import_module(PACKAGE)
    sys.path.remove(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[name]


def import_operations(made: ModuleType) -> dict[str, ModuleType]:
    """Return the module of each operation by its name."""
    folder = Path(str(made.__file__)).parent / "api"
    files = [file for file in folder.glob("*/*.py") if file.name != "__init__.py"]
    # What starts runs comes last: it changes what the others read.
    files.sort(key=lambda file: (file.stem in {"cron", *BODIES}, file.stem))
    return {
        file.stem: importlib.import_module(f"{PACKAGE}.api.{file.parent.name}.{file.stem}")
        for file in files
    }


def ask(operation: ModuleType, client: object, made: ModuleType) -> Any:
    """Ask with what an operation needs, and nothing else."""
    name = operation.__name__.rpartition(".")[2]
    parameters = signature(operation.sync_detailed).parameters
    given = {key: NEEDED[key] for key in parameters if key in NEEDED}
    if name in BODIES:
        kind = "IngestRequest" if name == "ingest" else "BackfillRequest"
        models = importlib.import_module(f"{made.__name__}.models")
        given["body"] = getattr(models, kind).from_dict(BODIES[name])
    return operation.sync_detailed(client=client, **given)


@pytest.mark.faults
def test_a_generated_client_drives_every_route(
    stored: Engine, made: ModuleType, project_environment: Mapping[str, str], tmp_path: Path
) -> None:
    """Every answer is parsed into the type that is described; the secrets go where they belong."""
    del stored
    secrets = {"API_TOKEN": TOKEN, "CRON_SECRET": CRON_SECRET, "INGEST_WAIT_SECONDS": "600"}
    environment = {**project_environment, "DAGSTER_UI_URL": NOWHERE, **secrets}
    folder = tmp_path / "project"
    folder.mkdir()
    with serve_api(environment, folder) as (plain, _):
        address = str(plain.base_url)
        client = made.AuthenticatedClient(address, token=TOKEN, timeout=httpx.Timeout(600))
        cron = made.AuthenticatedClient(address, token=CRON_SECRET, timeout=httpx.Timeout(600))
        operations = import_operations(made)
        answers = {
            name: ask(module, cron if name == "cron" else client, made)
            for name, module in operations.items()
        }
        filled = answers["backfill"].parsed
        state = operations["get_ingest"].sync_detailed(client=client, run_id=filled.run_id)
        receipt = operations["get_run"].sync(client=client, run_id=filled.run_id)
        refused = ask(operations["cron"], client, made)
    statuses = {name: int(answer.status_code) for name, answer in answers.items()}
    expected = {"get_run": 404, "get_ingest": 503}  # No run has the made up id, and no Dagster.
    assert statuses == {name: expected.get(name, 200) for name in operations}
    assert {name for name, answer in answers.items() if answer.parsed is None} == set()
    assert (int(state.status_code), int(refused.status_code)) == (200, 401)
    assert [str(answers[name].parsed.result.trigger) for name in ("cron", "ingest")] == [
        "cron", "manual",
    ]  # fmt: skip
    assert (filled.status, filled.result.trigger) == ("success", "backfill")
    assert [(part.symbol, part.inserted > 19) for part in receipt.markets] == [("LTC-USD", True)]
    assert receipt.request.window_start == datetime(2024, 1, 1, tzinfo=UTC)
    assert receipt.request.window_end == datetime(2024, 1, 20, tzinfo=UTC)
    assert answers["get_latest"].parsed.snapshot.price == 60_000
    assert answers["list_aggregates"].parsed.symbol == "BTC-USD"
    assert isinstance(answers["list_metrics"].parsed[0].timestamp, datetime)
    assert answers["list_metrics"].parsed[0].timestamp.tzinfo == UTC


def test_the_description_has_what_generators_and_people_need(make_client: MakeClient) -> None:
    """Short names, where it is, who may call what, and what an answer's headers are."""
    app = make_client().app
    assert isinstance(app, FastAPI)
    told = app.openapi()
    operations = {
        (method, path): operation
        for path, found in told["paths"].items()
        for method, operation in found.items()
    }
    names = [operation["operationId"] for operation in operations.values()]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 20
    assert told["servers"][0]["url"] == "/"
    assert set(told["components"]["securitySchemes"]) == {"apiToken", "cronSecret"}
    for (_, path), operation in operations.items():
        wanted = {"/api/cron": "cronSecret", "/healthz": None, "/readyz": None}
        scheme = wanted.get(path, "apiToken")
        assert operation["security"] == ([{scheme: []}] if scheme else [])
        assert ("401" in operation["responses"]) == bool(scheme)
        if "304" in operation["responses"]:
            assert "ETag" in operation["responses"]["200"]["headers"]
            assert "If-None-Match" in [each["name"] for each in operation["parameters"]]
    bars = operations["get", "/api/markets/{symbol}/aggregates"]["responses"]["200"]["headers"]
    assert set(bars) == {"Age", "ETag", "X-Dataset-Version", "X-Next-Cursor", "X-Source"}
