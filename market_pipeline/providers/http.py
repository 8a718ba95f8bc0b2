"""HTTP for providers: the only module of this room that opens a connection.

Here: a client with a total deadline, bounded retries that honour ``Retry-After``, the decision
which failures are worth another try, and the limiter (``rate_limiter.py``) that each try passes
first. Not here: parsing bytes (``payloads.py``), the meaning of an answer (the provider's parser),
and retries of whole runs.

Two facts shaped it. httpx's timeout is per read, so a server that sends a byte a second would hold
a request for ever. Therefore the deadline is below httpx, on the socket. A client that retries
before ``Retry-After`` prolongs its block. Therefore, when the wait is longer than the deadline, the
request fails and no other is sent until the wait is over.
"""

import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from ssl import SSLCertVerificationError, SSLContext
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from market_pipeline.domain.budgets import parse_retry_after
from market_pipeline.domain.errors import (
    PermanentProviderError,
    SettingError,
    TransientProviderError,
)
from market_pipeline.providers.payloads import (
    BodyError,
    clean_text,
    parse_json,
    read_body,
    read_error_message,
)
from market_pipeline.providers.rate_limiter import admit, report_throttled
from market_pipeline.settings import read_variable

USER_AGENT = "Mozilla/5.0 (compatible; market-pipeline)"
TRANSIENT_STATUSES = frozenset({408, 425, 429})
THROTTLED_STATUSES = frozenset({429, 503})
MAX_ERROR_BODY_BYTES = 64 * 1024
RETRY_RESERVE = 10.0
RETRY_SHARE = 0.2

Params = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class CallLimits:
    """The limits of one call: seconds, bytes and tries.

    Attributes:
        request_seconds: One attempt, from connecting to the last byte of its body.
        total_seconds: All attempts of one call and the waits between them; not the time that the
            limiter kept them waiting, which the limiter bounds itself.
        retry_after_seconds: The longest ``Retry-After`` that is believed.
        max_bytes: Size of a body, after decompression.
        attempts: Tries of one call.
    """

    request_seconds: float = 15.0
    total_seconds: float = 150.0
    retry_after_seconds: float = 120.0
    max_bytes: int = 16 * 1024 * 1024
    attempts: int = 4


def read_utc_clock() -> datetime:
    """Return the real time now, in UTC."""
    return datetime.now(UTC)


def _draw_jitter() -> float:
    return secrets.SystemRandom().uniform(0.5, 1.5)


