"""Holes: missing spans of a market and interval, explained or not, and those that stay.

Not here: when a hole opens and closes (``ledger``).
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from market_pipeline.domain.coverage import (
    AFTER_LAST,
    ASKED_OFTEN,
    BEFORE_FIRST,
    NO_TRADES,
    PROVIDER_EMPTY,
)
from market_pipeline.storage.rows import Row, fetch

_LISTED = (
    "symbol", "provider", "interval", "starts_at", "ends_at", "reason", "tries", "next_check_at",
    "detail",
)  # fmt: skip
# As Hole.is_explained says.
EXPLAINED = (
    f"(reason IN ('{NO_TRADES}', '{BEFORE_FIRST}', '{AFTER_LAST}') "
    f"OR reason = '{PROVIDER_EMPTY}' AND tries >= {ASKED_OFTEN})"
)
_COLUMNS = "symbol, provider, hole.*"
_FROM = "FROM market_data.coverage_hole hole JOIN market_data.market USING (market_id)"
# Holes with the names of their markets.
_NAMED = f"SELECT {_COLUMNS} {_FROM}"
# The holes of some markets, or of all.
_OF_MARKETS = text(f"""{_NAMED}
    WHERE CAST(:market_ids AS bigint[]) IS NULL OR market_id = ANY(:market_ids)
    ORDER BY symbol, provider, interval, starts_at
""")
# A hole by its key.
_ONE = text(f"""{_NAMED}
    WHERE market_id = :market_id AND interval = :interval AND starts_at = :starts_at
""")
# The holes of all markets that were asked for last.
_CHECKED_LAST = text(f"{_NAMED} ORDER BY last_checked_at DESC, symbol, starts_at LIMIT :count")
# The last holes of some markets that nothing explains.
_UNEXPLAINED = text(f"""
    SELECT {_COLUMNS}, count(*) OVER () AS found {_FROM}
    WHERE market_id = ANY(:market_ids) AND NOT {EXPLAINED}
    ORDER BY starts_at DESC, market_id, interval LIMIT :count
""")
# What holes_left of a receipt counts, as it stands now.
_OF_RUN = text(f"""{_NAMED}
    WHERE NOT {EXPLAINED} AND market_id IN (
            SELECT market_id FROM market_data.ingestion_run_market WHERE run_id = ANY(:run_ids))
        AND EXISTS (SELECT FROM market_data.ingestion_run run WHERE run.run_id = ANY(:run_ids)
            AND hole.starts_at < (request ->> 'window_end')::timestamptz
            AND hole.ends_at > (request ->> 'window_start')::timestamptz)
    ORDER BY symbol, provider, hole.starts_at LIMIT :count
""")
# The unexplained holes of each market and interval, summed up.
_SUMS = text(f"""
    SELECT market_id, interval, count(*) AS holes, min(starts_at) AS starts_at,
        max(ends_at) AS ends_at, sum(ends_at - starts_at) AS length, max(tries) AS tries,
        min(first_seen_at) AS first_seen_at, (array_agg(reason ORDER BY starts_at))[1] AS reason
    FROM market_data.coverage_hole WHERE NOT {EXPLAINED}
    GROUP BY market_id, interval ORDER BY market_id, interval
""")
# How many holes of each active market do not heal: asked for often, or first seen long ago.
_LASTING = text(f"""
    SELECT provider || ':' || symbol AS name, count(*) AS holes, min(reason) AS reason
    FROM market_data.coverage_hole JOIN market_data.market USING (market_id)
    WHERE is_active AND NOT {EXPLAINED} AND (tries >= {ASKED_OFTEN} OR first_seen_at < :before)
    GROUP BY 1 ORDER BY 1
""")


def list_holes(connection: Connection, market_ids: Sequence[int] | None) -> list[Row]:
    """Return every hole with its reason, and when it is asked for again; None: of all markets."""
    wanted = None if market_ids is None else list(market_ids)
    rows = fetch(connection, _OF_MARKETS, market_ids=wanted)
    return [{name: row[name] for name in _LISTED} for row in rows]


def read_holes(connection: Connection, count: int) -> list[Row]:
    """Return the holes of all markets and times, explained ones too, those checked last first."""
    return fetch(connection, _CHECKED_LAST, count=count)


def read_unexplained_holes(
    connection: Connection, market_ids: Sequence[int], count: int
) -> list[Row]:
    """Return the last unexplained holes of markets, ``found`` being how many there are."""
    return fetch(connection, _UNEXPLAINED, market_ids=list(market_ids), count=count)


def read_run_holes(connection: Connection, run_ids: Sequence[UUID], count: int) -> list[Row]:
    """Return the unexplained holes that the markets of runs have now in the runs' window."""
    return fetch(connection, _OF_RUN, run_ids=list(run_ids), count=count)


def sum_open_holes(connection: Connection) -> list[Row]:
    """Return the unexplained holes of each market and interval as one row.

    ``holes`` of them from ``starts_at`` to ``ends_at`` (UTC), together of a ``length``, first seen
    at ``first_seen_at``, with the ``reason`` of the first.
    """
    return fetch(connection, _SUMS)


def read_hole(
    connection: Connection, market_id: int, interval: str, starts_at: datetime
) -> Row | None:
    """Return a hole with its market's names; None: it is filled, or there never was one."""
    key = {"market_id": market_id, "interval": interval, "starts_at": starts_at}
    return next(iter(fetch(connection, _ONE, **key)), None)


def read_lasting_holes(connection: Connection, before: datetime) -> list[Row]:
    """Return ``name``, ``holes`` and a ``reason`` of active markets with holes that stay.

    Args:
        connection: Any.
        before: Holes first seen before then, or asked for often, are told (UTC).
    """
    return fetch(connection, _LASTING, before=before)
