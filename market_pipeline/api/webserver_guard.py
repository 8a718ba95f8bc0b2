"""The guard before Dagster's webserver, which has no users and starts runs by GET.

Any page in a browser can send requests to a webserver on the same machine. The guard accepts the
requests of Dagster's own page and of programs, and refuses those that another site's page can send.
Not here: starting the webserver (``cli.web``); users, which are the proxy's task.
"""

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from market_pipeline.api.problems import build_problem
from market_pipeline.api.security import (
    find_header,
    has_foreign_origin,
    is_sent_by_another_site,
    refuse_host,
)

_READING = frozenset({"GET", "HEAD"})
_GRAPHQL = "/graphql"
_POLICY_VIOLATION = 1008


class WebserverGuard:
    """Refuses foreign hosts and origins, and GraphQL by anything but POST of JSON or a websocket.

    Allowed hosts are the names it answers to, lower case, without port; none: any.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: frozenset[str]) -> None:
        self._app, self._allowed = app, allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        refusal = None if scope["type"] == "lifespan" else self._refuse(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            await refusal(scope, receive, send)

    def _refuse(self, scope: Scope) -> Response | None:
        advice = (
            "Dagster's webserver does not serve: use 127.0.0.1 or localhost, or let "
            "DAGSTER_UI_URL name it"
        )
        refusal = refuse_host(scope, self._allowed, advice)
        return refusal or _refuse_origin(scope) or _refuse_query(scope)


def _refuse_origin(scope: Scope) -> Response | None:
    """Refuse what another site's page sends; a link there may lead to a page here."""
    is_reading = scope["type"] == "http" and scope["method"] in _READING
    is_foreign = has_foreign_origin if is_reading else is_sent_by_another_site
    if not is_foreign(scope["headers"]):
        return None
    detail = "the request comes from a page of another site: only Dagster's own pages may send"
    return build_problem(403, "Forbidden", detail, scope["path"])


def _refuse_query(scope: Scope) -> Response | None:
    """Refuse queries in an address and in forms: a page can make a browser send those unasked."""
    if scope["type"] == "websocket" or not scope["path"].endswith(_GRAPHQL):
        return None
    headers = scope["headers"]
    if scope["method"] == "POST":
        kind = find_header(headers, b"content-type").partition(";")[0].strip().lower()
        if kind == "application/json":
            return None
        detail = "the body's Content-Type must be application/json"
        return build_problem(415, "Unsupported Media Type", detail, scope["path"])
    if scope["method"] == "GET" and "text/html" in find_header(headers, b"accept"):
        return None  # The page on which people write queries; it runs none by itself.
    detail = "queries are sent by POST, as JSON: an address must not start anything"
    return build_problem(405, "Method Not Allowed", detail, scope["path"], {"Allow": "POST"})
