"""Final bars for statistics: from the last bar of each market back, whatever the clock.

A halted or delisted market may have ended years ago, and two markets are compared up to their last
common bar. So each market has its own spans. They are planned from calendars and read together.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd
from sqlalchemy import Connection, text

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.returns import find_reach
from market_pipeline.storage.bars.stored import FINAL_COLUMNS
from market_pipeline.storage.bulk.copy_out import INTEGER, TIME, read_copied

_NEWER_COLUMNS = {
    "market_id": INTEGER, "open_time": TIME, "close_time": TIME, "dataset_version": INTEGER,
}  # fmt: skip
# The last final bar of each market that closes by its time.
_LAST = text("""
    SELECT wanted.market_id, last.open_time
    FROM unnest(CAST(:market_ids AS bigint[]), CAST(:closed_by AS timestamptz[]))
        AS wanted (market_id, closed_by)
    CROSS JOIN LATERAL (
        SELECT open_time FROM market_data.market_aggregate bar
        WHERE bar.market_id = wanted.market_id AND bar."interval" = :interval AND bar.is_final
            AND (wanted.closed_by IS NULL OR bar.close_time <= wanted.closed_by)
        ORDER BY open_time DESC LIMIT 1
    ) last
""")
# The last open_time at which both markets of a pair have a final bar.
# From the earlier of both ends back: mostly the first bar that is looked at has its partner.
_LAST_JOINED = text("""
    SELECT pair.base, pair.quote, joined.open_time
    FROM unnest(CAST(:bases AS bigint[]), CAST(:quotes AS bigint[]), CAST(:ends AS timestamptz[]))
        AS pair (base, quote, "end")
    CROSS JOIN LATERAL (
        SELECT one.open_time FROM market_data.market_aggregate one
        JOIN market_data.market_aggregate two USING ("interval", open_time)
        WHERE one.market_id = pair.base AND two.market_id = pair.quote
            AND "interval" = :interval AND one.is_final AND two.is_final
            AND open_time <= pair."end"
            AND (CAST(:closed_by AS timestamptz) IS NULL
                OR greatest(one.close_time, two.close_time) <= CAST(:closed_by AS timestamptz))
        ORDER BY open_time DESC LIMIT 1
    ) joined
""")
# The final bars of spans, each of one market.
_SPANS = """
    FROM unnest(CAST(:market_ids AS bigint[]), CAST(:firsts AS timestamptz[]),
            CAST(:lasts AS timestamptz[])) AS span (market_id, first, last)
    JOIN market_data.market_aggregate bar USING (market_id)
    WHERE "interval" = :interval AND is_final AND open_time BETWEEN first AND last
"""
# What tells whether the bars of spans changed, by market.
_SUMMARY = text(f"""
    SELECT market_id, count(*) AS bars, max(dataset_version) AS version, max(close_time) AS closed
    {_SPANS} GROUP BY market_id
