"""The one form of errors on every route: problem details (RFC 9457).

An error says what was wrong with the request, or which part does not answer and what to do. It
never holds SQL, stack traces or addresses with passwords. Those are in the API's log, under the id
that the answer names.
"""

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeAlias, cast
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from market_pipeline.domain.errors import (
    HistoryRequestError,
    IncompleteHistoryError,
    KeyReusedError,
    MarketNotServedError,
    NothingKnownYetError,
    PipelineError,
    SettingError,
    StorageError,
    UnknownMarketError,
)
from market_pipeline.storage.server.failures import summarise_failure

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5
_DATABASE_DOWN = "the database does not answer"
_LOOK = "`market-pipeline db status` shows its address, the API's log its answer"
# The first class that fits decides; those that are not here are faults of ours.
_STATUSES: tuple[tuple[type[PipelineError], int], ...] = (
    (UnknownMarketError, 404),
    (NothingKnownYetError, 404),
    (HistoryRequestError, 400),
    (SettingError, 400),
    (MarketNotServedError, 400),
    (KeyReusedError, 422),
    (StorageError, 503),
)
logger = logging.getLogger("market_pipeline.api")
Show: TypeAlias = Callable[[Request, JSONResponse], Response]


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no market is called FOO-USD"])
    instance: str | None = Field(None, description="The path that was asked for")


class ProblemError(Exception):
    """A request that is answered with a problem.

    Args:
        status: The HTTP status.
        title: The kind of problem, in a few words.
        detail: What was wrong this time, and what to do; no secrets.
        headers: Further headers of the answer.
        members: Further members of the problem.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail = status, title, detail
        self.headers, self.members = dict(headers or {}), members


def describe_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route that may answer with these problems."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }


def build_problem(
    status: int,
    title: str,
    detail: str,
    path: str | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> JSONResponse:
    """Return the answer for a problem."""
    told = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    body = {**told, "instance": path, **members}
    return JSONResponse(body, status, {**(headers or {})}, media_type=MEDIA_TYPE)


def install_problems(app: FastAPI, show: Show) -> None:
    """Answer every error of an app with a problem; ``show`` makes it a page where one is wanted."""
    handlers: dict[type[Exception], Callable[[Request, Exception], JSONResponse]] = {
        ProblemError: _answer_problem,
        HTTPException: _answer_http,
        RequestValidationError: _answer_invalid,
        IncompleteHistoryError: _answer_incomplete,
        PipelineError: _answer_pipeline,
        DBAPIError: _answer_database,
        PoolTimeoutError: _answer_database,
        Exception: _answer_fault,
    }
    for kind, tell in handlers.items():
        app.add_exception_handler(kind, _show_what(tell, show))


def _show_what(
    tell: Callable[[Request, Exception], JSONResponse], show: Show
) -> Callable[[Request, Exception], Response]:
    return lambda request, error: show(request, tell(request, error))


def _answer_problem(request: Request, error: Exception) -> JSONResponse:
    error = cast("ProblemError", error)
    return build_problem(
        error.status, error.title, error.detail, request.url.path, error.headers, **error.members
    )


def _answer_http(request: Request, error: Exception) -> JSONResponse:
    error = cast("HTTPException", error)
    title = HTTPStatus(error.status_code).phrase
    detail = {
        404: "this path does not exist: /docs lists all paths",
        405: "this path does not accept this method: /docs lists its methods",
    }.get(error.status_code, str(error.detail))
    return build_problem(error.status_code, title, detail, request.url.path, error.headers)


def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    error = cast("RequestValidationError", error)
    told = [
        {"where": ".".join(str(part) for part in fault["loc"]), "message": str(fault["msg"])}
        for fault in error.errors()[:20]
    ]
    first = told[0] if told else {"where": "request", "message": "malformed"}
    detail = f"{first['where']}: {first['message']}"
    return build_problem(400, "Invalid Request", detail, request.url.path, errors=told)


def _answer_pipeline(request: Request, error: Exception) -> JSONResponse:
    status = next((code for kind, code in _STATUSES if isinstance(error, kind)), 500)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return _answer_database(request, error)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _answer_fault(request, error)
    return build_problem(status, HTTPStatus(status).phrase, str(error), request.url.path)


def _answer_incomplete(request: Request, error: Exception) -> JSONResponse:
    error = cast("IncompleteHistoryError", error)
    return build_problem(
        409, "Incomplete History", str(error), request.url.path,
        missing=error.missing, commands=error.commands,
    )  # fmt: skip


def _answer_database(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, DBAPIError) and not isinstance(error, OperationalError | InterfaceError):
        return _answer_fault(request, error)
    logger.warning("%s: the database: %s", request.url.path, " ".join(str(error).split()))
    headers = {"Retry-After": str(RETRY_SECONDS)}
    cause = summarise_failure(error) if isinstance(error, DBAPIError) else _DATABASE_DOWN
    detail = f"{cause}. {_LOOK}"
    return build_problem(
        503, "Service Unavailable", detail, request.url.path, headers, degraded=["database"]
    )


def _answer_fault(request: Request, error: Exception) -> JSONResponse:
    fault_id = uuid4().hex
    logger.error("fault %s at %s", fault_id, request.url.path, exc_info=error)
    detail = f"an error in the API: its log has details under {fault_id}"
    return build_problem(500, "Internal Server Error", detail, request.url.path, fault_id=fault_id)
