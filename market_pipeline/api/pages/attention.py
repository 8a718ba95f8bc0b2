"""Concerns: each problem in a sentence, with its age, its page and what to do.

Here: which problems there are, and their order. Not here: what an action does (``actions``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row

from market_pipeline.alerting.kinds import KINDS
from market_pipeline.api.pages.formats import (
    describe_reason,
    format_plural,
    format_span,
    format_time,
    name_market,
    say_plainly,
)
from market_pipeline.api.pages.freshness import Freshness
from market_pipeline.api.services import Services
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.readers.agreement import PairAgreement, compare_sources
from market_pipeline.settings import SEVERITIES
from market_pipeline.storage.alerts.outbox import read_alerts
from market_pipeline.storage.bars.events import SUSPECTED_SPLIT, list_events
from market_pipeline.storage.bars.history import read_newest_version
from market_pipeline.storage.bars.quarantine import count_open_rows
from market_pipeline.storage.coverage.holes import sum_open_holes

_MOST_ALERTS = 1_000
_MOST_WORDS = 220
_YEAR = timedelta(days=365)
OverviewRow = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that a person should know of.

    Attributes:
        severity: As of alerts. what: A sentence.
        since: Since when (UTC); None: unknown.
        runbook: The entry of RUNBOOK.md that says what to do.
        page: Its page, and the words of the link.
        market: Whose; None: of no single market.
        action: What can be done: the words and the page that shows its price first.
        alert_id: The alert that can be acknowledged.
    """

    severity: str
    what: str
    since: datetime | None
    runbook: str
    page: "Link"
    market: OverviewRow | None = None
    action: "Link | None" = None
    alert_id: object = None


@dataclass(frozen=True, slots=True)
class Link:
    """A link: its words, its path, and the parameters of its address."""

    words: str
    path: str
    parameters: Mapping[str, str]


def list_problems(
    connection: Connection,
    services: Services,
    markets: Sequence[tuple[OverviewRow, Freshness]],
    now: datetime,
) -> list[Concern]:
    """Return all problems of active markets, the worst first, then the oldest.

    Args:
        connection: Of one snapshot.
        services: They keep how sources agreed in the newest dataset version.
        markets: The rows of the overview, and how fresh each market is.
        now: By this clock (UTC).
    """
    by_id = {row["market_id"]: row for row, _ in markets}
    alerts = read_alerts(connection, _MOST_ALERTS, with_resolved=False)
    found = [
        *map(_describe_alert, filter(is_unattended, alerts)),
        *_find_holes(connection, by_id),
        *_find_refused(connection, by_id),
        *_find_events(connection, by_id),
        *_find_late(markets),
        *map(_describe_pair, read_disagreeing(connection, services)),
    ]
    told = {problem.market["market_id"] for problem in found if problem.market}
    found += [_describe_run(row) for row, _ in markets if _came_short(row, told)]
    return sorted(found, key=lambda one: (-SEVERITIES.index(one.severity), one.since or now))


def is_unattended(alert: Row[Any]) -> bool:
    """Tell whether an alert lasts, and nobody has taken it on."""
    return alert.acknowledged_at is None and alert.cleared_at is None


def read_disagreeing(connection: Connection, services: Services) -> list[PairAgreement]:
    """Return the pairs of sources that differ; compared once for each dataset version."""
    version = read_newest_version(connection)
    if version not in services.disagreeing:
        now = datetime.now(UTC)
        pairs = compare_sources(connection, Interval.DAY, Window(now - _YEAR, now))
        services.disagreeing.clear()
        services.disagreeing[version] = [p for p in pairs if p.agreement.verdict == "differ"]
    return services.disagreeing[version]


def _describe_alert(alert: Row[Any]) -> Concern:
    words = say_plainly(alert.message)
    short = words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]}…"
    runbook = KINDS[alert.kind].runbook if alert.kind in KINDS else "An alert came, or none did"
    page = Link("Look", f"/alerts/{alert.alert_id}", {})
    what = f"Alert: {short}"
    return Concern(alert.severity, what, alert.raised_at, runbook, page, alert_id=alert.alert_id)


