"""Receivers: parses ALERT_WEBHOOK_URL and sends messages to each address in it.

An ``https://`` address gets JSON by Standard Webhooks. Apprise sends to every other scheme. An
address is a secret: rows, logs and answers name a receiver by its scheme and a hash.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from market_pipeline.alerting.addresses import RefusedAddressError, is_public, resolve
from market_pipeline.alerting.messages import encode
from market_pipeline.alerting.signing import read_keys, sign
from market_pipeline.domain.budgets import parse_retry_after
from market_pipeline.domain.errors import SettingError
from market_pipeline.settings import read_flag, read_variable

if TYPE_CHECKING:
    import apprise
    import httpx

CONNECT_SECONDS = 4.0
SEND_SECONDS = 10.0
LONGEST_WAIT = timedelta(hours=6)
GONE_STATUS = 410
_WEB = ("https://", "http://")
_LEVELS = {"info": "info", "warning": "warning", "error": "failure", "critical": "failure"}


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of an attempt to send.

    Attributes:
        is_ok: The receiver took it. is_gone: It says that it will never take one again.
        error: What it met, without the address. wait: How long it asks to be left alone.
    """

    is_ok: bool
    error: str = ""
    is_gone: bool = False
    wait: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True, repr=False)
class Receiver:
    """One address that alerts go to."""

    address: str

    @property
    def name(self) -> str:
        """Return its name without the address, which is a secret."""
        digest = hashlib.sha256(self.address.encode()).hexdigest()[:8]
        return f"{self.address.partition('://')[0]}:{digest}"

    def send(self, message_id: str, body: Mapping[str, Any]) -> Sent:
        """Send a message once; takes seconds, and raises nothing that a network can cause."""
        if self.address.startswith(_WEB):
            return _send_web(self.address, message_id, encode(body))
        return _send_chat(self.address, body)


def read_receivers() -> list[Receiver]:
    """Return the receivers of ALERT_WEBHOOK_URL.

    Raises:
        SettingError: One cannot be one; the message never repeats it.
    """
    addresses = dict.fromkeys(read_variable("ALERT_WEBHOOK_URL").split())
    for number, address in enumerate(addresses, start=1):
        _check(address, f"ALERT_WEBHOOK_URL, address {number}")
    return [Receiver(address) for address in addresses]


def call_heartbeat() -> Sent:
    """Call HEARTBEAT_URL once, if there is one."""
    address = read_variable("HEARTBEAT_URL")
    return _send_request("GET", address) if address else Sent(is_ok=True)


def _check(address: str, label: str) -> None:
    if "://" not in address:
        raise SettingError(
            f"{label}: expected https://..., or slack://, discord://, mailto://, ..."
        )
    if address.startswith(_WEB):
        check_web(address, label)
    elif _build_chat(address) is None:
        raise SettingError(
            f"{label}: Apprise cannot read it; https://appriseit.com/services/ lists what it knows"
        )


def check_web(address: str, label: str) -> None:
    """Make sure that an address can be asked.

    Raises:
        SettingError: Names the label, never the address.
    """
    is_free = read_flag("ALERT_ALLOW_PRIVATE")
    try:
        url = urlsplit(address)
        host, _ = url.hostname, url.port
    except ValueError:
        host, url = None, urlsplit("")
    if not host or not address.startswith(_WEB):
        raise SettingError(f"{label}: expected an address such as https://example.com/alerts")
    if url.scheme == "http" and not is_free:
        raise SettingError(f"{label}: http:// is refused: ALERT_ALLOW_PRIVATE=true allows it")
    if not is_free and _is_private_literal(host):
        raise SettingError(f"{label} is a private address: ALERT_ALLOW_PRIVATE=true allows it")


def _is_private_literal(host: str) -> bool:
    try:
        return not is_public(ip_address(host))
    except ValueError:
        return False


def _send_web(address: str, message_id: str, body: bytes) -> Sent:
    headers = sign(message_id, body, datetime.now(UTC), read_keys())
    return _send_request("POST", address, body, {"content-type": "application/json", **headers})


