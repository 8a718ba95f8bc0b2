"""Checks beside runs: stale data, holes that stay, runs that do not begin."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection

from market_pipeline.alerting.kinds import DATA_STALE, HOLES_STAY, NO_RUN
from market_pipeline.alerting.raising import Finding, forget_inactive, report, resolve_cleared
from market_pipeline.ingestion.freshness import find_delays, index_coverage
from market_pipeline.ingestion.request import Route
from market_pipeline.ingestion.run_alerts import name_market
from market_pipeline.storage.coverage.holes import read_lasting_holes
from market_pipeline.storage.coverage.listings import read_coverage_rows
from market_pipeline.storage.markets.lookup import read_active_markets
from market_pipeline.storage.runs.receipts import read_last_start

_NO_RUN = "the schedule is on, but no run has begun since {since:%Y-%m-%d %H:%M} UTC"


def watch(
    connection: Connection,
    routes: Sequence[Route],
    ticks: Sequence[datetime],
    scheduled_since: datetime | None,
    now: datetime,
    wanted: Collection[str] | None = None,
) -> None:
    """Raise, clear and end alerts by the state of the database; done twice it changes nothing.

    Args:
        connection: In a transaction.
        routes: Providers and markets that are ingested.
        ticks: The schedule's last three before now, the newest first (UTC).
        scheduled_since: When the schedule was first seen to be on (UTC); None: it is off.
        now: The wall clock (UTC).
        wanted: The symbols that runs are asked for; None: that cannot be told.
    """
    idle = find_idleness(connection, ticks[1], scheduled_since)
    findings = [idle, _find_lasting_holes(connection, now)]
    if not idle.members:  # Without runs everything is stale: that is one alert.
        findings.append(_find_stale(connection, routes, ticks[2]))
    report(connection, findings, now)
    forget_inactive(connection, now, wanted)
    resolve_cleared(connection, now)


def find_idleness(
    connection: Connection, missed: datetime, scheduled_since: datetime | None
) -> Finding:
    """Return whether no run began since the last tick but one, while the schedule is on."""
    if scheduled_since is None:
        return Finding(NO_RUN)
    since = max(filter(None, (read_last_start(connection), scheduled_since)))
    if since >= missed:
        return Finding(NO_RUN)
    message = _NO_RUN.format(since=since)
    return Finding(NO_RUN, {"ingest": message}, message=message)


def _find_lasting_holes(connection: Connection, now: datetime) -> Finding:
    rows = read_lasting_holes(connection, now - timedelta(days=1))
    lasting = {row["name"]: f"{row['holes']} holes, {row['reason']}" for row in rows}
    return Finding(HOLES_STAY, lasting)


def _find_stale(connection: Connection, routes: Sequence[Route], due: datetime) -> Finding:
    """Return the markets without their newest bar of then, which two runs should have brought."""
    ids = {
        (row["provider"], row["symbol"]): row["market_id"]
        for row in read_active_markets(connection)
    }
    known = index_coverage(read_coverage_rows(connection, list(ids.values())))
    late = {
        name_market((provider, market)): delay
        for provider, market in routes
        for delay in find_delays([(provider, market)], ids, known, due, due)
    }
    return Finding(
        DATA_STALE,
        {
            name: f"{bars.interval} bars end {_format_time(bars.final_to)}, "
            f"not {_format_time(bars.expected_to)}"
            for name, bars in late.items()
        },
    )


def _format_time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "nowhere"
