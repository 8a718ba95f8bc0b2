"""Health for monitoring: alive, and ready with the parts that are degraded. Open to everybody."""

from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from market_pipeline.alerting.delivery import read_outbox
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.domain.errors import SettingError

router = APIRouter(tags=["health"])
_DAGSTER_SECONDS = 2.0


class Health(BaseModel):
    """That the process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The parts that answer."""

    status: Literal["ok", "degraded", "unavailable"] = Field(
        description="degraded: reads work without the named parts; unavailable: they do not"
    )
    degraded: list[str] = Field(
        description="The parts in trouble, of database, cache, dagster and alerts"
    )


@router.get("/healthz", summary="Whether the process answers")
async def get_health() -> Health:
    """Answer without asking any other part."""
    return Health()


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Nothing is served without the database"}},
    summary="Which parts answer",
)
async def get_readiness(services: ServicesNeeded) -> Response:
    """Ask the database and Dagster, and say what is degraded."""
    degraded = []
    if not await run_in_threadpool(_answers, services.engine):
        degraded.append("database")
    elif await run_in_threadpool(_has_lost_alerts, services.engine):
        degraded.append("alerts")
    if services.cache.trouble:
        degraded.append("cache")
    if not await services.dagster.is_reachable(_DAGSTER_SECONDS):
        degraded.append("dagster")
    status = "unavailable" if "database" in degraded else "degraded" if degraded else "ok"
    code = 503 if status == "unavailable" else 200
    return JSONResponse({"status": status, "degraded": degraded}, code)


def _has_lost_alerts(engine: Engine) -> bool:
    """Tell whether alerting itself fails: it cannot tell of that by itself."""
    try:
        with engine.connect() as connection:
            return read_outbox(connection, datetime.now(UTC)).trouble is not None
    except (SQLAlchemyError, SettingError):
        return True


def _answers(engine: Engine) -> bool:
    try:
        with engine.connect() as connection:
            return connection.execute(text("SELECT true")).scalar_one() is True
    except SQLAlchemyError:
        return False
