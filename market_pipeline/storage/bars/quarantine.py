"""Impossible bars as they came: each kept once with its reason, so that nothing is lost.

Here: a bar as JSON and back, and the table's rows. Not here: the rules (``domain.validation``), and
what replaying a row writes (``ingestion.quarantine``).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
from sqlalchemy import Connection, Select, func, select, text, update

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import BAR_DTYPES, UTC_DTYPE, build_bar_frame
from market_pipeline.domain.validation import NOT_A_SESSION, RejectedBars
from market_pipeline.storage.ledgers import quarantined_row
from market_pipeline.storage.rows import Row, fetch, read_frame
from market_pipeline.storage.tables import market

STATUSES = ("open", "replayed", "discarded")
_FIRST, _LAST = np.datetime64("0001-01-01", "us"), np.datetime64("9999-12-31", "us")
_NO_INTERVAL = "none"
# Keeps rejected bars, or counts them once more.
# A row that was replayed and comes again as broken is open again; a discarded one stays discarded.
_RECORD = text("""
    INSERT INTO market_data.quarantined_row AS known (market_id, interval, open_time, rule, detail,
        payload, payload_hash, run_id, first_seen_at, last_seen_at, times_seen)
    SELECT :market_id, interval, open_time, rule, max(detail), (array_agg(payload))[1],
        payload_hash, :run_id, :now, :now, count(*)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS came (interval text, open_time timestamptz,
        rule text, detail text, payload jsonb, payload_hash text)
    GROUP BY interval, open_time, rule, payload_hash
    ORDER BY interval, open_time, rule, payload_hash
    ON CONFLICT (market_id, interval, open_time, rule, payload_hash) DO UPDATE SET
        detail = excluded.detail, last_seen_at = excluded.last_seen_at,
        times_seen = known.times_seen + excluded.times_seen,
        status = CASE known.status WHEN 'replayed' THEN 'open' ELSE known.status END,
        resolved_at = CASE known.status WHEN 'replayed' THEN NULL ELSE known.resolved_at END
    RETURNING xmax = 0
