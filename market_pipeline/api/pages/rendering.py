"""Rendering: a template and its values as an escaped answer, with an ETag of its content.

The tag does not include ages, so a page that only became older answers with 304.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from market_pipeline.api.credentials import build_form_token
from market_pipeline.api.pages import formats
from market_pipeline.api.pages.assets import find_asset_path

REFRESH_SECONDS = 10
_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
# In the page as well, so that its first question for news can already be answered with 304.
_NO_DIGEST = 'data-digest=""'
_AGES = re.compile(r"(<time\b[^>]*>)[^<]*")


def answer_page(
    request: Request, template: str, shown: Mapping[str, Any], status: int = 200
) -> Response:
    """Return a page, or 304 if the browser has what it would show."""
    now = datetime.now(UTC)
    chrome = {
        "path": request.url.path, "now": now, "refresh_seconds": REFRESH_SECONDS,
        "form_token": build_form_token(find_form_secret(request)),
    }  # fmt: skip
    page = load_environment().get_template(template).render({**chrome, **shown})
    seen = _AGES.sub(r"\1", page).encode()
    digest = hashlib.sha256(seen).hexdigest()[:32]
    tag = f'W/"{digest}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Cookie"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return HTMLResponse(page.replace(_NO_DIGEST, f'data-digest="{digest}"', 1), status, headers)


def find_form_secret(request: Request) -> str:
    """Return what signs forms: the token, so that all processes know it, else a secret of this."""
    services = request.app.state.services
    secret: str = services.configuration.token or services.form_secret
    return secret


def show_problem(request: Request, problem: JSONResponse) -> Response:
    """Return a problem as a page when a browser asked for one, else as it is."""
    is_page = not request.url.path.startswith(("/api/", "/assets/"))
    if not is_page or "text/html" not in request.headers.get("accept", ""):
        return problem
    told = json.loads(bytes(problem.body))
    page = answer_page(request, "problem.html", {"problem": told}, problem.status_code)
    if retry := problem.headers.get("retry-after"):
        page.headers["retry-after"] = retry
    return page


@lru_cache(maxsize=1)
def load_environment() -> Environment:
    """Return the templates' environment; everything put into a page is escaped."""
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        price=formats.format_price,
        pct=formats.format_pct,
        number=formats.format_number,
        count=formats.format_count,
        plain=formats.say_plainly,
        plural=formats.format_plural,
        sent=formats.format_sent,
        changed_fields=formats.list_changed_fields,
        source=formats.describe_source,
        compact=formats.format_compact,
        utc=formats.format_time,
        date=formats.format_date,
        span=formats.format_span,
        reason=formats.describe_reason,
        direction=formats.describe_direction,
        exact=formats.exact,
    )
    made.globals.update(
        asset=find_asset_path,
        age=formats.format_age,
        link_market=link_market,
        link_hole=link_hole,
        link_why=link_why,
        link=link,
    )
    return made


def link_market(row: Mapping[str, Any]) -> str:
    """Return the address of a market's page; whatever it is called, it is one part of the path."""
    return f"/markets/{quote(formats.name_market(row), safe=':')}"


def link_why(row: Mapping[str, Any], statistic: str, horizon: str) -> str:
    """Return the address of the page that traces a statistic."""
    return link("/why", market=formats.name_market(row), statistic=statistic, horizon=horizon)


def link_hole(row: Mapping[str, Any]) -> str:
    """Return the address of a hole's page."""
    start = row["starts_at"].isoformat()
    return link("/hole", market=formats.name_market(row), interval=row["interval"], start=start)


def link(path: str, **parameters: Any) -> str:
    """Return an address with its parameters, but for empty ones."""
    given = {name: value for name, value in parameters.items() if value not in {None, ""}}
    return f"{path}?{urlencode(given)}" if given else path
