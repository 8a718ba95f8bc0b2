"""The stored bars, provisional ones too: of a market, of a span, the newest.

Not here: what bars were before (``history``, ``revisions``).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pandas as pd
from sqlalchemy import Connection, exists, func, select, text, tuple_

from market_pipeline.domain.arrays import IntArray
from market_pipeline.domain.columns import BarColumns
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.ranges import merge_windows
from market_pipeline.domain.records import BAR_COLUMNS, Window
from market_pipeline.storage.bulk.copy_out import (
    FLAG,
    INTEGER,
    MICROS,
    NUMBER,
    OBJECT,
    TIME,
    WORD,
    Column,
    read_columns,
    read_copied,
)
from market_pipeline.storage.rows import Row, fetch, read_frame
from market_pipeline.storage.tables import market_aggregate

_PRICES = ("open", "high", "low", "close", "volume")
_SENT: Mapping[str, Column] = {
    "interval": WORD,
    **dict.fromkeys(("open_time", "close_time"), TIME),
    **dict.fromkeys(_PRICES, NUMBER),
    **dict.fromkeys(("volume_kind", "source_kind"), WORD),
    "trades": replace(NUMBER, send="coalesce(trades::double precision, 'NaN')"),
    "is_final": FLAG,
    **dict.fromkeys(("market_id", "dataset_version"), INTEGER),
}
_ARRAYS = {WORD: OBJECT, TIME: MICROS}
_SPAN_COLUMNS = {
    name: _ARRAYS.get(_SENT[name], _SENT[name]) for name in (*BAR_COLUMNS, "market_id")
}
_BAR_COLUMNS = {name: _SENT[name] for name in BAR_COLUMNS}
_FINAL_NAMES = ("market_id", "open_time", "close_time", *_PRICES, "dataset_version")
FINAL_COLUMNS = {name: _SENT[name] for name in _FINAL_NAMES}

# The newest bars of a market and interval, provisional ones too.
_NEWEST = text("""
    SELECT open_time, close_time, open, high, low, close, volume, volume_kind, source_kind,
        is_final, known_at, dataset_version
    FROM market_data.market_aggregate WHERE market_id = :market_id AND "interval" = :interval
        AND open_time > (SELECT max(open_time) FROM market_data.market_aggregate
            WHERE market_id = :market_id AND "interval" = :interval) - CAST(:span AS interval)
    ORDER BY open_time DESC LIMIT :count
""")
# The last final daily closes of each of some markets, the oldest first.
_SPARKS = text("""
    SELECT wanted.market_id, array_agg(bar.close ORDER BY bar.open_time) AS closes,
        array_agg(bar.open_time ORDER BY bar.open_time) AS opens
    FROM unnest(CAST(:market_ids AS bigint[])) AS wanted (market_id)
    CROSS JOIN LATERAL (
        SELECT open_time, close FROM market_data.market_aggregate
        WHERE market_id = wanted.market_id AND "interval" = '1d' AND is_final
        ORDER BY open_time DESC LIMIT :count
    ) bar GROUP BY wanted.market_id
""")
# The final daily closes of two markets on the dates that both have.
_RATIO = text("""
    SELECT open_time, base.close AS base_close, quote.close AS quote_close
    FROM market_data.market_aggregate base JOIN market_data.market_aggregate quote
        USING ("interval", open_time)
    WHERE base.market_id = :base AND quote.market_id = :quote AND "interval" = '1d'
        AND base.is_final AND quote.is_final AND open_time >= :start
    ORDER BY open_time
""")


def has_bars(connection: Connection, market_id: int) -> bool:
    """Tell whether any bar of a market is stored."""
    query = select(exists().where(market_aggregate.c.market_id == market_id))
    return bool(connection.execute(query).scalar_one())


def count_provisional_bars(
    connection: Connection, market_id: int, interval: str, first: datetime
) -> int:
    """Count the bars that open at or after a time (UTC) and are not final."""
    bars = market_aggregate.c
    query = (
        select(func.count())
        .where(bars.market_id == market_id, bars.interval == interval)
        .where(bars.open_time >= first, ~bars.is_final)
    )
    return int(connection.execute(query).scalar_one())


def read_bars(
    connection: Connection, market_id: int, interval: Interval, start: datetime, end: datetime
) -> pd.DataFrame:
    """Return one market's stored bars with open_time in ``[start, end)`` as a bar frame."""
    values = {"market_id": market_id, "interval": interval.value, "start": start, "end": end}
    return read_copied(connection, _build_bar_query, _BAR_COLUMNS, values)


