"""The state of the database as gauges: one cheap question each, whatever the tables' size."""

# ruff: noqa: S608 - the names of our own tables

from collections.abc import Iterator

from sqlalchemy import Connection, text

from market_pipeline.domain.validation import NOT_A_SESSION
from market_pipeline.observability.metrics import MAX_SERIES, Sample, gauge
from market_pipeline.storage.run_evidence import EXPLAINED
from market_pipeline.storage.run_states import STATE
from market_pipeline.storage.tables import SCHEMA

_SERIES = ("provider", "symbol", "interval")
RUNS = gauge("ingestion_runs", "Receipts that are kept", ("trigger", "provider", "outcome"))
LAST_SUCCESS = gauge(
    "ingestion_last_success_timestamp_seconds",
    "Start of the newest run of outcome ok, of those asked this week, since 1970 (UTC); 0: never",
    ("provider",),
    "seconds",
)
BARS = gauge("market_bars", "Bars stored", _SERIES)
WATERMARK = gauge(
    "market_watermark_timestamp_seconds",
    "Close of the last final bar, since 1970 (UTC)",
    _SERIES,
    "seconds",
)
HOLES = gauge("coverage_holes", "Holes of active markets that nobody explained", ("provider",))
QUARANTINE = gauge("quarantine_rows", "Impossible rows nobody has dealt with", ("provider",))
OPEN = gauge("alerts_open", "Alerts whose cause is not gone", ("severity",))
PENDING = gauge("alert_deliveries_pending", "Messages that wait for a receiver")
OLDEST = gauge(
    "alert_oldest_pending_seconds", "How long the oldest of them has waited", unit="seconds"
)
GIVEN_UP = gauge("alert_deliveries_given_up", "Messages given up, of those that are kept")

# Where no process ever had a receiver, nothing waits for one.
_WAITS = f"""sent_at IS NULL AND given_up_at IS NULL AND EXISTS (
    SELECT FROM {SCHEMA}.alert_delivery addressed WHERE addressed.receiver <> '')"""
_QUESTIONS = (
    (RUNS, f"""SELECT trigger, provider, {STATE}, count(*)
        FROM {SCHEMA}.ingestion_run run GROUP BY 1, 2, 3 ORDER BY 4 DESC"""),
    (LAST_SUCCESS, f"""SELECT provider, coalesce(extract(epoch FROM max(started_at)
            FILTER (WHERE outcome = 'ok' AND ended_at IS NOT NULL)), 0)
        FROM {SCHEMA}.ingestion_run GROUP BY 1
        HAVING max(started_at) > now() - interval '7 days' ORDER BY 2 DESC"""),
    (BARS, f"""SELECT provider, symbol, interval, bars FROM {SCHEMA}.market_coverage
        JOIN {SCHEMA}.market USING (market_id) WHERE is_active ORDER BY market_id, interval"""),
    (WATERMARK, f"""SELECT provider, symbol, interval, extract(epoch FROM watermark)
        FROM {SCHEMA}.market_coverage JOIN {SCHEMA}.market USING (market_id)
        WHERE is_active AND watermark IS NOT NULL ORDER BY market_id, interval"""),
    (HOLES, f"""SELECT provider, count(starts_at) FROM {SCHEMA}.market
        LEFT JOIN {SCHEMA}.coverage_hole hole
            ON hole.market_id = market.market_id AND NOT {EXPLAINED}
        WHERE is_active GROUP BY 1 ORDER BY 1"""),
    (QUARANTINE, f"""SELECT provider, count(*) FROM {SCHEMA}.quarantined_row
        JOIN {SCHEMA}.market USING (market_id)
        WHERE status = 'open' AND rule <> '{NOT_A_SESSION}' GROUP BY 1 ORDER BY 1"""),
    (OPEN, f"""SELECT severities.severity, count(alert_id)
        FROM unnest(ARRAY['info', 'warning', 'error', 'critical']) AS severities (severity)
        LEFT JOIN {SCHEMA}.alert ON alert.severity = severities.severity
            AND resolved_at IS NULL AND cleared_at IS NULL GROUP BY 1"""),
    (PENDING, f"""SELECT count(*) FROM {SCHEMA}.alert_delivery
        WHERE {_WAITS}"""),
    (OLDEST, f"""SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0)
        FROM {SCHEMA}.alert_delivery WHERE {_WAITS}"""),
    (GIVEN_UP, f"""SELECT count(*) FROM {SCHEMA}.alert_delivery WHERE given_up_at IS NOT NULL"""),
)  # fmt: skip


def read_gauges(connection: Connection) -> Iterator[Sample]:
    """Yield the state of the database; no more than a thousand series of each metric."""
    for metric, query in _QUESTIONS:
        for *labels, value in connection.execute(text(f"{query} LIMIT {MAX_SERIES}")):
            yield metric.sample(float(value), **dict(zip(metric.labels, labels, strict=True)))