@dataclass(frozen=True, slots=True)
class Clocks:
    """Every source of time and chance the client uses, so that tests can bring their own.

    Attributes:
        monotonic: Seconds since any fixed moment; deadlines are measured with it.
        sleep: Waits a number of seconds.
        utc: The wall clock, for a ``Retry-After`` that names a date.
        jitter: The factor by which a wait between tries is stretched.
    """

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    utc: Callable[[], datetime] = read_utc_clock
    jitter: Callable[[], float] = _draw_jitter


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole HTTP answer: body decompressed and known to be complete."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; empty where none was sent."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass
class HttpClient:
    """A client for one provider's API; safe to share between threads.

    Args:
        provider: The provider's name, for error messages.
        base_url: The part of the address before each path.
        headers: Sent with each request; their values may be secrets and never enter a message.
        limits: Deadlines and caps.
        clocks: Time, sleep and jitter.
        read_status: Returns the status that an answer means, for a provider that reports errors
            under another one; it sees every answer.
    """

    provider: str
    base_url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    limits: CallLimits = field(default_factory=CallLimits)
    clocks: Clocks = field(default_factory=Clocks)
    read_status: Callable[[HttpResponse], int] = attrgetter("status")
    _spare_retries: float = field(default=RETRY_RESERVE, init=False)
    _blocked_until: float = field(default=-math.inf, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _client: httpx.Client | None = field(default=None, init=False, repr=False)

    def fetch_json(self, path: str, params: Params | None = None) -> object:
        """Return the parsed JSON body of ``base_url + path``.

        Raises:
            TransientProviderError: Every try failed in a way that may pass.
            PermanentProviderError: Refused, not JSON, or a number JSON does not have.
        """
        answer = self.fetch(path, params)
        if "json" not in (answer.content_type or "json"):
            raise PermanentProviderError(
                self.provider,
                f"{path} answered {answer.content_type!r} where JSON was expected",
                answer.status,
            )
        return parse_json(self.provider, answer.body)

    def fetch(self, path: str, params: Params | None = None) -> HttpResponse:
        """Return the answer to a GET, after as many tries as the limits allow.

        Args:
            path: Begins with ``/``; parts that come from outside are percent-encoded by the caller.
            params: The query.

        Raises:
            TransientProviderError: Every try failed in a way that may pass, or the budget is used
                up for longer than the limiter waits.
            PermanentProviderError: The same request would fail again.
        """
        end = self.clocks.monotonic() + self.limits.total_seconds
        self._refuse_while_blocked(path)
        self._spare_retries = min(self._spare_retries + RETRY_SHARE, RETRY_RESERVE)
        attempt = 1
        while True:
            end += self._pass_limiter()
            try:
                return self._try_once(path, params or {}, end)
            except _RetryableError as error:
                self._wait_or_give_up(error, attempt, end)
                attempt += 1

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def _refuse_while_blocked(self, path: str) -> None:
        wait = self._blocked_until - self.clocks.monotonic()
        if wait > 0:
            raise TransientProviderError(
                self.provider,
                f"{path} was not requested: the provider asked for a pause of {wait:.0f} s more",
                429,
            )

    def _pass_limiter(self) -> float:
        """Wait until a call may be made, and return the seconds that took."""
        began = self.clocks.monotonic()
        admit(self.provider)
        return self.clocks.monotonic() - began

    def _wait_or_give_up(self, error: "_RetryableError", attempt: int, end: float) -> None:
        wait = error.retry_after_seconds
        if wait is None:
            wait = min(0.5 * 2 ** (attempt - 1), 20.0) * self.clocks.jitter()
        if error.status in THROTTLED_STATUSES:
            report_throttled(self.provider, wait)
        now = self.clocks.monotonic()
        if attempt >= self.limits.attempts or self._spare_retries < 1 or now + wait >= end:
            if error.status == 429:
                self._blocked_until = now + wait
            raise TransientProviderError(
                self.provider, f"{error.message} (tries: {attempt})", error.status
            ) from error
        self._spare_retries -= 1
        self.clocks.sleep(wait)

    def _try_once(self, path: str, params: Params, end: float) -> HttpResponse:
        now = self.clocks.monotonic()
        seconds = min(self.limits.request_seconds, end - now)
        try:
            with _deadline(now + seconds, self.clocks.monotonic):
                answer = self._send(path, params, seconds)
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            kind = PermanentProviderError if _is_bad_certificate(error) else _RetryableError
            raise kind(self.provider, self._hide(_describe_error(path, error))) from error
        return self._check_status(path, answer)

    def _send(self, path: str, params: Params, seconds: float) -> HttpResponse:
        request = self._open().build_request(
            "GET",
            self.base_url.rstrip("/") + path,
            params=dict(params) or None,
            headers={"user-agent": USER_AGENT, "accept-encoding": "gzip", **self.headers},
            timeout=seconds,
        )
        response = self._open().send(request, stream=True)
        try:
            return self._read_response(path, response)
        finally:
            response.close()

    def _read_response(self, path: str, response: httpx.Response) -> HttpResponse:
        is_ok = response.status_code == 200
        cap = self.limits.max_bytes if is_ok else MAX_ERROR_BODY_BYTES
        headers = {name.lower(): value for name, value in response.headers.items()}
        try:
            body = read_body(response.iter_raw(), headers, cap)
        except BodyError as error:
            if not is_ok:  # the status says enough
                return HttpResponse(response.status_code, headers, b"")
            kind = PermanentProviderError if error.is_permanent else _RetryableError
            raise kind(self.provider, f"{path} answered {error}", response.status_code) from None
        return HttpResponse(response.status_code, headers, body)

    def _check_status(self, path: str, answer: HttpResponse) -> HttpResponse:
        status = self.read_status(answer)
        message = f"{path} answered HTTP {answer.status}{self._hide(_quote_error(answer))}"
        if status in TRANSIENT_STATUSES or status >= 500:
            wait = parse_retry_after(answer.headers.get("retry-after"), self.clocks.utc())
            cap = self.limits.retry_after_seconds
            raise _RetryableError(
                self.provider, message, status, None if wait is None else min(wait, cap)
            )
        if status != 200:
            raise PermanentProviderError(self.provider, message, status)
        if answer.content_type in ("text/html", "application/xhtml+xml"):
            raise PermanentProviderError(self.provider, f"{path} answered a web page", status)
        return answer

    def _hide(self, text: str) -> str:
        for secret in self.headers.values():
            if len(secret) >= 4:
                text = text.replace(secret, "***")
        return text

    def _open(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                transport = _DeadlineTransport(self.base_url)
                self._client = httpx.Client(transport=transport, follow_redirects=False)
            return self._client


class _RetryableError(TransientProviderError):
    """One try failed; another may not."""

    def __init__(
        self,
        provider: str,
        message: str,
        status: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(provider, message, status)
        self.retry_after_seconds = retry_after_seconds


def _is_bad_certificate(error: BaseException | None) -> bool:
    """Tell whether a failure comes from a certificate that does not fit: it will not fit later."""
    while error is not None:
        if isinstance(error, SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _describe_error(path: str, error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"{path} was not answered in time ({type(error).__name__})"
    return f"{path} failed: {type(error).__name__}: {clean_text(str(error))}"


def _quote_error(answer: HttpResponse) -> str:
    if "html" in answer.content_type:
        return ""
    said = read_error_message(answer.body)
    return f": {said}" if said else ""


def open_client(
    provider: str,
    base_url: str,
    environ: Mapping[str, str],
    limits: CallLimits | None = None,
    clocks: Clocks | None = None,
    read_status: Callable[[HttpResponse], int] = attrgetter("status"),
) -> HttpClient:
    """Return the client of an API; the variable ``<PROVIDER>_BASE_URL`` replaces its address."""
    variable = f"{provider.upper()}_BASE_URL"
    if address := read_variable(variable, environ):
        base_url = parse_base_url(variable, address)
    rules = (limits or CallLimits(), clocks or Clocks(), read_status)
    return HttpClient(provider, base_url, {}, *rules)


def parse_base_url(name: str, text: str) -> str:
    """Return the address in a setting.

    Raises:
        SettingError: It is not ``http(s)://host...``, or it carries a query or a password.
    """
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_plain = not (parts.query or parts.fragment or parts.username or parts.password)
        _ = parts.port
    except ValueError:
        is_valid = is_plain = False
    if not (is_valid and is_plain and text.isprintable() and " " not in text):
        raise SettingError(f"{name} is not an address: expected https://host or https://host/path")
    return text.rstrip("/")


_running = threading.local()


@contextmanager
def _deadline(end: float, monotonic: Callable[[], float]) -> Iterator[None]:
    """Bound every socket operation of this thread by one moment on the monotonic clock."""
    _running.deadline = (end, monotonic)
    try:
        yield
    finally:
        _running.deadline = None


def _bound(timeout: float | None, error: type[Exception]) -> float | None:
    deadline = getattr(_running, "deadline", None)
    if deadline is None:
        return timeout
    end, monotonic = deadline
    left: float = end - monotonic()
    if left <= 0:
        raise error("total deadline")
    return left if timeout is None else min(timeout, left)


class _DeadlineStream(httpcore.NetworkStream):
    """A socket whose every operation ends by the thread's deadline."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _bound(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _bound(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _bound(timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


class _DeadlineBackend(httpcore.SyncBackend):
    """Opens sockets that know the deadline."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = _bound(timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(super().connect_tcp(host, port, left, local_address, socket_options))


class _DeadlineTransport(httpx.HTTPTransport):
    """httpx's transport over the backend above; ``HTTP(S)_PROXY`` and ``NO_PROXY`` apply."""

    def __init__(self, base_url: str) -> None:
        # Not super().__init__(): it would read the certificates once more, for a pool of its own.
        self._pool = _build_pool(base_url)


def _build_pool(base_url: str) -> httpcore.ConnectionPool:
    parts = urlsplit(base_url)
    proxy = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
    context = httpx.create_ssl_context() if parts.scheme == "https" else None
    backend = _DeadlineBackend()
    if not proxy:
        return httpcore.ConnectionPool(
            ssl_context=context, network_backend=backend, keepalive_expiry=5.0
        )
    address = httpx.URL(proxy)
    login = (address.username.encode(), address.password.encode()) if address.username else None
    return httpcore.HTTPProxy(
        str(address.copy_with(username=None, password=None)),
        proxy_auth=login,
        ssl_context=context,
        network_backend=backend,
        keepalive_expiry=5.0,
    )