""")


@dataclass(frozen=True, slots=True)
class FinalSpan:
    """Bars of a market that open from ``first`` to ``last`` (UTC), both included."""

    market_id: int
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Summary:
    """What tells whether bars changed: how many, their newest dataset version, the last close."""

    bars: int
    version: int
    closed: datetime


def plan_market_spans(
    connection: Connection,
    calendars: Mapping[int, str],
    interval: Interval,
    days: int,
    closed_by: Mapping[int, datetime] | None = None,
) -> list[FinalSpan]:
    """Return what a horizon may look at of each market; a market without final bars has no span.

    Args:
        connection: Any.
        calendars: Of every market wanted.
        interval: The length of the bars.
        days: The longest horizon.
        closed_by: Bars that close later do not count, by market (UTC).
    """
    lasts = _read_last_opens(connection, list(calendars), interval, closed_by or {})
    return [
        FinalSpan(one, find_reach(frozenset([calendars[one]]), interval, last, days), last)
        for one, last in lasts.items()
    ]


def plan_pair_spans(
    connection: Connection,
    calendars: Mapping[int, str],
    interval: Interval,
    days: int,
    pairs: Iterable[tuple[int, int]],
    closed_by: datetime | None = None,
) -> list[FinalSpan]:
    """Return what a horizon may look at of each market that was compared; spans do not overlap.

    A pair's window ends on the last date on which both have a final bar.

    Args:
        connection: Any.
        calendars: Of every market in the pairs.
        interval: The length of the bars.
        days: The longest horizon.
        pairs: Base and quote.
        closed_by: Bars that close later do not count (UTC).
    """
    spans: dict[int, list[FinalSpan]] = defaultdict(list)
    for (base, quote), last in _read_last_joined(connection, interval, pairs, closed_by).items():
        both = frozenset([calendars[base], calendars[quote]])
        first = find_reach(both, interval, last, days)
        for one in (base, quote):
            spans[one].append(FinalSpan(one, first, last))
    return [span for one in sorted(spans) for span in _merge(spans[one])]


def summarise_spans(
    connection: Connection, interval: Interval, spans: Sequence[FinalSpan]
) -> dict[int, Summary]:
    """Return what tells whether the final bars of spans changed, by market."""
    found = connection.execute(_SUMMARY, _spell(interval, spans))
    return {row.market_id: Summary(row.bars, row.version, row.closed) for row in found}


def read_spans(
    connection: Connection, interval: Interval, spans: Sequence[FinalSpan]
) -> pd.DataFrame:
    """Return the final bars of spans that do not overlap.

    Returns:
        Columns ``market_id``, ``open_time``, ``close_time``, ``open`` to ``close``, ``volume``,
        ``dataset_version``, ordered by market and open_time.
    """
    return read_copied(connection, _build_spans_query, FINAL_COLUMNS, _spell(interval, spans))


def read_newer_bars(
    connection: Connection, interval: Interval, spans: Sequence[FinalSpan], version: int
) -> pd.DataFrame:
    """Return the final bars of spans that are newer than a dataset version.

    Returns:
        Columns ``market_id``, ``open_time``, ``close_time``, ``dataset_version``, ordered by market
        and open_time.
    """
    values = {**_spell(interval, spans), "version": version}
    return read_copied(connection, _build_newer_query, _NEWER_COLUMNS, values)


def _build_spans_query(selected: str) -> str:
    return f"SELECT {selected} {_SPANS} ORDER BY bar.market_id, bar.open_time"


def _build_newer_query(selected: str) -> str:
    newer = f"{_SPANS} AND dataset_version > :version"
    return f"SELECT {selected} {newer} ORDER BY bar.market_id, bar.open_time"


def _read_last_opens(
    connection: Connection,
    market_ids: Sequence[int],
    interval: Interval,
    closed_by: Mapping[int, datetime],
) -> dict[int, datetime]:
    values = {
        "market_ids": list(market_ids),
        "closed_by": [closed_by.get(one) for one in market_ids],
        "interval": interval.value,
    }
    found = connection.execute(_LAST, values)
    return {row.market_id: row.open_time for row in found}


def _read_last_joined(
    connection: Connection,
    interval: Interval,
    pairs: Iterable[tuple[int, int]],
    closed_by: datetime | None,
) -> dict[tuple[int, int], datetime]:
    """Return the last open_time that both markets of a pair have, where there is one."""
    wanted = [(int(base), int(quote)) for base, quote in pairs]
    lasts = _read_last_opens(
        connection, sorted({one for pair in wanted for one in pair}), interval, {}
    )
    known = [(base, quote) for base, quote in wanted if base in lasts and quote in lasts]
    values = {
        "bases": [base for base, _ in known],
        "quotes": [quote for _, quote in known],
        "ends": [min(lasts[base], lasts[quote]) for base, quote in known],
        "interval": interval.value,
        "closed_by": closed_by,
    }
    found = connection.execute(_LAST_JOINED, values)
    return {(row.base, row.quote): row.open_time for row in found}


def _merge(spans: Iterable[FinalSpan]) -> list[FinalSpan]:
    """Return the spans of one market with those that overlap joined."""
    merged: list[FinalSpan] = []
    for span in sorted(set(spans), key=lambda one: one.first):
        if merged and span.first <= merged[-1].last:
            last = merged.pop()
            merged.append(FinalSpan(span.market_id, last.first, max(last.last, span.last)))
        else:
            merged.append(span)
    return merged


def _spell(interval: Interval, spans: Sequence[FinalSpan]) -> dict[str, Any]:
    return {
        "market_ids": [span.market_id for span in spans],
        "firsts": [span.first for span in spans],
        "lasts": [span.last for span in spans],
        "interval": interval.value,
    }
