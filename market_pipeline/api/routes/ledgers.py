"""Coverage, holes, alerts, quarantined rows, changes, and the receipts of runs."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from market_pipeline.api.media import (
    MAX_ROWS,
    Origin,
    answer_table,
    build_table,
    choose_format,
    describe_table,
)
from market_pipeline.api.models import (
    AlertRow,
    AlertTable,
    ChangeRow,
    ChangeTable,
    CoverageRow,
    CoverageTable,
    HoleRow,
    HoleTable,
    NeverAskedRow,
    QuarantineRow,
    QuarantineTable,
    RunReceipt,
    RunRequest,
    RunTable,
)
from market_pipeline.api.params import MOST, Format, Symbols, split_symbols
from market_pipeline.api.problems import ProblemError, describe_problems
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.readers.changes import read_changes
from market_pipeline.readers.encoding import encode_json, list_records
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.resolve import find_market_ids
from market_pipeline.storage.alerts.outbox import name_state, read_alerts
from market_pipeline.storage.bars.history import read_newest_version
from market_pipeline.storage.bars.quarantine import read_quarantine
from market_pipeline.storage.coverage.holes import list_holes
from market_pipeline.storage.coverage.listings import list_coverage, list_never_asked
from market_pipeline.storage.runs.receipts import (
    read_run,
    read_run_markets,
    read_run_tables,
    read_runs,
)
from market_pipeline.storage.runs.ticks import read_parts

router = APIRouter(prefix="/api", tags=["read"])
_ROWS = 50
Limit = Annotated[int, Query(ge=1, le=MAX_ROWS, description="Most rows")]
OfProvider = Annotated[str | None, Query(max_length=40, description="Of its markets alone")]


@router.get(
    "/coverage",
    response_model=CoverageTable,
    responses=describe_table(404),
    summary="Coverage and holes",
)
def get_coverage(
    request: Request,
    services: ServicesNeeded,
    symbols: Symbols = None,
    provider: OfProvider = None,
    kind: Format = None,
) -> Response:
    """List coverage by market and interval; JSON also has holes and what was never asked for."""
    chosen = choose_format(request, kind)
    with open_snapshot(services.engine) as connection:
        of = find_ids(connection, symbols)
        rows = build_table(list_coverage(connection, of), CoverageRow)
        holes = build_table(list_holes(connection, of), HoleRow)
        never = build_table(list_never_asked(connection, of), NeverAskedRow)
        origin = Origin(dataset_version=read_newest_version(connection) or None)
    if provider is not None:
        rows, holes, never = (
            table[table["provider"] == provider] for table in (rows, holes, never)
        )
    return answer_table(
        chosen, rows, origin, "coverage",
        holes=list_records(holes), never_asked=list_records(never),
    )  # fmt: skip


@router.get(
    "/holes", response_model=HoleTable, responses=describe_table(404), summary="What is missing"
)
def get_holes(
    request: Request,
    services: ServicesNeeded,
    symbols: Symbols = None,
    provider: OfProvider = None,
    kind: Format = None,
) -> Response:
    """List every hole with its reason, explained ones too, and when it is asked for again."""
    chosen = choose_format(request, kind)
    with open_snapshot(services.engine) as connection:
        rows = build_table(list_holes(connection, find_ids(connection, symbols)), HoleRow)
        origin = Origin(dataset_version=read_newest_version(connection) or None)
    if provider is not None:
        rows = rows[rows["provider"] == provider]
    return answer_table(chosen, rows, origin, "holes")


@router.get(
    "/alerts", response_model=AlertTable, responses=describe_table(), summary="Alerts, newest first"
)
def list_alerts(
    request: Request,
    services: ServicesNeeded,
    resolved: Annotated[bool, Query(description="Resolved ones too")] = False,
    limit: Limit = _ROWS,
    kind: Format = None,
) -> Response:
    """List what is wrong, or was; docs/alerts.md says what each kind means."""
    chosen = choose_format(request, kind)
    with open_snapshot(services.engine) as connection:
        found = read_alerts(connection, limit, resolved)
        origin = Origin(dataset_version=read_newest_version(connection) or None)
    rows = [{**row._asdict(), "state": name_state(row)} for row in found]
    return answer_table(chosen, build_table(rows, AlertRow), origin, "alerts")


@router.get(
    "/quarantine",
    response_model=QuarantineTable,
    responses=describe_table(404),
    summary="Impossible bars",
)
def list_quarantined(
    request: Request,
    services: ServicesNeeded,
    symbols: Symbols = None,
    rule: Annotated[str | None, Query(max_length=40, examples=["high_below_body"])] = None,
    status: Annotated[
        Literal["open", "replayed", "discarded", "all"], Query(description="What became of it")
    ] = "open",
    limit: Limit = _ROWS,
    kind: Format = None,
) -> Response:
    """List bars that cannot be true, the last seen first, each with the rule that it broke."""
    chosen = choose_format(request, kind)
    wanted = None if status == "all" else status
    with open_snapshot(services.engine) as connection:
        of = find_ids(connection, symbols)
        rows = read_quarantine(connection, market_ids=of, status=wanted, rule=rule, limit=limit)
        origin = Origin(dataset_version=read_newest_version(connection) or None)
    return answer_table(chosen, rows[list(QuarantineRow.model_fields)], origin, "quarantine")


@router.get(
    "/diff", response_model=ChangeTable, responses=describe_table(404), summary="Changed bars"
)
def list_changes(
    request: Request,
    services: ServicesNeeded,
    older: Annotated[int, Query(ge=0, le=MOST, description="A dataset version; 0 is empty")],
    newer: Annotated[int, Query(ge=0, le=MOST, description="A later one")],
    symbols: Symbols = None,
    limit: Limit = 1_000,
    kind: Format = None,
) -> Response:
    """List the final bars that differ between two dataset versions, each once."""
    chosen = choose_format(request, kind)
    with open_snapshot(services.engine) as connection:
        found = read_changes(older, newer, split_symbols(symbols), limit, connection)
    rows = build_table(found.rows, ChangeRow)
    origin = Origin(dataset_version=newer or None)
    return answer_table(chosen, rows, origin, "diff", n_changes=found.total)


def find_ids(connection: Connection, symbols: str | None) -> list[int] | None:
    """Return the keys of all markets that a parameter names; None: it was not given."""
    names = split_symbols(symbols)
    return None if names is None else find_market_ids(connection, names)


@router.get(
    "/runs", response_model=RunTable, responses=describe_table(), summary="Receipts, newest first"
)
def list_runs(
    request: Request,
    services: ServicesNeeded,
    limit: Annotated[int, Query(ge=1, le=1_000)] = _ROWS,
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
    responses=describe_problems(404, 503),
    summary="A run's receipt",
)
def get_run(services: ServicesNeeded, run_id: UUID) -> Response:
    """Return what a run was asked, and what it wrote by market and by table."""
    with open_snapshot(services.engine) as connection:
        run = read_run(connection, run_id)
        if run is None:
            detail = f"run {run_id} has no receipt: GET /api/runs lists the receipts"
            raise ProblemError(404, "Not Found", detail)
        markets = read_run_markets(connection, run_id)
        tables = read_run_tables(connection, run_id)
        is_tick = bool(read_parts(connection, run_id))
        origin = Origin(dataset_version=read_newest_version(connection) or None)
    link = services.dagster.link_run(run_id, is_tick)
    receipt = {**run, "request": _tidy_request(run["request"]), "link": link}
    body = encode_json({**receipt, "markets": markets, "tables": tables})
    return Response(body, headers=origin.headers, media_type="application/json")


def _tidy_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a receipt with its times as every other time is written."""
    return RunRequest.model_validate(request).model_dump(exclude_unset=True)
