"""Coverage, holes, and the receipts of runs."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

import pandas as pd
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel

from market_pipeline.api.media import OTHER_FORMATS, Origin, answer_table, choose_format
from market_pipeline.api.models import (
    CoverageRow,
    CoverageTable,
    HoleRow,
    NeverAskedRow,
    RunReceipt,
    RunRequest,
    RunTable,
)
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
        rows = _build_table(list_coverage(connection, of), CoverageRow)
        holes = _build_table(list_holes(connection, of), HoleRow)
        never = _build_table(list_never_asked(connection, of), NeverAskedRow)
        origin = Origin(dataset_version=read_newest_version(connection) or None)
    if provider is not None:
        rows, holes, never = (
            table[table["provider"] == provider] for table in (rows, holes, never)
        )
    return answer_table(
        chosen, rows, origin, "coverage",
        holes=list_records(holes), never_asked=list_records(never),
    )  # fmt: skip


def _build_table(rows: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(model.model_fields))


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
        rows["request"] = rows["request"].map(_tidy_request)
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
        markets = read_run_markets(connection, run_id)
        tables = read_run_tables(connection, run_id)
        origin = Origin(dataset_version=read_newest_version(connection) or None)
    link = f"{services.configuration.dagster_url}/runs/{run_id}"
    receipt = {**run, "request": _tidy_request(run["request"]), "link": link}
    body = encode_json({**receipt, "markets": markets, "tables": tables})
    return Response(body, headers=origin.headers, media_type="application/json")


def _tidy_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a receipt with its times as every other time is written."""
    return RunRequest.model_validate(request).model_dump(exclude_unset=True)
