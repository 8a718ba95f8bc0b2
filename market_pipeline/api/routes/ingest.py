"""Runs over HTTP: POST /api/ingest and /api/backfill, GET /api/cron for cron, GET /api/plan."""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from market_pipeline.api.credentials import holds_bearer
from market_pipeline.api.ingest_answers import IngestAnswer, IngestPending
from market_pipeline.api.launching import IngestCommand, Launcher
from market_pipeline.api.models import Plan, PlanProvider, PlanRow
from market_pipeline.api.params import End, Start, Symbols, split_symbols
from market_pipeline.api.problems import KEY_FORM, ProblemError, describe_problems
from market_pipeline.api.services import Services, ServicesNeeded
from market_pipeline.ingestion.estimate import ProviderEstimate, estimate_run
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.registry import route_served
from market_pipeline.readers.encoding import format_time
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.resolve import parse_moment
from market_pipeline.settings import MAX_LOOKBACK_DAYS, read_shards

router = APIRouter(prefix="/api", tags=["ingestion"])
_NO_STORE = {"Cache-Control": "no-store"}
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,5})(?:$|[,;\s])")
_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {
        "model": IngestPending,
        "description": "The run has not ended: ask at statusUrl",
        "headers": {"Location": {"schema": {"type": "string"}, "description": "statusUrl"}},
    },
    502: {"model": IngestAnswer, "description": "The run failed: nothing usable came"},
}

_STARTS = {**_RESPONSES, **describe_problems(403, 408, 413, 415, 422, 429, 503)}
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255, pattern=KEY_FORM)]
Prefer = Annotated[str, Header(max_length=200)]

# A request over HTTP is bounded; settings and commands may name any number.
MOST_SYMBOLS = 1_000


class _MarketsRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}]})

    symbols: list[Annotated[str, Field(max_length=100)]] = Field(
        default=[],
        max_length=MOST_SYMBOLS,
        description="Markets; empty: those of INGESTION_MARKETS",
        examples=[["BTC-USD", "ETH-USD"]],
    )
    provider: str = Field(
        default="",
        max_length=200,
        description="A provider, or several in order of preference; empty: INGESTION_PROVIDER",
        examples=["coinbase,yahoo"],
    )


class IngestRequest(_MarketsRequest):
    """The request to ingest; what is left out is as the settings say."""

    lookback_days: int | None = Field(
        default=None, ge=1, le=MAX_LOOKBACK_DAYS, description="Days of history to keep complete"
    )
    window_end: datetime | None = Field(
        default=None, description="The run's clock: history as it stood then; default now"
    )

    @property
    def options(self) -> dict[str, str | int]:
        """The fields that were given, as runs take them."""
        end = self.window_end and format_time(parse_moment("window_end", self.window_end))
        given = {"provider": self.provider, "lookback_days": self.lookback_days, "window_end": end}
        return {name: value for name, value in given.items() if value}


class BackfillRequest(_MarketsRequest):
    """The request to fill a span of history."""

    start: datetime = Field(description="Bars that open at or after it", examples=["2024-01-01"])
    end: datetime | None = Field(default=None, description="Bars that open before it; default now")

    @property
    def options(self) -> dict[str, str | int]:
        """The fields that were given, as runs take them."""
        end = self.end and format_time(parse_moment("end", self.end))
        start = format_time(parse_moment("start", self.start))
        given = {"provider": self.provider, "history_from": start, "history_to": end}
        return {name: value for name, value in given.items() if value}


async def get_launcher(request: Request) -> Launcher:
    """Return the app's launcher; a plain function would get a thread."""
    launcher: Launcher = request.app.state.launcher
    return launcher


LauncherNeeded = Annotated[Launcher, Depends(get_launcher)]


