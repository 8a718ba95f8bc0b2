"""The one form of errors on every route: problem details (RFC 9457).

An error says what was wrong with the request, or which part does not answer and what to do. It
never holds SQL, stack traces or addresses with passwords. Those are in the API's log, under the id
that the answer names.
"""

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeAlias
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
from market_pipeline.settings import shorten
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
# By the beginning of Pydantic's name of a fault.
_EXPECTED: Mapping[str, str] = {
    "missing": "this is needed, and was not sent",
    "extra_forbidden": "there is no such field",
    "int": "expected a whole number",
    "float": "expected a number",
    "bool": "expected true or false",
    "datetime": "expected an ISO 8601 time, such as 2024-01-31T00:00:00Z",
    "uuid": "expected the id of a run, such as 3f6c1d1e-6a51-4f43-9f6e-0c1a2b3c4d5e",
    "enum": "expected {expected}",
    "literal_error": "expected {expected}",
    "greater_than_equal": "expected at least {ge}",
    "less_than_equal": "expected at most {le}",
    "string_too_long": "expected at most {max_length} characters",
    "string_too_short": "expected at least {min_length} characters",
    "string": "expected a text",
    "too_long": "expected at most {max_length} of them",
    "list": "expected a list",
    "model": "expected an object of JSON",
    "dict": "expected an object of JSON",
    "json_invalid": "this is not JSON",
}
DAYS_FORM, KEY_FORM = r"^\d{1,5}d$", r"^[\x21-\x7e]+$"
_FORMS = {DAYS_FORM: "days, such as 30d", KEY_FORM: "visible ASCII characters without blanks"}
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

    The title is the kind of problem, in a few words. The detail says what was wrong this time, and
    what to do; no secrets. Members are further ones of the problem.
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
    return JSONResponse(body, status, headers, media_type=MEDIA_TYPE)


def install_problems(app: FastAPI, show: Show) -> None:
    """Answer every error of an app with a problem; ``show`` makes it a page where one is wanted."""
    describers: dict[type[Exception], Callable[[Any, str], ProblemError]] = {
        ProblemError: lambda error, _: error,
        HTTPException: _describe_http,
        RequestValidationError: _describe_invalid,
        IncompleteHistoryError: lambda error, _: ProblemError(
            409, "Incomplete History", str(error), missing=error.missing, commands=error.commands
        ),
        PipelineError: _describe_pipeline,
        DBAPIError: _describe_database,
        PoolTimeoutError: _describe_database,
        Exception: _describe_fault,
    }
    for kind, describe in describers.items():
        app.add_exception_handler(kind, _answer_with(describe, show))


def _answer_with(
    describe: Callable[[Any, str], ProblemError], show: Show
) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, error: Exception) -> Response:
        path = request.url.path
        told = describe(error, path)
        problem = build_problem(
            told.status, told.title, told.detail, path, told.headers, **told.members
        )
        return show(request, problem)

    return answer


def _describe_http(error: HTTPException, _: str) -> ProblemError:
    detail = {
        404: "this path does not exist: /docs lists all paths",
        405: "this path does not accept this method: /docs lists its methods",
    }.get(error.status_code, str(error.detail))
    title = HTTPStatus(error.status_code).phrase
    return ProblemError(error.status_code, title, detail, error.headers)


def _describe_invalid(error: RequestValidationError, _: str) -> ProblemError:
    faults = error.errors()[:20]
    told = [
        {"where": ".".join(map(str, fault["loc"])), "message": _describe_invalid_part(fault)}
        for fault in faults
    ]
    detail = f"{_name_part(faults[0])}: {told[0]['message']}"
    return ProblemError(400, "Invalid Request", detail, errors=told)


def _name_part(fault: Mapping[str, Any]) -> str:
    """Return the name of a wrong part of a request; a body's value may be a secret."""
    place, *names = (str(part) for part in fault["loc"])
    if place == "body":
        return "body" if fault["type"] == "json_invalid" else ".".join(names) or place
    given = fault.get("input")
    return f"{names[0]}={shorten(given)}" if isinstance(given, str) else names[0]


def _describe_invalid_part(fault: Mapping[str, Any]) -> str:
    """Return what was expected of a part of a request, in the words of HTTP and not of Python."""
    kind, context = str(fault["type"]), fault.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return f"expected {_FORMS.get(context['pattern'], 'another form')}"
    words = next((words for name, words in _EXPECTED.items() if kind.startswith(name)), None)
    return str(fault["msg"]) if words is None else words.format(**context)


def _describe_pipeline(error: PipelineError, path: str) -> ProblemError:
    status = next((code for kind, code in _STATUSES if isinstance(error, kind)), 500)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return _describe_database(error, path)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _describe_fault(error, path)
    return ProblemError(status, HTTPStatus(status).phrase, str(error))


def _describe_database(error: Exception, path: str) -> ProblemError:
    if isinstance(error, DBAPIError) and not isinstance(error, OperationalError | InterfaceError):
        return _describe_fault(error, path)
    logger.warning("%s: the database: %s", path, " ".join(str(error).split()))
    retry = {"Retry-After": str(RETRY_SECONDS)}
    cause = summarise_failure(error) if isinstance(error, DBAPIError) else _DATABASE_DOWN
    detail = f"{cause}. {_LOOK}"
    return ProblemError(503, "Service Unavailable", detail, retry, degraded=["database"])


def _describe_fault(error: Exception, path: str) -> ProblemError:
    fault_id = uuid4().hex
    logger.error("fault %s at %s", fault_id, path, exc_info=error)
    detail = f"an error in the API: its log has details under {fault_id}"
    return ProblemError(500, "Internal Server Error", detail, fault_id=fault_id)
