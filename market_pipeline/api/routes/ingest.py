"""Starting ingestion over HTTP: POST /api/ingest for everybody, GET /api/cron for cron."""

import os
import re
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from market_pipeline.api.credentials import holds_bearer
from market_pipeline.api.ingest_answers import IngestAnswer, IngestPending
from market_pipeline.api.launching import IngestCommand, Launcher
from market_pipeline.api.problems import KEY_FORM, ProblemError, describe_problems
from market_pipeline.api.services import Services, ServicesNeeded
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.registry import route_served

router = APIRouter(prefix="/api", tags=["ingestion"])
_NO_STORE = {"Cache-Control": "no-store"}
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,5})(?:$|[,;\s])")
_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {"model": IngestPending, "description": "The run has not ended: ask at statusUrl"},
    502: {"model": IngestAnswer, "description": "The run failed: nothing usable came"},
}


# A request over HTTP is bounded; settings and commands may name any number.
MOST_SYMBOLS = 1_000


class IngestRequest(BaseModel):
    """The request to ingest."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}]})

    symbols: list[Annotated[str, Field(max_length=100)]] = Field(
        default=[],
        max_length=MOST_SYMBOLS,
        description="Markets; empty: those of INGESTION_MARKETS",
        examples=[["BTC-USD", "ETH-USD"]],
    )


async def get_launcher(request: Request) -> Launcher:
    """Return the app's launcher; a plain function would get a thread."""
    launcher: Launcher = request.app.state.launcher
    return launcher


LauncherNeeded = Annotated[Launcher, Depends(get_launcher)]


@router.post(
    "/ingest",
    summary="Run the ingest job, and wait for it",
    response_model=IngestAnswer,
    responses={**_RESPONSES, **describe_problems(400, 401, 403, 408, 413, 415, 422, 429, 503)},
)
async def ingest(
    services: ServicesNeeded,
    launcher: LauncherNeeded,
    body: Annotated[IngestRequest | None, Body()] = None,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, pattern=KEY_FORM)
    ] = None,
    prefer: Annotated[str, Header(max_length=200)] = "",
) -> Response:
    """Start a run of the job `ingest` and answer with its receipt.

    Dagster's webserver starts it; where nobody listens at its address, this process does.

    Equal requests share the run that is in flight. With `Idempotency-Key` the same request gets
    the same answer for a day. With `Prefer: respond-async`, or when it takes longer than
    INGEST_WAIT_SECONDS, the answer is 202 and a URL that tells how it ended.
    """
    symbols = await run_in_threadpool(_check_symbols, body.symbols if body else [])
    command = IngestCommand(
        symbols, "manual", f"key:{idempotency_key}" if idempotency_key else None
    )
    seconds = choose_wait(prefer, services.configuration.ingest_wait_seconds)
    return await _serve(services, launcher, command, seconds)


@router.get(
    "/ingest/{run_id}",
    summary="The state of a run that was started over HTTP",
    response_model=IngestAnswer,
    responses={202: _RESPONSES[202], **describe_problems(400, 401, 404, 503)},
)
async def tell_ingest(
    run_id: UUID,
    services: ServicesNeeded,
    launcher: LauncherNeeded,
) -> Response:
    """Answer with the receipt of a run that ended, or 202 again. A failed run answers 200."""
    state = await launcher.read_state(run_id)
    if state is None:
        raise ProblemError(404, "Not Found", f"Dagster has no run {run_id}")
    if not state.has_ended:
        return _answer_pending(services, run_id)
    return JSONResponse((await launcher.read(run_id, state)).body, 200, _NO_STORE)


@router.get(
    "/cron",
    summary="Run the ingest job, at most once a minute",
    response_model=IngestAnswer,
    responses={**_RESPONSES, **describe_problems(401, 429, 503)},
)
async def cron(
    request: Request,
    services: ServicesNeeded,
    launcher: LauncherNeeded,
) -> Response:
    """Do what POST /api/ingest does, for a cron service that can only GET.

    Takes `Authorization: Bearer` with CRON_SECRET and nothing else. However often it is called
    within a minute (UTC), one run serves them all.
    """
    if not holds_bearer(request.scope["headers"], services.configuration.cron_secret):
        challenge = {"WWW-Authenticate": 'Bearer realm="market-pipeline cron"'}
        detail = (
            "send `Authorization: Bearer` with CRON_SECRET; without CRON_SECRET nobody may call it"
        )
        raise ProblemError(401, "Unauthorized", detail, {**challenge, **_NO_STORE})
    command = IngestCommand((), "cron", f"cron:{datetime.now(UTC):%Y-%m-%dT%H:%M}")
    return await _serve(services, launcher, command, services.configuration.ingest_wait_seconds)


def choose_wait(prefer: str, most_seconds: float) -> float:
    """Return the seconds to wait from the Prefer header (RFC 7240), at most the setting."""
    if "respond-async" in prefer.lower():
        return 0.0
    asked = _WAIT.search(prefer.lower())
    return min(float(asked.group(1)), most_seconds) if asked else most_seconds


async def _serve(
    services: Services, launcher: Launcher, command: IngestCommand, seconds: float
) -> Response:
    started = await launcher.start(command)
    answer = started.answer
    if answer is None and seconds > 0:
        answer = await launcher.finish(started.run_id, seconds)
    if answer is None:
        return _answer_pending(services, started.run_id)
    replayed = {"Idempotency-Replayed": "true"} if started.is_replay else {}
    return JSONResponse(answer.body, answer.status, {**_NO_STORE, **replayed})


def _answer_pending(services: Services, run_id: UUID) -> Response:
    where = f"/api/ingest/{run_id}"
    body = {
        "status": "pending",
        "runId": str(run_id),
        "link": services.dagster.link_run(run_id),
        "statusUrl": where,
    }
    return JSONResponse(body, 202, {**_NO_STORE, "Location": where, "Retry-After": "2"})


def _check_symbols(symbols: list[str]) -> tuple[str, ...]:
    """Return the symbols in their one spelling; refuse now what the run would refuse.

    A symbol that no provider serves is refused when there is no other: else the run names it.
    """
    request = build_request(datetime.now(UTC), symbols)
    route_served(request.symbols, request.providers, os.environ)
    return request.symbols if symbols else ()
