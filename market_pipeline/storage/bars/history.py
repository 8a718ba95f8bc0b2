"""Final bars as they are, as they were known at a time, and as a dataset version holds them.

A bar's history is a chain: each value is in force from its ``known_at`` (and ``dataset_version``)
until the next one's. The last is in ``market_aggregate``, those before it are revisions. Every
query is bounded to ranges of the primary keys, and reads one snapshot in one statement.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import numpy as np
from psycopg2.extensions import AsIs
from sqlalchemy import Connection, func, select, text

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.storage.bulk.copy_out import (
    FLAG,
    IDENTITY,
    INTEGER,
    KNOWN_NUMBER,
    NUMBER,
    TIME,
    WORD,
    WORDS,
    Column,
    read_columns,
)
from market_pipeline.storage.ledgers import dataset_version
from market_pipeline.storage.tables import market_aggregate, market_aggregate_revision

Columns: TypeAlias = Mapping[str, Any]
"""Arrays of equal length by name."""
COLUMNS: Mapping[str, Column] = {
    "market_id": INTEGER,
    "open_time": TIME,
    "close_time": TIME,
    **dict.fromkeys(("open", "high", "low", "close"), KNOWN_NUMBER),
    "volume": NUMBER,
    "volume_kind": WORDS,
    "source_kind": WORD,
    "known_at": TIME,
    "dataset_version": INTEGER,
    "run_id": IDENTITY,
}
# One market has one kind of volume, and need not be named in every row.
_OF_ONE = {name: one for name, one in COLUMNS.items() if name != "market_id"} | {
    "volume_kind": WORD
}
_STORED_IN_SPAN = (
    'market_id :of_markets AND "interval" = :interval AND open_time >= :start AND open_time < :end'
)
_IN_SPAN = f"{_STORED_IN_SPAN} AND is_final"
# Whether a value of a bar was replaced before it.
_IS_REVISED = """EXISTS (SELECT FROM market_data.market_aggregate_revision earlier
    WHERE earlier.market_id = bar.market_id AND earlier."interval" = bar."interval"
    AND earlier.open_time = bar.open_time"""
# With how long after its close each market's bar is out.
_WITH_LAGS = """JOIN unnest(CAST(:lag_markets AS bigint[]), CAST(:lags AS interval[]))
    AS terms (market_id, lag) USING (market_id)"""
# Notes where the bars of a version lie.
_NOTE = text("""
    INSERT INTO market_data.dataset_version (version, interval, market_id, first_open_time,
        last_open_time, known_at, run_id)
    SELECT :dataset_version, interval, market_id, first_open, last_open, :known_at, :run_id
    FROM unnest(CAST(:markets AS bigint[]), CAST(:intervals AS text[]),
        CAST(:firsts AS timestamptz[]), CAST(:lasts AS timestamptz[]))
        AS span (market_id, interval, first_open, last_open)
""")
# Built once: every request asks it.
_NEWEST_VERSION = select(func.max(dataset_version.c.version))
_WAS_ASSUMED = replace(FLAG, send="known_at > :as_of")


@dataclass(frozen=True, slots=True)
class BarSpan:
    """Which bars are read: of these markets and interval, by open_time in the window.

    With a ``limit`` at least the first that many by open_time, whatever the market; all of them
    where the window cannot hold more, so that the server need not sort.
    """

    market_ids: tuple[int, ...]
    interval: Interval
    window: Window
    limit: int | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """What the queries call ``of_markets``, ``interval``, ``start`` and ``end``.

        One market is an equality: its rows come in the index's order, and nothing is sorted.
        """
        ids = [str(int(one)) for one in self.market_ids]
        among = f"= {ids[0]}" if len(ids) == 1 else f"= ANY ('{{{','.join(ids)}}}')"
        return {
            "of_markets": AsIs(among),
            "interval": self.interval.value,
            "start": self.window.start,
            "end": self.window.end,
        }

    @property
    def holds_at_most(self) -> int:
        """How many bars there can be."""
        bars = (self.window.end - self.window.start) // self.interval.duration + 1
        return len(self.market_ids) * max(bars, 0)


def read_bars(connection: Connection, span: BarSpan) -> Columns:
    """Return the final bars of now, in no order; the columns are ``COLUMNS``, text NaN if NULL."""
    return _read(connection, span, {}, build_query)


def read_bars_with_provisional(connection: Connection, span: BarSpan) -> Columns:
    """Return the bars of now, also those that may still change, with ``is_final``."""
    return _read(
        connection,
        span,
        {},
        lambda selected: f"SELECT {selected} FROM {market_aggregate} bar WHERE {_STORED_IN_SPAN}",
        {"is_final": FLAG},
    )


def build_query(
    selected: str, of_current: str = "", of_replaced: str | None = None, joined: str = ""
) -> str:
    """Return the query for final bars: the current ones, and with a condition the replaced ones."""
    parts = {market_aggregate: of_current, market_aggregate_revision: of_replaced}
    return " UNION ALL ".join(
        f"SELECT {selected} FROM {table} bar {joined} WHERE {_IN_SPAN} {condition}"
        for table, condition in parts.items()
        if condition is not None
    )


def read_bars_as_of(connection: Connection, span: BarSpan, as_of: datetime) -> Columns:
    """Return the final bars known at a time (UTC)."""
    return _read(connection, span, {"as_of": as_of}, build_query_as_of)


def build_query_as_of(selected: str) -> str:
    """Return the query of :func:`read_bars_as_of`."""
    return build_query(
        selected,
        "AND known_at <= :as_of",
        "AND known_at <= :as_of AND known_until > :as_of",
    )


def read_bars_at_version(connection: Connection, span: BarSpan, version: int) -> Columns:
    """Return the final bars as a dataset version holds them."""
    return _read(connection, span, {"version": version}, build_query_at_version)


def build_query_at_version(selected: str) -> str:
    """Return the query of :func:`read_bars_at_version`."""
    return build_query(
        selected,
        "AND dataset_version <= :version",
        "AND dataset_version <= :version AND replaced_by_version > :version",
    )


def read_bars_assumed(
    connection: Connection, span: BarSpan, as_of: datetime, lags: Mapping[int, timedelta]
) -> Columns:
    """Return the final bars known at a time, if each bar had been loaded when it was due.

    Args:
        connection: Any.
        span: Which bars.
        as_of: The time (UTC).
        lags: For each market, from a bar's close until its final values are out.

    Returns:
        As of :func:`read_bars`, with ``is_assumed``: true where a bar was not yet known then, but
        due, and so has its first-loaded values.
    """
    parameters = {"as_of": as_of, "lag_markets": list(lags), "lags": list(lags.values())}
    more = {"is_assumed": _WAS_ASSUMED}
    return _read(connection, span, parameters, build_query_assumed, more)


def build_query_assumed(selected: str) -> str:
    """Return the query of :func:`read_bars_assumed`."""
    is_known = "known_at <= :as_of"
    is_first = f"close_time + lag <= :as_of AND NOT {_IS_REVISED}"
    return build_query(
        selected,
        f"AND ({is_known} OR {is_first}))",
        f"AND known_until > :as_of AND ({is_known} OR {is_first} "
        "AND earlier.replaced_by_version < bar.replaced_by_version))",
        _WITH_LAGS,
    )


def _read(
    connection: Connection,
    span: BarSpan,
    parameters: Mapping[str, object],
    build: Callable[[str], str],
    more: Mapping[str, Column] | None = None,
) -> Columns:
    columns = {**(_OF_ONE if len(span.market_ids) == 1 else COLUMNS), **(more or {})}
    # By position: what is selected is an expression, and its columns may be of two tables.
    limited = _limit(build, span, list(columns).index("open_time") + 1)
    found = read_columns(connection, limited, columns, {**span.parameters, **parameters})
    if "market_id" not in found:
        found["market_id"] = np.full(len(found["open_time"]), span.market_ids[0])
    return found


def _limit(build: Callable[[str], str], span: BarSpan, place: int) -> Callable[[str], str]:
    """Return what builds the query with the span's limit, ordered by the column at a place."""
    if span.limit is None or span.holds_at_most <= span.limit:
        return build
    return lambda selected: f"{build(selected)} ORDER BY {place} LIMIT {int(span.limit or 0)}"


def read_first_known_at(connection: Connection, span: BarSpan) -> datetime | None:
    """Return when the first of the bars became known (UTC); None when there is none to this day."""
    query = build_query("min(known_at) AS known_at", "", "")
    first = text(f"SELECT min(known_at) FROM ({query}) AS first")
    found: datetime | None = connection.execute(first, span.parameters).scalar_one()
    return found


def read_newest_version(connection: Connection) -> int:
    """Return the newest dataset version, 0 when nothing was ever written."""
    return int(connection.execute(_NEWEST_VERSION).scalar() or 0)


def read_version_time(connection: Connection, version: int) -> datetime | None:
    """Return when a dataset version, or the last one before it, was written (UTC); None: none."""
    written = dataset_version.c
    query = select(written.known_at).where(written.version <= version)
    newest = query.order_by(written.version.desc()).limit(1)
    found: datetime | None = connection.execute(newest).scalar()
    return found


def note_version(
    connection: Connection,
    spans: Mapping[tuple[int, str], tuple[datetime, datetime]],
    stamps: Mapping[str, Any],
) -> None:
    """Note where the bars of a dataset version lie, by market and interval.

    Args:
        connection: In the transaction that writes them.
        spans: First and last open_time (UTC), by market_id and interval.
        stamps: ``dataset_version``, ``known_at`` and ``run_id`` of the bars.
    """
    values = {
        "markets": [market_id for market_id, _ in spans],
        "intervals": [interval for _, interval in spans],
        "firsts": [first for first, _ in spans.values()],
        "lasts": [last for _, last in spans.values()],
    }
    connection.execute(_NOTE, {**values, **stamps})
