"""The sign-in page: takes API_TOKEN once and sets a cookie for the other pages."""

import time
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from market_pipeline.api.credentials import COOKIE, SESSION_SECONDS, build_session, is_token
from market_pipeline.api.pages.assets import read_asset
from market_pipeline.api.pages.rendering import load_environment
from market_pipeline.api.services import ServicesNeeded

router = APIRouter(include_in_schema=False)


@router.get("/sign-in")
def show_sign_in(next_path: Annotated[str, Query(alias="next", max_length=500)] = "/") -> Response:
    """Show the form."""
    return HTMLResponse(_render(next_path, ""))


@router.post("/sign-in")
async def sign_in(
    request: Request,
    token: Annotated[str, Form(max_length=1_024)],
    services: ServicesNeeded,
    next_path: Annotated[str, Form(alias="next", max_length=500)] = "/",
    name: Annotated[str, Form(max_length=60)] = "",
) -> Response:
    """Give a browser that knows the token its cookie, and send it where it wanted to go."""
    expected = services.configuration.token
    address = request.client.host if request.client else ""
    if seconds := services.wrong_sign_ins.compute_wait(address):
        page = _render(next_path, f"Too many wrong tokens. Try again in {seconds} seconds.")
        return HTMLResponse(page, 429, {"Retry-After": str(seconds)})
    if not expected:
        page = _render(next_path, "No token is needed: API_TOKEN is unset.")
        return HTMLResponse(page, 404)
    if not is_token(token, expected):
        services.wrong_sign_ins.note(address)
        return HTMLResponse(_render(next_path, "The token is wrong."), 401)
    answer = RedirectResponse(_keep_local(next_path), 303)
    session = build_session(expected, time.time(), name.strip())
    is_tls = _came_by_tls(request)
    answer.set_cookie(
        COOKIE, session, SESSION_SECONDS, secure=is_tls, httponly=True, samesite="strict"
    )
    return answer


def _came_by_tls(request: Request) -> bool:
    """Tell whether the browser speaks TLS, by what a proxy or the browser says.

    Either may be made up by the sender, who then keeps a cookie that is sent less often.
    """
    forwarded = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    origin = request.headers.get("origin", "").lower()
    return request.url.scheme == "https" or forwarded == "https" or origin.startswith("https://")


def _render(next_path: str, message: str) -> str:
    template = load_environment().get_template("sign_in.html")
    style = read_asset("style.css").decode()
    return template.render(next=_keep_local(next_path), message=message, style=style)


def _keep_local(path: str) -> str:
    """Return a path of this site, "/" for everything that could lead elsewhere."""
    is_local = path.startswith("/") and not path.startswith("//") and "\\" not in path
    return path if is_local and path.isprintable() else "/"
