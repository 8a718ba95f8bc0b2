"""Coverage, holes, and the receipts of runs."""

from typing import Annotated
from uuid import UUID

import pandas as pd
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from market_pipeline.api.media import OTHER_FORMATS, Origin, answer_table, choose_format
from market_pipeline.api.models import CoverageTable, RunReceipt, RunTable
from market_pipeline.api.params import Format
from market_pipeline.api.problems import ProblemError, describe_problems
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.domain.symbols import parse_symbols
from market_pipeline.readers.encoding import encode_json, list_records
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.resolve import find_market_ids
from market_pipeline.settings import split_list
from market_pipeline.storage.bars.history import read_newest_version
from market_pipeline.storage.coverage.holes import list_holes
from market_pipeline.storage.coverage.listings import list_coverage, list_never_asked
from market_pipeline.storage.runs.receipts import (
    read_run,
    read_run_markets,
    read_run_tables,
    read_runs,
)

router = APIRouter(prefix="/api", tags=["read"])
_TABLE = {200: {"content": dict(OTHER_FORMATS)}, **describe_problems(400, 406, 503)}
_COVERAGE_COLUMNS = (
    "symbol", "provider", "interval", "first_bar_at", "last_bar_at", "final_to", "bars", "holes",
    "refreshed_at", "never_asked", "verified", "verified_at", "turn_days",
)  # fmt: skip
_HOLE_COLUMNS = (
    "symbol", "provider", "interval", "starts_at", "ends_at", "reason", "tries", "next_check_at",
    "detail",
)  # fmt: skip
_NEVER_ASKED_COLUMNS = ("symbol", "provider", "interval", "starts_at", "ends_at", "bars")


@router.get(
    "/coverage",
    response_model=CoverageTable,
    responses=_TABLE | describe_problems(404),
    summary="Coverage and holes",
)
def tell_coverage(
    request: Request,
    services: ServicesNeeded,
    symbols: Annotated[
        str | None, Query(max_length=4_000, description="Separated by commas; default all")
    ] = None,
    provider: Annotated[str | None, Query(max_length=40)] = None,
    kind: Format = None,
) -> Response:
    """List coverage by market and interval; JSON also has holes and what was never asked for."""
    chosen = choose_format(request, kind)
    wanted = None if symbols is None else parse_symbols(split_list(symbols))
    with open_snapshot(services.engine) as connection:
        of = None if wanted is None else find_market_ids(connection, wanted)
        rows = pd.DataFrame(list_coverage(connection, of), columns=list(_COVERAGE_COLUMNS))
        holes = pd.DataFrame(list_holes(connection, of), columns=list(_HOLE_COLUMNS))
        gaps = list_never_asked(connection, of)
        never = pd.DataFrame(gaps, columns=list(_NEVER_ASKED_COLUMNS))
        origin = Origin(dataset_version=read_newest_version(connection) or None)
    if provider is not None:
        rows, holes, never = (
            table[table["provider"] == provider] for table in (rows, holes, never)
        )
    return answer_table(
        chosen, rows, origin, "coverage",
        holes=list_records(holes), never_asked=list_records(never),
    )  # fmt: skip


@router.get("/runs", response_model=RunTable, responses=_TABLE, summary="Receipts, newest first")
def list_runs(
    request: Request,
    services: ServicesNeeded,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 50,
    kind: Format = None,
) -> Response:
    """List the last runs."""
    chosen = choose_format(request, kind)
    with open_snapshot(services.engine) as connection:
        rows = read_runs(connection, limit)
        origin = Origin(dataset_version=read_newest_version(connection) or None)
    return answer_table(chosen, rows, origin, "runs")


@router.get(
    "/runs/{run_id}",
    response_model=RunReceipt,
    responses=describe_problems(400, 404, 503),
    summary="A run's receipt",
)
def tell_run(services: ServicesNeeded, run_id: UUID) -> Response:
    """Return what a run was asked, and what it wrote by market and by table."""
    with open_snapshot(services.engine) as connection:
        run = read_run(connection, run_id)
        if run is None:
            detail = f"run {run_id} has no receipt: GET /api/runs lists the receipts"
            raise ProblemError(404, "Not Found", detail)
        markets = list_records(pd.DataFrame(read_run_markets(connection, run_id)))
        tables = read_run_tables(connection, run_id)
        origin = Origin(dataset_version=read_newest_version(connection) or None)
    link = f"{services.configuration.dagster_url}/runs/{run_id}"
    receipt = {**run, "link": link, "markets": markets, "tables": tables}
    return Response(encode_json(receipt), headers=origin.headers, media_type="application/json")
