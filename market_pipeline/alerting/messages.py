"""The message to a receiver: bounded in size, with foreign text made inert."""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from market_pipeline.alerting.kinds import KINDS
from market_pipeline.settings import read_variable

MAX_BODY_BYTES = 20_000
MAX_MEMBERS = 20
_MAX_LINE = 1_000
_MAX_REASON = 200
_MAX_CONTEXT = 4_000
_FIRST = 3
# Full-width look-alikes: no chat reads them as a mention, a link or a style.
_INERT = str.maketrans("@<>`*~|[]#&", "＠＜＞｀＊～｜［］＃＆")  # noqa: RUF001 - look-alikes
_LINK = re.compile(r"(?<=[A-Za-z])://")
_EDGE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


@dataclass(frozen=True, slots=True)
class AlertView:
    """An alert as it is sent; the columns of ``alert`` say what each field is."""

    alert_id: UUID
    kind: str
    severity: str
    message: str
    members: Mapping[str, str]
    context: Mapping[str, Any]
    run_id: UUID | None
    raised_at: datetime
    times: int
    cleared_at: datetime | None = None


def build_body(event: str, alert: AlertView, now: datetime) -> dict[str, Any]:
    """Return a message as Standard Webhooks shape it: type, timestamp, data; and text for chats.

    The event is ``raised``, ``updated``, ``reminder``, ``resolved`` or ``test``. The body has less
    than 20 kB of JSON; members that are left out are counted in ``members_total``.
    """
    kind, shown = KINDS[alert.kind], list(alert.members.items())[:MAX_MEMBERS]
    link = f"{read_variable('DAGSTER_UI_URL').rstrip('/')}/runs/{alert.run_id}"
    data: dict[str, Any] = {
        "alert_id": str(alert.alert_id),
        "kind": kind.name,
        "severity": alert.severity,
        "message": make_inert(alert.message, _MAX_LINE),
        "members": [
            {"name": make_inert(name, _MAX_REASON), "reason": make_inert(reason, _MAX_REASON)}
            for name, reason in shown
        ],
        "members_total": len(alert.members),
        "context": bound_context(alert.context),
        "raised_at": _format_time(alert.raised_at),
        "cleared_at": _format_time(alert.cleared_at),
        "times": alert.times,
        "run_id": None if alert.run_id is None else str(alert.run_id),
        "link": None if alert.run_id is None else link,
        "runbook": kind.anchor,
    }
    text = f"{event} {data['severity']}: {data['message']}"
    body = {"type": f"alert.{event}", "timestamp": _format_time(now), "data": data, "text": text}
    while len(encode(body)) >= MAX_BODY_BYTES:
        data["members"].pop()
    return body


def encode(body: Mapping[str, Any]) -> bytes:
    """Return the bytes of a message; the same for the same message, so that a signature holds."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def make_inert(text: str, most: int = _MAX_LINE) -> str:
    """Return foreign text in one line that mentions nobody, links nowhere and has no markup."""
    line = _LINK.sub(":/ /", clean(text, 4 * most).translate(_INERT))
    line = _EDGE_UNDERSCORE.sub("＿", line)  # noqa: RUF001 - a look-alike
    return line if len(line) <= most else f"{line[: most - 3]}..."


def clean(text: str, most: int = _MAX_LINE) -> str:
    """Return foreign text in one line without control characters, as it can be stored."""
    kept = (
        " " if unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp", "Cs") else sign
        for sign in text[:most]
    )
    return " ".join("".join(kept).split())


def list_members(members: Mapping[str, str], summary: str) -> str:
    """Return members in one line: how many, and the first three with their reasons."""
    first = "; ".join(f"{name}: {reason}" for name, reason in list(members.items())[:_FIRST])
    more = f"; and {len(members) - _FIRST:,} more" if len(members) > _FIRST else ""
    return f"{summary} ({len(members):,}): {first}{more}"


def bound_context(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what else is known, inert and of a few kB at most."""
    bounded = {make_inert(str(name), 60): _bound(value) for name, value in context.items()}
    while len(json.dumps(bounded)) > _MAX_CONTEXT:
        bounded.popitem()
    return bounded


def _bound(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_bound(item) for item in value[:MAX_MEMBERS]]
    return make_inert(str(value), _MAX_REASON)


def _format_time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()