""")


def record_rejected(
    connection: Connection, run_id: UUID, market_id: int, rejected: RejectedBars, now: datetime
) -> int:
    """Keep rejected bars; one that was kept before is only counted.

    One statement, whatever the number of rows. Any value can be kept: what is no number, no time or
    no text for the database is kept as text that says it. A row is told apart by interval,
    open_time, rule and payload. One that somebody discarded stays so; one that was replayed and
    comes again as broken is open again.

    Args:
        connection: In the transaction of the batch.
        run_id: The run that received them.
        market_id: Whose bars.
        rejected: The bars, each with its rule.
        now: When they came (UTC).

    Returns:
        How many were not kept before.
    """
    if not rejected:
        return 0
    rows = json.dumps(_describe_rows(rejected))
    values = {"run_id": run_id, "market_id": market_id, "now": now, "rows": rows}
    return sum(connection.execute(_RECORD, values).scalars())


def _describe_rows(rejected: RejectedBars) -> list[dict[str, Any]]:
    bars = rejected.bars.to_frame()
    times = _to_moments(bars["open_time"])
    in_reach = (times >= _FIRST) & (times <= _LAST)  # What a timestamptz and its readers can hold.
    opened = np.where(in_reach, np.datetime_as_string(times, unit="us", timezone="UTC"), None)
    reasons = zip(rejected.rules, rejected.details, strict=True)
    return [
        {
            "interval": payload["interval"] or _NO_INTERVAL,
            "open_time": open_time,
            "rule": rule,
            "detail": _write_text(detail),
            "payload": payload,
            "payload_hash": _hash(payload),
        }
        for payload, open_time, (rule, detail) in zip(
            build_payloads(bars), opened, reasons, strict=True
        )
    ]


def build_payloads(bars: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each bar as JSON can hold it, to be read again by :func:`parse_payloads`.

    Numbers stay numbers; NaN, infinities and NaT become the strings that name them.
    """
    columns = {
        name: _WRITERS.get(kind, _write_numbers)(bars[name]) for name, kind in BAR_DTYPES.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def parse_payloads(payloads: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the bar frame of payloads, in their order."""
    columns: dict[str, Any] = {name: [one[name] for one in payloads] for name in BAR_DTYPES}
    for name, kind in BAR_DTYPES.items():
        if kind == UTC_DTYPE:
            times = np.array(columns[name], dtype="datetime64[us]")
            columns[name] = pd.DatetimeIndex(times).tz_localize("UTC")
        elif kind == "float64":
            columns[name] = [float(number) for number in columns[name]]
    return build_bar_frame(columns)


def _to_moments(column: "pd.Series[Any]") -> Any:
    return pd.DatetimeIndex(column).tz_localize(None).to_numpy(dtype="datetime64[us]")


def _write_times(column: "pd.Series[Any]") -> list[Any]:
    return list(map(str, np.datetime_as_string(_to_moments(column), unit="us")))


def _write_numbers(column: "pd.Series[Any]") -> list[Any]:
    numbers = column.to_numpy(dtype="float64").tolist()
    return [number if np.isfinite(number) else str(number) for number in numbers]


def _write_flags(column: "pd.Series[Any]") -> list[Any]:
    return [bool(flag) for flag in column]


def _write_texts(column: "pd.Series[Any]") -> list[Any]:
    return [None if pd.isna(words) else _write_text(words) for words in column]


def _write_text(words: str) -> str:
    """Return text with the one character spelled out that PostgreSQL refuses."""
    return words.replace("\0", "\\x00")


_WRITERS = {"str": _write_texts, UTC_DTYPE: _write_times, "bool": _write_flags}


def _hash(payload: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def read_quarantine(
    connection: Connection,
    *,
    row_ids: Sequence[int] | None = None,
    market_ids: Sequence[int] | None = None,
    status: str | None = None,
    rule: str | None = None,
    calendar: str | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """Return quarantined rows, the last seen first.

    Args:
        connection: Any.
        row_ids: These alone; None: any.
        market_ids: Of these markets alone; None: of all.
        status: ``open``, ``replayed`` or ``discarded``; None: any.
        rule: That they broke; None: any.
        calendar: Of markets that follow it alone; None: of all.
        limit: The most rows; None: all.

    Returns:
        The table's columns, with ``symbol`` and ``provider`` after ``row_id``.
    """
    rows = quarantined_row.c
    query = _select(limit, (rows.status, status), (rows.rule, rule), (market.c.calendar, calendar))
    if row_ids is not None:
        query = query.where(rows.row_id.in_(list(row_ids)))
    if market_ids is not None:
        query = query.where(rows.market_id.in_(list(market_ids)))
    return read_frame(connection, query)


def list_quarantine(
    connection: Connection,
    limit: int,
    *,
    market_id: int | None = None,
    run_ids: Sequence[UUID] | None = None,
    status: str | None = None,
) -> list[Row]:
    """Return the same row by row: of a market, that runs received first, of a status."""
    rows = quarantined_row.c
    query = _select(limit, (rows.market_id, market_id), (rows.status, status))
    if run_ids is not None:
        query = query.where(rows.run_id.in_(list(run_ids)))
    return fetch(connection, query)


def _select(limit: int | None, *equal: tuple[Any, object]) -> "Select[Any]":
    rows = quarantined_row.c
    names = [column for column in rows if column.name not in {"row_id", "payload_hash"}]
    query = select(rows.row_id, market.c.symbol, market.c.provider, *names)
    query = query.join(market, market.c.market_id == rows.market_id)
    query = query.where(*(column == value for column, value in equal if value is not None))
    return query.order_by(rows.last_seen_at.desc(), rows.row_id.desc()).limit(limit)


def count_strays(connection: Connection, market_ids: Sequence[int]) -> dict[int, int]:
    """Return how many open rows of no session each market has; those without are absent."""
    rows = quarantined_row.c
    query = select(rows.market_id, func.count().label("strays"))
    query = query.where(rows.market_id.in_(list(market_ids)))
    query = query.where(rows.rule == NOT_A_SESSION, rows.status == "open").group_by(rows.market_id)
    return {row.market_id: row.strays for row in connection.execute(query)}


def count_open_rows(connection: Connection) -> list[Row]:
    """Return the open rows of each market and rule as one: how many, the last, since when."""
    rows = quarantined_row.c
    counts = (func.count().label("rows"), func.max(rows.row_id).label("row_id"))
    since = func.min(rows.first_seen_at).label("first_seen_at")
    query = select(rows.market_id, rows.rule, *counts, since).where(rows.status == "open")
    return fetch(connection, query.group_by(rows.market_id, rows.rule))


def read_strays(
    connection: Connection, market_id: int, interval: Interval, since: datetime
) -> "pd.Series[pd.Timestamp]":
    """Return the open_time of open rows of no session, from a moment on (UTC), each once."""
    rows = quarantined_row.c
    query = select(rows.open_time).distinct()
    query = query.where(rows.market_id == market_id, rows.interval == interval.value)
    query = query.where(rows.rule == NOT_A_SESSION, rows.status == "open", rows.open_time >= since)
    return pd.Series(list(connection.execute(query).scalars()), dtype=UTC_DTYPE)


def resolve_rows(
    connection: Connection, row_ids: Sequence[int], status: str, now: datetime
) -> list[int]:
    """Set the status of rows that are still open, and return which those were."""
    statement = (
        update(quarantined_row)
        .where(quarantined_row.c.row_id.in_(list(row_ids)), quarantined_row.c.status == "open")
        .values(status=status, resolved_at=now)
        .returning(quarantined_row.c.row_id)
    )
    return sorted(connection.execute(statement).scalars())


def reopen_rows(connection: Connection, row_ids: Sequence[int]) -> list[int]:
    """Take back that rows were discarded, and return which those were."""
    statement = (
        update(quarantined_row)
        .where(quarantined_row.c.row_id.in_(list(row_ids)), quarantined_row.c.status == "discarded")
        .values(status="open", resolved_at=None)
        .returning(quarantined_row.c.row_id)
    )
    return sorted(connection.execute(statement).scalars())
