"""The pages of runs: receipts, holes, quarantine, and what each dataset version changed."""

import json
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import Response

from market_pipeline.api.pages.rendering import answer_page
from market_pipeline.api.problems import ProblemError
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.storage.bars.quarantine import list_quarantine
from market_pipeline.storage.bars.revisions import read_restated_bars, read_version_batches
from market_pipeline.storage.coverage.holes import read_holes, read_run_holes
from market_pipeline.storage.runs.receipts import (
    read_run_tables,
    read_run_totals,
    read_run_with_totals,
    read_worst_markets,
)
from market_pipeline.storage.runs.ticks import read_parts

router = APIRouter(include_in_schema=False)
MAX_RUNS = 50
MAX_ROWS = 200
MAX_EXCEPTIONS = 50


@router.get("/runs")
def show_runs(request: Request, services: ServicesNeeded) -> Response:
    """Show the last runs, all holes and the rows in quarantine."""
    with open_snapshot(services.engine) as connection:
        shown = {
            "runs": read_run_totals(connection, MAX_RUNS),
            "holes": read_holes(connection, MAX_EXCEPTIONS),
            "quarantined": list_quarantine(connection, MAX_EXCEPTIONS, status="open"),
        }
    return answer_page(request, "runs.html", {**shown, "link_run": services.dagster.link_run})


@router.get("/runs/{run_id}")
def show_run(request: Request, run_id: UUID, services: ServicesNeeded) -> Response:
    """Show a run's receipt."""
    with open_snapshot(services.engine) as connection:
        run = read_run_with_totals(connection, run_id)
        if run is None:
            detail = f"run {run_id} has no receipt (old ones are removed): /runs lists the receipts"
            raise ProblemError(404, "Not Found", detail)
        shards = read_parts(connection, run_id)
        shown = {
            "run": run,
            "request_text": json.dumps(run["request"], indent=2, sort_keys=True),
            "receipts": read_worst_markets(connection, run_id, MAX_ROWS),
            "tables": read_run_tables(connection, run_id),
            "holes": read_run_holes(connection, run["parts"], MAX_EXCEPTIONS),
            "quarantined": list_quarantine(connection, MAX_EXCEPTIONS, run_ids=run["parts"]),
            "shards": shards,
            "versions": read_version_batches(connection, run, MAX_ROWS),
            "restated": read_restated_bars(connection, run, MAX_EXCEPTIONS),
            "dagster_url": services.dagster.link_run(run_id, is_tick=bool(shards)),
        }
    return answer_page(request, "run.html", shown)
