"""Final bars for statistics: from the last bar of each market back, whatever the clock.

A halted or delisted market may have ended years ago, and two markets are compared up to their last
common bar. So each market has its own spans. They are planned from calendars and read together.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Connection, Row, text

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.returns import find_reach
from market_pipeline.storage.bars.stored import FINAL_COLUMNS
from market_pipeline.storage.bulk.copy_out import read_copied

CLOSES = ("market_id", "open_time", "close_time", "close", "dataset_version")
"""What statistics of one market are computed from."""
# The last final bar of each market that closes by its time.
_LAST = text("""
    SELECT wanted.market_id, last.open_time, last.close_time
    FROM unnest(CAST(:market_ids AS bigint[]), CAST(:closed_by AS timestamptz[]))
        AS wanted (market_id, closed_by)
    CROSS JOIN LATERAL (
        SELECT open_time, close_time FROM market_data.market_aggregate bar
        WHERE bar.market_id = wanted.market_id AND bar."interval" = :interval AND bar.is_final
            AND (wanted.closed_by IS NULL OR bar.close_time <= wanted.closed_by)
        ORDER BY open_time DESC LIMIT 1
    ) last
""")
# The last open_time at which both markets of a pair have a final bar.
# From the earlier of both ends back: mostly the first bar that is looked at has its partner.
_LAST_JOINED = text("""
    SELECT pair.base, pair.quote, joined.*
    FROM unnest(CAST(:bases AS bigint[]), CAST(:quotes AS bigint[]), CAST(:ends AS timestamptz[]))
        AS pair (base, quote, "end")
    CROSS JOIN LATERAL (
        SELECT open_time, one.close_time AS base_close, two.close_time AS quote_close
        FROM market_data.market_aggregate one
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
        AND dataset_version > :newer_than
"""
# The markets with final bars in spans that are newer than a version of each.
# The ledger of versions tells where to look: at the few days that a tick wrote, not at all.
_CHANGED = text("""
    SELECT span.market_id
    FROM unnest(CAST(:market_ids AS bigint[]), CAST(:firsts AS timestamptz[]),
            CAST(:lasts AS timestamptz[]), CAST(:versions AS bigint[]))
        AS span (market_id, first, last, version)
    WHERE EXISTS (
        SELECT FROM market_data.market_aggregate bar, (
            SELECT min(first_open_time) AS first, max(last_open_time) AS last
            FROM market_data.dataset_version newer
            WHERE newer.market_id = span.market_id AND newer."interval" = :interval
                AND newer.version > span.version
        ) written
        WHERE bar.market_id = span.market_id AND bar."interval" = :interval AND is_final
            AND open_time BETWEEN span.first AND span.last
            AND open_time BETWEEN written.first AND written.last
            AND bar.dataset_version > span.version
    )
""")


@dataclass(frozen=True, slots=True)
class FinalSpan:
    """Bars of a market that open from ``first`` to ``last`` (UTC), both included.

    ``closed`` is when the last one closes, where that is known.
    """

    market_id: int
    first: datetime
    last: datetime
    closed: datetime | None = None


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
    alone = {calendar: frozenset([calendar]) for calendar in set(calendars.values())}
    lasts = _read_lasts(connection, list(calendars), interval, closed_by or {})
    return [
        FinalSpan(one, find_reach(alone[calendars[one]], interval, last, days), last, closed)
        for one, (last, closed) in lasts.items()
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
    for row in _read_last_joined(connection, interval, pairs, closed_by):
        both = frozenset([calendars[row.base], calendars[row.quote]])
        first = find_reach(both, interval, row.open_time, days)
        for one, closed in ((row.base, row.base_close), (row.quote, row.quote_close)):
            spans[one].append(FinalSpan(one, first, row.open_time, closed))
    return [span for one in sorted(spans) for span in _merge(spans[one])]


def find_changed(
    connection: Connection, interval: Interval, spans: Mapping[FinalSpan, int]
) -> set[int]:
    """Return the markets with final bars in their spans that are newer than a dataset version."""
    values = {**_spell(interval, list(spans)), "versions": list(spans.values())}
    return set(connection.execute(_CHANGED, values).scalars())


def read_spans(
    connection: Connection,
    interval: Interval,
    spans: Sequence[FinalSpan],
    names: Sequence[str] = tuple(FINAL_COLUMNS),
    newer_than: int = -1,
) -> pd.DataFrame:
    """Return the final bars of spans that do not overlap, ordered by market and open_time.

    Args:
        connection: Any.
        interval: The length of the bars.
        spans: Whose, and from when to when.
        names: The columns wanted of ``market_id``, ``open_time``, ``close_time``, ``open`` to
            ``close``, ``volume``, ``dataset_version``; the first two among them.
        newer_than: Bars of later dataset versions only.
    """
    columns = {name: FINAL_COLUMNS[name] for name in names}
    ordered = sorted(spans, key=lambda span: (span.market_id, span.first))
    values = {**_spell(interval, ordered), "newer_than": newer_than}
    return _sort(read_copied(connection, lambda sent: f"SELECT {sent} {_SPANS}", columns, values))


def _sort(bars: pd.DataFrame) -> pd.DataFrame:
    """Return bars in order. Mostly they came so, and sorting in the server takes twice the time."""
    ids = bars["market_id"].to_numpy()
    opens = bars["open_time"].to_numpy(dtype="datetime64[us]").view("int64")
    follows = (ids[1:] == ids[:-1]) & (opens[1:] > opens[:-1])
    if (follows | (ids[1:] > ids[:-1])).all():
        return bars
    return bars.take(np.lexsort([opens, ids])).reset_index(drop=True)


def _read_lasts(
    connection: Connection,
    market_ids: Sequence[int],
    interval: Interval,
    closed_by: Mapping[int, datetime],
) -> dict[int, tuple[datetime, datetime]]:
    """Return open_time and close_time of each market's last final bar, where there is one."""
    values = {
        "market_ids": list(market_ids),
        "closed_by": [closed_by.get(one) for one in market_ids],
        "interval": interval.value,
    }
    found = connection.execute(_LAST, values)
    return {market_id: (opened, closed) for market_id, opened, closed in found}


def _read_last_joined(
    connection: Connection,
    interval: Interval,
    pairs: Iterable[tuple[int, int]],
    closed_by: datetime | None,
) -> Sequence[Row[Any]]:
    """Return the last open_time that both markets of a pair have, where there is one."""
    wanted = [(int(base), int(quote)) for base, quote in pairs]
    lasts = _read_lasts(connection, sorted({one for pair in wanted for one in pair}), interval, {})
    known = [(base, quote) for base, quote in wanted if base in lasts and quote in lasts]
    values = {
        "bases": [base for base, _ in known],
        "quotes": [quote for _, quote in known],
        "ends": [min(lasts[base][0], lasts[quote][0]) for base, quote in known],
        "interval": interval.value,
        "closed_by": closed_by,
    }
    return connection.execute(_LAST_JOINED, values).all()


def _merge(spans: Iterable[FinalSpan]) -> list[FinalSpan]:
    """Return the spans of one market with those that overlap joined."""
    merged: list[FinalSpan] = []
    for span in sorted(set(spans), key=lambda one: one.first):
        if merged and span.first <= merged[-1].last:
            before = merged.pop()
            longer = max(before, span, key=lambda one: one.last)
            merged.append(replace(longer, first=before.first))
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
