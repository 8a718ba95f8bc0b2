"""The API's description (OpenAPI): who may call what, and what every answer may be.

Here is what holds for many routes alike. What one route takes and gives is described there.
"""

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from market_pipeline.api.problems import Problem, describe_problems
from market_pipeline.api.security import OPEN_PATHS

TITLE = "Market Pipeline"
SUMMARY = "Market data with a record of what is missing: start runs, read prices and statistics."
VERSION = version("market-pipeline")
_SCHEMES = {
    "apiToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "API_TOKEN; without that setting any token is accepted",
    },
    "cronSecret": {"type": "http", "scheme": "bearer", "description": "CRON_SECRET"},
}
_CRON = "/api/cron"
_RETRY = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}}
_TELLS_WHEN = frozenset({"202", "429", "503"})
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "The ETag of the answer that one has; 304 if it still holds",
}


def describe_api(app: FastAPI) -> dict[str, Any]:
    """Return the description of an app; made once."""
    if app.openapi_schema is None:
        described = get_openapi(
            title=TITLE,
            version=VERSION,
            summary=SUMMARY,
            routes=app.routes,
            servers=[{"url": "/", "description": "The server of this description"}],
        )
        parts = described.setdefault("components", {})
        parts["securitySchemes"] = _SCHEMES
        parts.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):
            parts["schemas"].pop(name, None)
        for path, operations in described["paths"].items():
            for operation in operations.values():
                _complete(path, operation)
        app.openapi_schema = described
    return app.openapi_schema


def _complete(path: str, operation: dict[str, Any]) -> None:
    """Add to an operation what holds for all routes of its kind."""
    answers: dict[str, Any] = operation["responses"]
    # FastAPI notes its own 422 everywhere; a wrong request is 400 here.
    if "application/json" in answers.get("422", {}).get("content", {}):
        del answers["422"]
    scheme = "cronSecret" if path == _CRON else "apiToken"
    needs_one = path == _CRON or path not in OPEN_PATHS
    operation["security"] = [{scheme: []}] if needs_one else []
    if needs_one:
        for status, answer in describe_problems(400, 401).items():
            answers.setdefault(str(status), answer)
    for status in _TELLS_WHEN & set(answers):
        answers[status].setdefault("headers", {}).update(_RETRY)
    if "304" in answers:
        operation.setdefault("parameters", []).append(_IF_NONE_MATCH)