def _send_request(
    method: str, address: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Sent:
    import httpx

    # Its log repeats addresses.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    url, sent = httpx.URL(address), Sent(is_ok=False, error="no address")
    try:
        for target, extensions in _pin(url):
            try:
                return _send_request_to(method, target, url, body, headers or {}, extensions)
            except httpx.ConnectError as error:
                sent = Sent(is_ok=False, error=_describe_error(error))
    except (httpx.HTTPError, RefusedAddressError, OSError) as error:
        return Sent(is_ok=False, error=_describe_error(error))
    return sent


def _send_request_to(
    method: str,
    target: "httpx.URL",
    url: "httpx.URL",
    body: bytes,
    headers: Mapping[str, str],
    extensions: dict[str, Any],
) -> Sent:
    """Ask one address in the name of another; its answer's body is not read."""
    import httpx

    limits = httpx.Timeout(SEND_SECONDS, connect=CONNECT_SECONDS)
    named = {**headers, "host": url.netloc.decode(), "user-agent": "market-pipeline"}
    # No proxy and no redirect: both would choose another address than the one that was checked.
    with (
        httpx.Client(trust_env=False, timeout=limits) as client,
        client.stream(
            method, target, content=body or None, headers=named, extensions=extensions
        ) as answer,
    ):
        return _read_result(answer)


def _pin(url: "httpx.URL") -> "list[tuple[httpx.URL, dict[str, Any]]]":
    """Return the address with its host looked up, and the name that its certificate must have."""
    if read_flag("ALERT_ALLOW_PRIVATE"):
        return [(url, {})]
    found = resolve(url.host, url.port or 443)
    return [(url.copy_with(host=address), {"sni_hostname": url.host}) for address in found]


def _read_result(answer: "httpx.Response") -> Sent:
    if answer.is_success:
        return Sent(is_ok=True)
    error = f"HTTP {answer.status_code}"
    if answer.status_code == GONE_STATUS:
        return Sent(is_ok=False, error=error, is_gone=True)
    if answer.is_redirect:
        return Sent(is_ok=False, error=f"{error}: redirects are not followed")
    return Sent(is_ok=False, error=error, wait=_read_wait(answer.headers.get("retry-after")))


def _read_wait(text: str | None) -> timedelta:
    seconds = parse_retry_after(text, datetime.now(UTC)) or 0.0
    return timedelta(seconds=min(seconds, LONGEST_WAIT.total_seconds()))


def _send_chat(address: str, body: Mapping[str, Any]) -> Sent:
    """Give a message to Apprise. Its own error texts are not repeated, as they hold addresses."""
    import requests

    service, data = _build_chat(address), body["data"]
    if service is None:
        return Sent(is_ok=False, error="Apprise cannot read the address")
    lines = [
        data["message"],
        *(f"{member['name']}: {member['reason']}" for member in data["members"][1:]),
    ]
    lines += [line for line in (data["link"], f"What to do: {data['runbook']}") if line]
    title = f"{body['type'].removeprefix('alert.')} {data['severity']}: {data['kind']}"
    try:
        _refuse_private(service)
        taken = service.notify(
            body="\n".join(lines),
            title=title,
            notify_type=_LEVELS[data["severity"]],
            body_format="text",
        )
    except (RefusedAddressError, OSError, requests.RequestException, TypeError) as error:
        return Sent(is_ok=False, error=_describe_error(error))
    return Sent(bool(taken), "" if taken else "the service did not take it")


def _build_chat(address: str) -> "apprise.NotifyBase | None":
    import apprise

    # Its log tells addresses.
    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    asset = apprise.AppriseAsset(http_redirects=False, app_id="market-pipeline")
    return apprise.Apprise.instantiate(address, asset=asset)


def _refuse_private(service: "apprise.NotifyBase") -> None:
    """Look up the host of a service that is sent to a host of its own, such as json:// or mailto://."""
    host = getattr(service, "smtp_host", None)
    if host is None and "{host}" in "".join(service.templates):
        host = service.host
    if host and not read_flag("ALERT_ALLOW_PRIVATE"):
        resolve(str(host), service.port or 443)


def _describe_error(error: Exception) -> str:
    return str(error) if isinstance(error, RefusedAddressError) else type(error).__name__
