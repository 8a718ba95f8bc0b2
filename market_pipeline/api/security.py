"""Checks before every route: credentials, origin and size of a request; headers of the answer.

It is a plain ASGI layer, because requests on the fast path pass it too. The guard before Dagster's
webserver shares what tells the site that a request is for from the site that sent it. That
webserver has no users and starts runs by GET, and any page in a browser can send requests to a
webserver on the same machine. So the guard accepts the requests of Dagster's own page and of
programs, and refuses those that another site's page can send. Not here: the form of errors
(``problems``), the sign-in page (``pages.sign_in``), starting the webserver (``cli.web``).
"""

import asyncio
from urllib.parse import quote

from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from market_pipeline.api.configuration import Configuration
from market_pipeline.api.credentials import holds_bearer, holds_session
from market_pipeline.api.problems import build_problem

Headers = list[tuple[bytes, bytes]]
MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 30.0
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Health is for those who watch, cron has a secret of its own, and one signs in with the token.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/api/cron", "/sign-in"})
_FORM_PATHS = ("/sign-in", "/actions/")
_GRAPHQL = "/graphql"
_POLICY_VIOLATION = 1008
_OTHER_SITES = frozenset({"cross-site", "same-site"})
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_ADDED: Headers = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class RequestGuard:
    """Refuses what may not come in, and bounds what does."""

    def __init__(self, app: ASGIApp, configuration: Configuration) -> None:
        self._app, self._configuration = app, configuration

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, by the app or by a refusal."""
        if scope["type"] != "http":
            # There is no websocket here; the lifespan passes.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        send = _add_headers(send)
        refusal = self._refuse(scope)
        if refusal is None and scope["method"] not in SAFE_METHODS:
            read = await _read_body(scope, receive)
            if isinstance(read, Response):
                refusal = read
            else:
                receive = _replay(read, receive)
        await (refusal or self._app)(scope, receive, send)

    def _refuse(self, scope: Scope) -> Response | None:
        advice = "this API does not serve: use 127.0.0.1 or localhost, or set API_ALLOWED_HOSTS"
        return (
            refuse_host(scope, self._configuration.allowed_hosts, advice)
            or _refuse_origin(scope, self._configuration.cors_origins)
            or self._refuse_stranger(scope)
            or _refuse_content_type(scope)
        )

    def _refuse_stranger(self, scope: Scope) -> Response | None:
        token = self._configuration.token
        if not token or scope["path"] in OPEN_PATHS:
            return None
        headers: Headers = scope["headers"]
        if holds_bearer(headers, token) or holds_session(headers, token):
            return None
        if scope["method"] in {"GET", "HEAD"} and "text/html" in find_header(headers, b"accept"):
            return RedirectResponse(f"/sign-in?next={quote(scope['path'])}", 303)
        detail = "send `Authorization: Bearer` with API_TOKEN; in a browser sign in at /sign-in"
        challenge = {"WWW-Authenticate": 'Bearer realm="market-pipeline"'}
        return build_problem(401, "Unauthorized", detail, scope["path"], challenge)


def find_header(headers: Headers, wanted: bytes) -> str:
    """Return a header's value; "" when it is missing, and its first when it comes twice."""
    for name, value in headers:
        if name == wanted:
            return value.decode("latin-1")
    return ""


def refuse_host(scope: Scope, allowed: frozenset[str], advice: str) -> Response | None:
    """Refuse a request that is not for one of these hosts; where none is named, any is served.

    ``advice`` ends the sentence on a host that the server does not serve.
    """
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) > 1:
        detail = "the request has two Host headers: send one"
        return build_problem(400, "Bad Request", detail, scope["path"])
    host = hosts[0].decode("latin-1") if hosts else ""
    before, _, port = host.rpartition(":")
    name = before if before and port.isdecimal() else host
    if not allowed or name.lower() in allowed:
        return None
    detail = f"the Host header names a host that {advice}"
    return build_problem(421, "Misdirected Request", detail, scope["path"])


def has_foreign_origin(headers: Headers) -> bool:
    """Tell whether a page of another site is named as the sender."""
    origin = find_header(headers, b"origin")
    host = find_header(headers, b"host")
    return bool(origin) and origin.partition("://")[2].lower() != host.lower()


def is_sent_by_another_site(headers: Headers) -> bool:
    """Tell whether a browser says that another site's page, or a link there, sends this."""
    return has_foreign_origin(headers) or find_header(headers, b"sec-fetch-site") in _OTHER_SITES


def _refuse_origin(scope: Scope, let_in: frozenset[str]) -> Response | None:
    """Refuse what a page of another site, none of those let in, sends in its visitor's name."""
    if scope["method"] in SAFE_METHODS or not is_sent_by_another_site(scope["headers"]):
        return None
    if find_header(scope["headers"], b"origin") in let_in:
        return None
    detail = (
        "the request comes from a page of another site: only this API's own pages may send, and "
        "those of API_CORS_ORIGINS"
    )
    return build_problem(403, "Forbidden", detail, scope["path"])


def _refuse_content_type(scope: Scope) -> Response | None:
    """Refuse bodies that a form of another site could send; no body is no type."""
    if scope["method"] in SAFE_METHODS:
        return None
    headers: Headers = scope["headers"]
    given = find_header(headers, b"content-type").partition(";")[0].strip().lower()
    wanted = "application/json"
    if scope["path"].startswith(_FORM_PATHS):
        wanted = "application/x-www-form-urlencoded"
    has_body = find_header(headers, b"content-length") not in {"", "0"}
    has_body = has_body or bool(find_header(headers, b"transfer-encoding"))
    if given == wanted or not (has_body or given):
        return None
    detail = f"the body's Content-Type must be {wanted}"
    return build_problem(415, "Unsupported Media Type", detail, scope["path"])


async def _read_body(scope: Scope, receive: Receive) -> bytes | Response:
    """Return the whole body, or the refusal of a body that is too long or too slow."""
    declared = find_header(scope["headers"], b"content-length")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        return _refuse_size(scope)
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return Response(status_code=400)  # Nobody hears it.
                chunks.append(message.get("body", b""))
                if sum(map(len, chunks)) > MAX_BODY_BYTES:
                    return _refuse_size(scope)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        detail = f"the body was not complete after {BODY_SECONDS:.0f} seconds"
        closing = {"Connection": "close"}
        return build_problem(408, "Request Timeout", detail, scope["path"], closing)


def _refuse_size(scope: Scope) -> Response:
    detail = f"the body is larger than {MAX_BODY_BYTES} bytes"
    closing = {"Connection": "close"}
    return build_problem(413, "Content Too Large", detail, scope["path"], closing)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what hands a body over that was read already, and then what else comes."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def hand_over() -> Message:
        return left.pop() if left else await receive()

    return hand_over


def _add_headers(send: Send) -> Send:
    """Return a ``send`` that adds the headers that an answer has not set itself."""

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            given: Headers = list(message.get("headers", ()))
            names = {name for name, _ in given}
            given += [header for header in _ADDED if header[0] not in names]
            message["headers"] = given
        await send(message)

    return add


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
        return refusal or _refuse_senders(scope) or _refuse_query(scope)


def _refuse_senders(scope: Scope) -> Response | None:
    """Refuse what another site's page sends; a link there may lead to a page here."""
    is_reading = scope["type"] == "http" and scope["method"] in {"GET", "HEAD"}
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
