"""Listings of the coverage ledger, for people."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from market_pipeline.storage.tables import SCHEMA
from market_pipeline.storage.watchdog import allow

_COVERAGE = text(f"""
    SELECT symbol, provider, interval, first_bar_at, last_bar_at, watermark AS final_to, bars,
        (SELECT count(*) FROM {SCHEMA}.coverage_hole hole
            WHERE hole.market_id = known.market_id AND hole.interval = known.interval) AS holes,
        refreshed_at
    FROM {SCHEMA}.market_coverage known JOIN {SCHEMA}.market USING (market_id)
    WHERE CAST(:market_ids AS bigint[]) IS NULL OR market_id = ANY(:market_ids)
    ORDER BY symbol, provider, interval
""")  # noqa: S608 - a constant
_HOLES = text(f"""
    SELECT symbol, provider, interval, starts_at, ends_at, reason, tries, next_check_at, detail
    FROM {SCHEMA}.coverage_hole JOIN {SCHEMA}.market USING (market_id)
    WHERE CAST(:market_ids AS bigint[]) IS NULL OR market_id = ANY(:market_ids)
    ORDER BY symbol, provider, interval, starts_at
""")  # noqa: S608 - a constant
_VERIFY = text(f"""
    SELECT symbol, provider, interval,
        known.bars AS bars_in_ledger, count(open_time) AS bars_stored,
        known.first_bar_at AS first_in_ledger, min(open_time) AS first_stored,
        known.last_bar_at AS last_in_ledger, max(open_time) AS last_stored
    FROM {SCHEMA}.market_coverage known
    JOIN {SCHEMA}.market USING (market_id)
    LEFT JOIN {SCHEMA}.market_aggregate bar USING (market_id, interval)
    WHERE CAST(:market_ids AS bigint[]) IS NULL OR market_id = ANY(:market_ids)
    GROUP BY symbol, provider, interval, known.bars, known.first_bar_at, known.last_bar_at
    HAVING known.bars <> count(open_time) OR known.first_bar_at IS DISTINCT FROM min(open_time)
        OR known.last_bar_at IS DISTINCT FROM max(open_time)
    ORDER BY symbol, provider, interval
""")  # noqa: S608 - a constant


def list_coverage(connection: Connection, market_ids: Sequence[int] | None) -> list[dict[str, Any]]:
    """Return one row for each market and interval; None: of all markets."""
    return _list(connection, _COVERAGE, market_ids)


def list_holes(connection: Connection, market_ids: Sequence[int] | None) -> list[dict[str, Any]]:
    """Return every hole with its reason, and when it is asked for again."""
    return _list(connection, _HOLES, market_ids)


@allow("bulk")
def verify_bars(connection: Connection, market_ids: Sequence[int] | None) -> list[dict[str, Any]]:
    """Return where the ledger and the stored bars disagree; scans the bars."""
    return _list(connection, _VERIFY, market_ids)


def _list(
    connection: Connection, query: Any, market_ids: Sequence[int] | None
) -> list[dict[str, Any]]:
    wanted = {"market_ids": None if market_ids is None else list(market_ids)}
    return [dict(row) for row in connection.execute(query, wanted).mappings()]
