"""Standard Webhooks: three headers by which a receiver verifies who sent a message, and when."""

import base64
import binascii
import hashlib
import hmac
from datetime import datetime

from market_pipeline.domain.errors import SettingError
from market_pipeline.settings import read_variable

_PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 16, 64


def read_keys() -> list[bytes]:
    """Return the keys of ALERT_WEBHOOK_SECRET; none: messages are not signed.

    Raises:
        SettingError: One is no key, or too short; the message never repeats it.
    """
    return [_decode(secret) for secret in read_variable("ALERT_WEBHOOK_SECRET").split()]


def sign(message_id: str, body: bytes, now: datetime, keys: list[bytes]) -> dict[str, str]:
    """Return the headers of a message; without keys it has an id and a time only.

    Args:
        message_id: The same at every try.
        body: The bytes that are sent.
        now: When (UTC): a receiver refuses what is older than five minutes.
        keys: Each signs it, so that one can be changed without a gap.
    """
    moment = str(int(now.timestamp()))
    signed = b".".join((message_id.encode(), moment.encode(), body))
    headers = {"webhook-id": message_id, "webhook-timestamp": moment}
    if keys:
        made = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys)
        headers["webhook-signature"] = " ".join(f"v1,{signature.decode()}" for signature in made)
    return headers


def _decode(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
        raise SettingError(
            f"ALERT_WEBHOOK_SECRET: expected {_PREFIX} and base64 of {_LEAST_BYTES} to "
            f"{_MOST_BYTES} bytes, such as `echo whsec_$(openssl rand -base64 32)` prints"
        )
    return key