@dataclass(frozen=True, slots=True)
class SeriesSpan:
    """Bars of one market and interval that open in a window."""

    market_id: int
    interval: Interval
    window: Window


def read_spans(connection: Connection, spans: Sequence[SeriesSpan]) -> tuple[BarColumns, IntArray]:
    """Return the stored bars of spans, each once, in no order, and the market_id of each."""
    windows: dict[tuple[int, str], list[Window]] = defaultdict(list)
    for span in spans:
        windows[span.market_id, span.interval.value].append(span.window)
    parts = [(*key, part) for key, found in windows.items() for part in merge_windows(found)]
    values = {
        "market_ids": [market_id for market_id, _, _ in parts],
        "intervals": [interval for _, interval, _ in parts],
        "starts": [part.start for _, _, part in parts],
        "ends": [part.end for _, _, part in parts],
    }
    found = read_columns(connection, _build_span_query, _SPAN_COLUMNS, values)
    owners = found.pop("market_id")
    return BarColumns(**found), owners


def _build_span_query(selected: str) -> str:
    # The bars of many spans, each by its range of the key.
    return f"""SELECT {selected}
        FROM unnest(CAST(:market_ids AS bigint[]), CAST(:intervals AS text[]),
            CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[]))
            AS span (wanted, length, starts_at, ends_at)
        CROSS JOIN LATERAL (SELECT * FROM market_data.market_aggregate stored
            WHERE stored.market_id = wanted AND stored."interval" = length
                AND stored.open_time >= starts_at AND stored.open_time < ends_at) bar"""


def read_versioned_bars(
    connection: Connection, market_id: int, interval: Interval, start: datetime, end: datetime
) -> pd.DataFrame:
    """Return what :func:`read_bars` does, and the column ``dataset_version``."""
    values = {"market_id": market_id, "interval": interval.value, "start": start, "end": end}
    columns = {**_BAR_COLUMNS, "dataset_version": _SENT["dataset_version"]}
    return read_copied(connection, _build_bar_query, columns, values)


def _build_bar_query(selected: str) -> str:
    # The bars of a market and interval that open in a span, in order.
    return f"""SELECT {selected} FROM market_data.market_aggregate
        WHERE market_id = :market_id AND "interval" = :interval
            AND open_time >= :start AND open_time < :end
        ORDER BY market_aggregate.open_time"""


def read_bars_of_keys(
    connection: Connection, market_id: int, keys: Sequence[tuple[str, datetime]]
) -> pd.DataFrame:
    """Return the stored bars of a market that have one of the keys: interval and open_time."""
    bars = market_aggregate.c
    query = select(*(bars[name] for name in BAR_COLUMNS)).where(
        bars.market_id == market_id, tuple_(bars.interval, bars.open_time).in_(keys)
    )
    return read_frame(connection, query)


def read_newest_bars(
    connection: Connection, market_id: int, interval: str, span: timedelta, count: int
) -> list[Row]:
    """Return the bars of a market that open within a span before its newest, the oldest first.

    Provisional ones too, and at most ``count``: the newest of them.
    """
    values = {"market_id": market_id, "interval": interval, "span": span, "count": count}
    return fetch(connection, _NEWEST, **values)[::-1]


def read_sparks(connection: Connection, market_ids: Sequence[int], count: int) -> list[Row]:
    """Return the last final daily closes of markets and their ``opens``, the oldest first."""
    return fetch(connection, _SPARKS, market_ids=list(market_ids), count=count)


def read_ratio(connection: Connection, base: int, quote: int, start: datetime) -> list[Row]:
    """Return final daily closes of two markets on the dates that both have, in order."""
    return fetch(connection, _RATIO, base=base, quote=quote, start=start)
