"""Totals of metrics: what runs counted, raised in their own transactions, never lowered."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select, text

from market_pipeline.observability.metrics import Labels, Metric, Sample, bound_labels
from market_pipeline.storage.ledgers import metric_total

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
