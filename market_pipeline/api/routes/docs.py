"""The API's description: OpenAPI, and a page with scripts from an installed package."""

import copy
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from market_pipeline.api.pages.rendering import answer_page

router = APIRouter(include_in_schema=False)
ASSETS_PATH = "/docs/assets"


def find_assets() -> Path:
    """Return the folder of the page's scripts and styles."""
    import swagger_ui_bundle

    return Path(swagger_ui_bundle.swagger_ui_path)


@router.get("/docs")
def show_docs(request: Request) -> Response:
    """Show the API's description."""
    return answer_page(request, "docs.html", {})


@router.get("/docs/openapi.json")
def describe_for_page(request: Request) -> Response:
    """Return the description as OpenAPI 3.0, which is what the page reads."""
    described = copy.deepcopy(request.app.openapi())
    described["openapi"] = "3.0.3"
    return JSONResponse(_mark_nullable(described))


def _mark_nullable(part: Any) -> Any:
    """Return a schema in which null is no type but a mark."""
    if isinstance(part, list):
        return [_mark_nullable(item) for item in part]
    if not isinstance(part, dict):
        return part
    changed = {name: _mark_nullable(value) for name, value in part.items()}
    choices = changed.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        kept = [choice for choice in choices if choice != {"type": "null"}]
        del changed["anyOf"]
        changed |= {**kept[0], "nullable": True} if len(kept) == 1 else {"anyOf": kept}
    return changed
