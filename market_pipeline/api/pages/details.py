"""Pages of one thing each: an alert, a hole, a quarantined row, an event, a dataset version.

Each says what happened and since when, what it means for whoever reads the data, what happens by
itself, what one can do, and what was done.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from market_pipeline.alerting.kinds import KINDS
from market_pipeline.api.pages.attention import list_problems
from market_pipeline.api.pages.filling import price_fill
from market_pipeline.api.pages.freshness import read_series, summarise_freshness
from market_pipeline.api.pages.paging import cut_page
from market_pipeline.api.pages.rendering import answer_page
from market_pipeline.api.problems import ProblemError
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.domain.records import Window
from market_pipeline.ingestion.deciding import preview_split
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.resolve import build_unknown_error, find_market_called, parse_moment
from market_pipeline.readers.why import pick_value
from market_pipeline.storage.alerts.outbox import read_alert, read_alerts, read_deliveries
from market_pipeline.storage.bars.events import SUSPECTED_SPLIT, is_seam, read_event
from market_pipeline.storage.bars.quarantine import read_quarantine
from market_pipeline.storage.bars.revisions import (
    read_restated_bars,
    read_version,
    read_version_batches,
)
from market_pipeline.storage.coverage.holes import read_hole
from market_pipeline.storage.markets.listings import read_overview
from market_pipeline.storage.runs.actions import list_actions
from market_pipeline.storage.statistics.series import read_newest_roi

router = APIRouter(include_in_schema=False)
MAX_ROWS = 100
_ENDED_ALERTS = 50


@router.get("/alerts")
def show_alerts(
    request: Request,
    services: ServicesNeeded,
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    """Show all that needs attention, and the last alerts."""
    now = datetime.now(UTC)
    with open_snapshot(services.engine) as connection:
        series = read_series(connection)
        markets = [
            (row, summarise_freshness(series[row["market_id"]], now))
            for row in read_overview(connection)
        ]
        problems = list_problems(connection, services, markets, now)
        alerts = read_alerts(connection, _ENDED_ALERTS, with_resolved=True)
    shown = {"listing": cut_page(problems, page, MAX_ROWS), "alerts": alerts}
    return answer_page(request, "alerts.html", shown)


@router.get("/alerts/{alert_id}")
def show_alert(request: Request, services: ServicesNeeded, alert_id: UUID) -> Response:
    """Show an alert."""
    with open_snapshot(services.engine) as connection:
        alert = read_alert(connection, alert_id)
        if alert is None:
            raise _find_nothing(f"alert {alert_id} is unknown (old ones are removed)", "/alerts")
        deliveries = read_deliveries(connection, alert_id)
        actions = list_actions(connection, MAX_ROWS, f"alert {alert_id}")
    shown = {"alert": alert, "kind": KINDS.get(alert.kind), "deliveries": deliveries}
    return answer_page(request, "alert.html", {**shown, "actions": actions})


@router.get("/hole")
def show_hole(
    request: Request,
    services: ServicesNeeded,
    market: Annotated[str, Query(max_length=80)],
    interval: Annotated[str, Query(pattern="^(1h|1d)$")],
    start: Annotated[str, Query(max_length=40)],
) -> Response:
    """Show a hole of a market's history."""
    with open_snapshot(services.engine) as connection:
        found = find_market_called(connection, market)
        if found is None:
            raise build_unknown_error(connection, [market[:60].upper()])
        hole = read_hole(connection, found.market_id, interval, parse_moment("start", start))
        if hole is None:
            raise _find_nothing(f"no hole of {market} begins then: it was filled", "/coverage")
        window = Window(hole["starts_at"], hole["ends_at"])
        fill = price_fill(connection, found.record, window)
        withheld = list_withheld(connection, found.market_id, "unexplained_hole")
        actions = [
            action
            for action in list_actions(connection, MAX_ROWS)
            if action["target"].startswith(f"{found.record.provider}:{found.record.symbol} ")
        ]
    shown = {"hole": hole, "fill": fill, "withheld": withheld, "actions": actions}
    return answer_page(request, "hole.html", shown)


@router.get("/quarantine/{row_id}")
def show_row(request: Request, services: ServicesNeeded, row_id: int) -> Response:
    """Show a quarantined row, with the whole bar as it came."""
    with open_snapshot(services.engine) as connection:
        rows = read_quarantine(connection, row_ids=[row_id])
        if rows.empty:
            raise _find_nothing(f"row {row_id} is not in the quarantine", "/runs")
        whole = rows.astype(object).where(rows.notna(), None)
        actions = list_actions(connection, MAX_ROWS, f"row {row_id}")
    shown = {"row": whole.to_dict("records")[0], "actions": actions}
    return answer_page(request, "row.html", shown)


@router.get("/events/{event_id}")
def show_event(request: Request, services: ServicesNeeded, event_id: int) -> Response:
    """Show a suspected split, or a restated span, and what confirming would do."""
    with open_snapshot(services.engine) as connection:
        event = read_event(connection, event_id)
        if event is None:
            raise _find_nothing(f"event {event_id} is unknown", "/alerts")
        is_split = event["kind"] == SUSPECTED_SPLIT and event["resolved_at"] is None
        shown = {
            "event": event,
            "preview": preview_split(connection, event_id) if is_split else None,
            "may_dismiss": event["resolved_at"] is None and (is_split or is_seam(event)),
            "withheld": list_withheld(connection, event["market_id"], event["kind"]),
            "actions": list_actions(connection, MAX_ROWS, f"event {event_id}"),
        }
    return answer_page(request, "event.html", shown)


@router.get("/versions/{version}")
def show_version(request: Request, services: ServicesNeeded, version: int) -> Response:
    """Show what a dataset version changed."""
    with open_snapshot(services.engine) as connection:
        found = read_version(connection, version)
        if found is None:
            raise _find_nothing(f"no bar changed in version {version}", "/runs")
        shown = {
            "version": found,
            "batches": read_version_batches(connection, found, MAX_ROWS),
            "restated": read_restated_bars(connection, found, MAX_ROWS),
        }
    return answer_page(request, "version.html", shown)


@router.get("/log")
def show_log(request: Request, services: ServicesNeeded) -> Response:
    """Show who did what on pages."""
    with open_snapshot(services.engine) as connection:
        actions = list_actions(connection, MAX_ROWS)
    return answer_page(request, "log.html", {"actions": actions})


def list_withheld(connection: Connection, market_id: int, reason: str) -> Sequence[str]:
    """Return the horizons whose statistics are NULL for a reason, the shortest first."""
    rows: list[dict[str, Any]] = read_newest_roi(connection, market_id)
    return [
        row["horizon"] for row in rows if pick_value("roi", row["roi"], row["reason"])[1] == reason
    ]


def _find_nothing(detail: str, path: str) -> ProblemError:
    return ProblemError(404, "Not Found", f"{detail}: {path} shows what there is")