def _find_holes(connection: Connection, markets: Mapping[int, OverviewRow]) -> Iterable[Concern]:
    for row in sum_open_holes(connection):
        if market := markets.get(row["market_id"]):
            parts = "" if row["holes"] == 1 else f" in {format_plural(row['holes'], 'hole')}"
            what = (
                f"{format_span(row['length'])} of {row['interval']} bars missing{parts}, "
                f"from {format_time(row['starts_at'])}: {describe_reason(row['reason'])}"
            )
            name = {"market": name_market(market)}
            span = {"start": row["starts_at"].isoformat(), "end": row["ends_at"].isoformat()}
            where = {**name, "interval": row["interval"], "start": span["start"]}
            page = Link("Look", "/hole", where)
            fill = Link("Fill…", "/actions/fill", {**name, **span})
            yield Concern("warning", what, row["first_seen_at"], "Holes", page, market, fill)


def _find_refused(connection: Connection, markets: Mapping[int, OverviewRow]) -> Iterable[Concern]:
    for row in count_open_rows(connection):
        if market := markets.get(row["market_id"]):
            what = f"{format_plural(row['rows'], 'bar')} kept out: {describe_reason(row['rule'])}"
            page = Link("Look", f"/quarantine/{row['row_id']}", {})
            since = row["first_seen_at"]
            yield Concern("warning", what, since, "Rows in quarantine", page, market)


def _find_events(connection: Connection, markets: Mapping[int, OverviewRow]) -> Iterable[Concern]:
    for event in list_events(connection, None, is_open=True):
        if market := markets.get(event["market_id"]):
            is_split = event["kind"] == SUSPECTED_SPLIT
            runbook = "A split is suspected" if is_split else "The provider restated its history"
            words = "Decide…" if is_split else "Look"
            page = Link(words, f"/events/{event['event_id']}", {})
            severity = "warning" if is_split else "info"
            yield Concern(severity, event["detail"], event["detected_at"], runbook, page, market)


def _find_late(markets: Sequence[tuple[OverviewRow, Freshness]]) -> Iterable[Concern]:
    for row, fresh in markets:
        if fresh.state != "current":
            ingest = Link("Ingest…", "/actions/ingest", {"market": name_market(row)})
            look = Link("Look", f"/markets/{name_market(row)}", {})
            what = _describe_delay(row, fresh)
            yield Concern("error", what, fresh.final_to, "No runs are started", look, row, ingest)


def _describe_delay(row: OverviewRow, fresh: Freshness) -> str:
    reason = say_plainly(row["reason"])
    told = f". Its last run ended {row['outcome']}: {reason}" if reason else ""
    if fresh.final_to is None:
        return f"No {fresh.interval or ''} bars are stored{told}".replace("  ", " ")
    late = "" if fresh.behind is None else f" by {format_span(fresh.behind)}"
    return f"{fresh.interval} bars are late{late}{told}"


def _describe_pair(pair: PairAgreement) -> Concern:
    hint = pair.agreement.hint
    what = f"{pair.name} differ{f': {hint}' if hint else ''}"
    page = Link("Look", f"/markets/{pair.provider}:{pair.symbol}", {})
    return Concern("warning", what, None, "Two sources disagree", page)


def _came_short(row: OverviewRow, told: set[int]) -> bool:
    return row.get("outcome") in {"partial", "failed"} and row["market_id"] not in told


def _describe_run(row: OverviewRow) -> Concern:
    severity = "error" if row["outcome"] == "failed" else "warning"
    reason = say_plainly(row["reason"]) or "no reason was noted"
    what = f"Its last run ended {row['outcome']}: {reason}"
    page = Link("Receipt", f"/runs/{row['run_id']}", {})
    again = Link("Ingest…", "/actions/ingest", {"market": name_market(row)})
    runbook = "Some markets came short (outcome `partial`)"
    return Concern(severity, what, row["run_started_at"], runbook, page, row, again)
