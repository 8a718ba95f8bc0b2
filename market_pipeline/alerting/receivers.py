"""Receivers: parses ALERT_WEBHOOK_URL and sends messages to each address in it.

An ``https://`` address gets JSON by Standard Webhooks. Apprise sends to every other scheme. An
address is a secret: rows, logs and answers name a receiver by its scheme and a hash.

The name of a receiver is a setting, but the network decides which address it has. That address must
not be this machine, its neighbours or a cloud's metadata. So it is looked up once, checked, and
used as it was checked. ``ALERT_ALLOW_PRIVATE`` allows private ones.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from market_pipeline.alerting.messages import encode
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
# Beyond what Python calls global: they carry or reach other addresses.
_REFUSED = tuple(
    ip_network(block)
    for block in (
        "0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15",
        "224.0.0.0/4", "240.0.0.0/4", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64",
        "2001::/32", "2002::/16", "5f00::/16", "fec0::/10", "ff00::/8",
    )
)  # fmt: skip
_KEY_PREFIX = "whsec_"
_LEAST_KEY_BYTES, _MOST_KEY_BYTES = 16, 64
_LEVELS = {"info": "info", "warning": "warning", "error": "failure", "critical": "failure"}


class RefusedAddressError(ValueError):
    """A receiver's name leads to an address that alerts may not go to."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of an attempt to send, without the address.

    ``is_gone``: the receiver will never take one again. ``wait``: it asks to be left alone so long.
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
            content = encode(body)
            headers = _sign(message_id, content, datetime.now(UTC), read_keys())
            return _send_request("POST", self.address, content, headers)
        return _send_chat(self.address, body)


def read_receivers() -> list[Receiver]:
    """Return the receivers of ALERT_WEBHOOK_URL; an error never repeats an address."""
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
    """Make sure that an address can be asked; an error names the label, never the address."""
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


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether an address is one of the open internet."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    is_refused = any(address in block for block in _REFUSED if block.version == address.version)
    return address.is_global and not address.is_multicast and not is_refused


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name to connect to, the best first.

    Raises:
        RefusedAddressError: One of its addresses is private; the message does not name the host.
        OSError: It cannot be looked up.
    """
    found = [str(item[4][0]) for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(is_public(ip_address(text.partition("%")[0])) for text in found):
        raise RefusedAddressError(
            "the receiver's address is private: ALERT_ALLOW_PRIVATE=true allows it"
        )
    return found


def read_keys() -> list[bytes]:
    """Return the keys of ALERT_WEBHOOK_SECRET; none: messages are not signed."""
    return [_decode_key(secret) for secret in read_variable("ALERT_WEBHOOK_SECRET").split()]


def _sign(message_id: str, body: bytes, now: datetime, keys: list[bytes]) -> dict[str, str]:
    """Return the headers of a message, by which a receiver verifies who sent it, and when (UTC).

    The id is the same at every try. Each key signs, so that one can be changed without a gap.
    """
    moment = str(int(now.timestamp()))
    signed = b".".join((message_id.encode(), moment.encode(), body))
    headers = {"webhook-id": message_id, "webhook-timestamp": moment}
    headers["content-type"] = "application/json"
    if keys:
        made = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys)
        headers["webhook-signature"] = " ".join(f"v1,{signature.decode()}" for signature in made)
    return headers


def _decode_key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_KEY_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not _LEAST_KEY_BYTES <= len(key) <= _MOST_KEY_BYTES:
        raise SettingError(
            f"ALERT_WEBHOOK_SECRET: expected {_KEY_PREFIX} and base64 of {_LEAST_KEY_BYTES} to "
            f"{_MOST_KEY_BYTES} bytes, such as `echo whsec_$(openssl rand -base64 32)` prints"
        )
    return key


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
    seconds = parse_retry_after(answer.headers.get("retry-after"), datetime.now(UTC)) or 0.0
    wait = timedelta(seconds=min(seconds, LONGEST_WAIT.total_seconds()))
    return Sent(is_ok=False, error=error, wait=wait)


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
