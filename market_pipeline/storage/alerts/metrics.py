"""Stored metrics: totals that runs raise in their own transactions, and gauges of the state.

A gauge is one cheap statement, whatever the size of the tables.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, select, text

from market_pipeline.domain.validation import NOT_A_SESSION
from market_pipeline.observability.metrics import (
    MAX_SERIES,
    Labels,
    Metric,
    Sample,
    bound_labels,
    gauge,
)
from market_pipeline.storage.coverage.holes import EXPLAINED
from market_pipeline.storage.ledgers import metric_total
from market_pipeline.storage.runs.receipts import STATE

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
_WAITS = """sent_at IS NULL AND given_up_at IS NULL AND EXISTS (
    SELECT FROM market_data.alert_delivery addressed WHERE addressed.receiver <> '')"""
# What each gauge counts, by its labels.
_GAUGES = (
    (RUNS, f"""SELECT trigger, provider, {STATE}, count(*)
        FROM market_data.ingestion_run run GROUP BY 1, 2, 3 ORDER BY 4 DESC"""),
    (LAST_SUCCESS, """SELECT provider, coalesce(extract(epoch FROM max(started_at)
            FILTER (WHERE outcome = 'ok' AND ended_at IS NOT NULL)), 0)
        FROM market_data.ingestion_run GROUP BY 1
        HAVING max(started_at) > now() - interval '7 days' ORDER BY 2 DESC"""),
    (BARS, """SELECT provider, symbol, interval, bars FROM market_data.market_coverage
        JOIN market_data.market USING (market_id) WHERE is_active ORDER BY market_id, interval"""),
    (WATERMARK, """SELECT provider, symbol, interval, extract(epoch FROM watermark)
        FROM market_data.market_coverage JOIN market_data.market USING (market_id)
        WHERE is_active AND watermark IS NOT NULL ORDER BY market_id, interval"""),
    (HOLES, f"""SELECT provider, count(starts_at) FROM market_data.market
        LEFT JOIN market_data.coverage_hole hole
            ON hole.market_id = market.market_id AND NOT {EXPLAINED}
        WHERE is_active GROUP BY 1 ORDER BY 1"""),
    (QUARANTINE, f"""SELECT provider, count(*) FROM market_data.quarantined_row
        JOIN market_data.market USING (market_id)
        WHERE status = 'open' AND rule <> '{NOT_A_SESSION}' GROUP BY 1 ORDER BY 1"""),
    (OPEN, """SELECT severities.severity, count(alert_id)
        FROM unnest(ARRAY['info', 'warning', 'error', 'critical']) AS severities (severity)
        LEFT JOIN market_data.alert ON alert.severity = severities.severity
            AND resolved_at IS NULL AND cleared_at IS NULL GROUP BY 1"""),
    (PENDING, f"""SELECT count(*) FROM market_data.alert_delivery
        WHERE {_WAITS}"""),
    (OLDEST, f"""SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0)
        FROM market_data.alert_delivery WHERE {_WAITS}"""),
    (GIVEN_UP, """SELECT count(*) FROM market_data.alert_delivery WHERE given_up_at IS NOT NULL"""),
)  # fmt: skip
# Raises the totals of some series.
# Ordered, so that two writers of the same series wait for each other and do not lock each other up.
_ADD = text("""
    INSERT INTO market_data.metric_total AS old (name, labels, value, count, buckets, updated_at)
    SELECT name, labels, value, count, buckets, clock_timestamp()
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS new (name text, labels jsonb, value double precision, count bigint, buckets jsonb)
    ORDER BY name, labels
    ON CONFLICT (name, labels) DO UPDATE SET
        value = old.value + EXCLUDED.value, count = old.count + EXCLUDED.count,
        buckets = (SELECT coalesce(jsonb_object_agg(bound, amount), '{}') FROM (
            SELECT bound, sum(amount::bigint) AS amount FROM (
                SELECT * FROM jsonb_each_text(old.buckets) AS a (bound, amount)
                UNION ALL SELECT * FROM jsonb_each_text(EXCLUDED.buckets) AS b (bound, amount)
            ) both_sides GROUP BY bound) summed),
        updated_at = clock_timestamp()
""")


def add_totals(connection: Connection, samples: Sequence[Sample]) -> None:
    """Raise the totals by some samples in the caller's transaction; one statement for all.

    Args:
        connection: In a transaction.
        samples: Of counters and histograms; those of one series add up.
    """
    bounded = _bound(connection, samples)
    rows: dict[tuple[str, Labels], dict[str, Any]] = {}
    for sample in bounded:
        row = rows.setdefault((sample.name, sample.labels), _begin(sample))
        row["value"] += sample.value
        row["count"] += sample.count
        bounds = Metric.DECLARED[sample.name].bounds
        for bound, amount in zip(bounds, sample.buckets, strict=False):
            row["buckets"][repr(bound)] = row["buckets"].get(repr(bound), 0) + amount
    if rows:
        connection.execute(_ADD, {"rows": json.dumps(list(rows.values()))})


def read_totals(connection: Connection) -> list[Sample]:
    """Return all totals of metrics that this version declares."""
    query = select(metric_total).order_by(metric_total.c.name, metric_total.c.labels)
    return [
        _read(metric, row)
        for row in connection.execute(query)
        if (metric := Metric.DECLARED.get(row.name)) is not None
        and set(row.labels) == set(metric.labels)
    ]


def _begin(sample: Sample) -> dict[str, Any]:
    empty: dict[str, Any] = {"value": 0.0, "count": 0, "buckets": {}}
    return {"name": sample.name, "labels": dict(sample.labels), **empty}


def _read(metric: Metric, row: Any) -> Sample:
    labels = metric.name_series(row.labels)
    buckets = tuple(int(row.buckets.get(repr(bound), 0)) for bound in metric.bounds)
    return Sample(metric.name, labels, row.value, row.count, buckets)


def _bound(connection: Connection, samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples under labels of which there are not too many."""
    known: dict[str, set[Labels]] = defaultdict(set)
    query = select(metric_total.c.name, metric_total.c.labels).where(
        metric_total.c.name.in_(sorted({sample.name for sample in samples}))
    )
    for name, labels in connection.execute(query):
        known[name].add(tuple((one, labels.get(one, "")) for one in Metric.DECLARED[name].labels))
    bounded = []
    for sample in samples:
        found = known[sample.name]
        labels = (
            sample.labels if sample.labels in found else bound_labels(sample.labels, len(found))
        )
        found.add(labels)
        bounded.append(Sample(sample.name, labels, sample.value, sample.count, sample.buckets))
    return bounded


def read_gauges(connection: Connection) -> Iterator[Sample]:
    """Yield the state of the database; no more than a thousand series of each metric."""
    for metric, query in _GAUGES:
        for *labels, value in connection.execute(text(f"{query} LIMIT {MAX_SERIES}")):
            yield metric.sample(float(value), **dict(zip(metric.labels, labels, strict=True)))
