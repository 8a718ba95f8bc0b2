"""The API's description: OpenAPI, and a page with scripts from an installed package."""

import copy
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

router = APIRouter(include_in_schema=False)
ASSETS_PATH = "/docs/assets"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Market Pipeline API</title>
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
<link rel="icon" href="/docs/assets/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "/docs/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis]
});
"""


def find_assets() -> Path:
    """Return the folder of the page's scripts and styles."""
    import swagger_ui_bundle

    return Path(swagger_ui_bundle.swagger_ui_path)


@router.get("/docs")
def show_docs() -> Response:
    """Show the API's description."""
    return HTMLResponse(_PAGE)


@router.get("/docs/start.js")
def start_docs() -> Response:
    """Return the script that starts the page; a policy without inline scripts needs it apart."""
    return Response(_START, media_type="text/javascript")


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