@router.post(
    "/ingest",
    summary="Run the ingest job, and wait for it",
    response_model=IngestAnswer,
    responses=_STARTS,
)
async def ingest(
    services: ServicesNeeded,
    launcher: LauncherNeeded,
    body: Annotated[IngestRequest | None, Body()] = None,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = "",
) -> Response:
    """Start a run of the job `ingest` and answer with its receipt.

    Dagster's webserver starts it; where nobody listens at its address, this process does.

    Equal requests share the run that is in flight. With `Idempotency-Key` the same request gets
    the same answer for a day. With `Prefer: respond-async`, or when it takes longer than
    INGEST_WAIT_SECONDS, the answer is 202 and a URL that tells how it ended.
    """
    asked = body or IngestRequest()
    command = await run_in_threadpool(_build_command, asked, "manual", idempotency_key)
    seconds = choose_wait(prefer, services.configuration.ingest_wait_seconds)
    return await _serve(services, launcher, command, seconds)


@router.post(
    "/backfill",
    summary="Fill a span of history, and wait for it",
    response_model=IngestAnswer,
    responses=_STARTS,
)
async def backfill(
    services: ServicesNeeded,
    launcher: LauncherNeeded,
    body: BackfillRequest,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = "",
) -> Response:
    """Start a run of the job `ingest` that asks for what is missing of a span, and no more.

    GET /api/plan tells its price first. Statistics follow in the same run. Waiting, sharing and
    answers are those of POST /api/ingest. Ask again with the same span to go on after a failure.
    """
    command = await run_in_threadpool(_build_command, body, "backfill", idempotency_key)
    seconds = choose_wait(prefer, services.configuration.ingest_wait_seconds)
    return await _serve(services, launcher, command, seconds)


@router.get(
    "/plan",
    summary="The price of a run or a backfill",
    responses=describe_problems(404, 503),
)
def get_plan(
    services: ServicesNeeded,
    symbols: Symbols = None,
    provider: Annotated[
        str, Query(max_length=200, description="As of POST /api/ingest", examples=["mock"])
    ] = "",
    start: Start = None,
    end: End = None,
    lookback_days: Annotated[int, Query(ge=0, le=MAX_LOOKBACK_DAYS)] = 0,
) -> Plan:
    """Count the requests that would make history complete; nobody is asked.

    With `start` it is a backfill, else what POST /api/ingest would ask for.
    """
    span = {
        name: "" if moment is None else format_time(parse_moment(name, moment))
        for name, moment in (("start", start), ("end", end))
    }
    request = build_request(
        datetime.now(UTC),
        split_symbols(symbols) or (),
        provider,
        lookback_days,
        history_from=span["start"],
        history_to=span["end"],
    )
    with open_snapshot(services.engine) as connection:
        estimates, unserved = estimate_run(connection, request, os.environ)
    return describe_plan(estimates, unserved)


@router.get(
    "/ingest/{run_id}",
    summary="The state of a run that was started over HTTP",
    response_model=IngestAnswer,
    responses={202: _RESPONSES[202], **describe_problems(404, 503)},
)
async def get_ingest(
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
    responses={**_RESPONSES, **describe_problems(429, 503)},
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
        "link": services.dagster.link_run(run_id, is_tick=read_shards() > 1),
        "statusUrl": where,
    }
    return JSONResponse(body, 202, {**_NO_STORE, "Location": where, "Retry-After": "2"})


def _build_command(
    asked: IngestRequest | BackfillRequest, trigger: str, key: str | None
) -> IngestCommand:
    """Return the command with symbols in their one spelling; refuse now what the run would refuse.

    A symbol that no provider serves is refused when there is no other: else the run names it.
    """
    options: Mapping[str, Any] = asked.options
    request = build_request(datetime.now(UTC), asked.symbols, **options)
    route_served(request.symbols, request.providers, os.environ)
    symbols = request.symbols if asked.symbols else ()
    return IngestCommand(symbols, trigger, f"key:{key}" if key else None, options)


def describe_plan(estimates: Sequence[ProviderEstimate], unserved: Mapping[str, str]) -> Plan:
    """Return estimates as they are answered."""
    rows = [row for estimate in estimates for row in estimate.describe_markets()]
    return Plan(
        providers=[
            PlanProvider(day_ratio=estimate.day_ratio, **estimate.describe())
            for estimate in estimates
        ],
        data=[PlanRow(starts_at=row["from"], ends_at=row["to"], **row) for row in rows],
        cuts=[cut for estimate in estimates for cut in estimate.describe_cuts()],
        unserved=dict(unserved),
    )
