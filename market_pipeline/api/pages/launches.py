"""Starting runs from pages: first the plan with its price, then the run's own page."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from market_pipeline.api.launching import IngestCommand
from market_pipeline.api.pages.actions import Done, check_form, go_to, note_beginning, note_end
from market_pipeline.api.pages.rendering import answer_page
from market_pipeline.api.problems import ProblemError
from market_pipeline.api.routes.ingest import LauncherNeeded
from market_pipeline.api.services import Services, ServicesNeeded
from market_pipeline.domain.errors import PipelineError, SettingError
from market_pipeline.ingestion.estimate import ProviderEstimate, estimate_run
from market_pipeline.ingestion.request import build_request
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.resolve import build_unknown_error, find_market_called

router = APIRouter(prefix="/actions", include_in_schema=False)
Name = Annotated[str, Query(max_length=80)]
Moment = Annotated[str, Query(max_length=40)]


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """What a run would be asked, and what that costs; ``refused`` says why there is no plan."""

    command: IngestCommand
    name: str
    estimates: Sequence[ProviderEstimate] = ()
    unserved: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""

    @property
    def calls(self) -> int:
        """How many requests it takes."""
        return sum(estimate.calls for estimate in self.estimates)


@router.get("/ingest")
def plan_ingest(request: Request, services: ServicesNeeded, market: Name = "") -> Response:
    """Show what ingesting one market, or all, would ask for."""
    plan = _make_plan(services, market)
    shown = {"plan": plan, "market": market, "is_fill": False, "start": "", "end": ""}
    return answer_page(request, "plan.html", shown)


@router.get("/fill")
def plan_fill(
    request: Request, services: ServicesNeeded, market: Name, start: Moment = "", end: Moment = ""
) -> Response:
    """Show what filling a range of a market would ask for."""
    plan = _make_plan(services, market, start, end) if start else None
    shown = {"plan": plan, "market": market, "is_fill": True, "start": start, "end": end}
    return answer_page(request, "plan.html", shown)


@router.post("/ingest", dependencies=[Depends(check_form)])
async def ingest(
    request: Request,
    services: ServicesNeeded,
    launcher: LauncherNeeded,
    market: Annotated[str, Form(max_length=80)] = "",
    start: Annotated[str, Form(max_length=40)] = "",
    end: Annotated[str, Form(max_length=40)] = "",
) -> Response:
    """Start the run that a plan was shown of, and go to its page."""
    plan = await run_in_threadpool(_make_plan, services, market, start, end)
    if plan.refused:
        raise ProblemError(409, "Refused", f"{plan.refused}. Nothing was started")
    said = ("fill" if start else "ingest", plan.name)
    action_id = await run_in_threadpool(note_beginning, request, services, *said)
    try:
        started = await launcher.start(plan.command)
        done = Done("Started", started.run_id, "started")
    except ProblemError as problem:
        await run_in_threadpool(
            note_end, services, action_id, Done(problem.detail, outcome="refused")
        )
        raise
    await run_in_threadpool(note_end, services, action_id, done)
    return go_to(f"/runs/{started.run_id}")


def _make_plan(services: Services, market: str, start: str = "", end: str = "") -> LaunchPlan:
    """Return the plan of a run: of a market alone, or of all that are configured; of a range."""
    with open_snapshot(services.engine) as connection:
        symbol, options = "", dict[str, Any]()
        if market:
            found = find_market_called(connection, market)
            if found is None:
                raise build_unknown_error(connection, [market[:60].upper()])
            symbol, options = found.record.symbol, {"provider": found.record.provider}
        if start:
            options |= {"history_from": start} | ({"history_to": end} if end else {})
        name = f"{options['provider']}:{symbol}" if market else "all markets"
        name += f" from {start} to {end or 'now'}" if start else ""
        symbols = (symbol,) if symbol else ()
        command = IngestCommand(symbols, "backfill" if start else "manual", options=options)
        try:
            request = build_request(datetime.now(UTC), symbols, **options)
            return LaunchPlan(command, name, *estimate_run(connection, request, os.environ))
        except (SettingError, PipelineError) as error:
            return LaunchPlan(command, name, refused=str(error))
