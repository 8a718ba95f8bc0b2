"""The page for a request that cannot be answered: the same problem as on other routes, as HTML."""

import json

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from market_pipeline.api.pages.rendering import answer_page

_KEPT = ("retry-after",)


def show_problem(request: Request, problem: JSONResponse) -> Response:
    """Return a problem as a page when a browser asked for one, else as it is."""
    if not _wants_page(request):
        return problem
    told = json.loads(bytes(problem.body))
    page = answer_page(request, "problem.html", {"problem": told}, problem.status_code)
    page.headers.update({name: problem.headers[name] for name in _KEPT if name in problem.headers})
    return page


def _wants_page(request: Request) -> bool:
    is_page = request.method == "GET" and not request.url.path.startswith(("/api/", "/assets/"))
    return is_page and "text/html" in request.headers.get("accept", "")
