"""Listings of many markets for pages, in a bounded number of statements.

Not here: a market by its name (``lookup``).
"""

import pandas as pd
from sqlalchemy import Connection, text

from market_pipeline.storage.rows import Row, fetch, read_frame
from market_pipeline.storage.statistics.series import NEWEST, find_method_in_use

_RECENT_RUNS = 50

# Each active market with its newest price, close, holes and receipt.
_OVERVIEW = text(f"""
    WITH recent AS (
        (SELECT run_id, started_at FROM market_data.ingestion_run
            ORDER BY started_at DESC LIMIT {_RECENT_RUNS})
        -- A market may have been asked for long before: by the run that was answered last.
        UNION SELECT run_id, started_at FROM market_data.ingestion_run
            WHERE run_id IN (SELECT refreshed_by FROM market_data.market_coverage)
    ), receipt AS (
        SELECT DISTINCT ON (market_id) market_id, run_id, started_at, outcome, reason
        FROM recent JOIN market_data.ingestion_run_market USING (run_id)
        ORDER BY market_id, started_at DESC
    ), hole AS (
        SELECT market_id, count(*) AS holes FROM market_data.coverage_hole GROUP BY market_id
    )
    SELECT m.market_id, m.provider, m.symbol, m.name, m.quote, m.calendar, m.is_primary,
        s.price, s.observed_at, s.change_24h_ratio, s.volume_24h, s.realised_volatility,
        roi.sharpe, d.close, d.close_time,
        coalesce(holes, 0) AS holes,
        receipt.run_id, receipt.started_at AS run_started_at, receipt.outcome, receipt.reason
    FROM market_data.market m
    LEFT JOIN LATERAL (
        SELECT price, observed_at, change_24h_ratio, volume_24h, realised_volatility
        FROM market_data.market_snapshot
        WHERE market_id = m.market_id ORDER BY observed_at DESC LIMIT 1
    ) s ON true
    LEFT JOIN LATERAL (
        SELECT sharpe FROM market_data.market_roi_statistic
        WHERE market_id = m.market_id AND "interval" = '1d' AND horizon = '30d'
        ORDER BY {NEWEST} LIMIT 1
    ) roi ON true
    LEFT JOIN LATERAL (
        SELECT close, close_time FROM market_data.market_aggregate
        WHERE market_id = m.market_id AND "interval" = '1d' AND is_final
        ORDER BY open_time DESC LIMIT 1
    ) d ON true
    LEFT JOIN hole USING (market_id)
    LEFT JOIN receipt USING (market_id)
    WHERE m.is_active ORDER BY m.symbol, m.provider
""")
# Each market with what the coverage ledger counts of it.
_LIST = text("""
    SELECT symbol, provider, is_active AS active, is_primary AS primary, calendar,
        coalesce(sum(bars), 0)::bigint AS bars, max(watermark) AS final_to,
        min(first_bar_at) AS first_bar_at, preferred_at, provider_market_id AS id
    FROM market_data.market LEFT JOIN market_data.market_coverage USING (market_id)
    GROUP BY market_id ORDER BY symbol, provider, listed_from
""")
# Each market as people know it, without its key.
_NAMES = text("""
    SELECT symbol, provider, name, base, quote, venue, calendar, price_basis, is_active, is_primary
    FROM market_data.market ORDER BY symbol, provider
""")


def read_overview(connection: Connection) -> list[Row]:
    """Return each active market: newest price, close, 30d statistics, holes and receipt."""
    return fetch(connection, _OVERVIEW, method=find_method_in_use())


def list_markets(connection: Connection) -> list[Row]:
    """Return one row for each market; ``bars`` and times are the coverage ledger's (UTC)."""
    return fetch(connection, _LIST)


def read_market_list(connection: Connection) -> pd.DataFrame:
    """Return every market as people know it, by symbol and provider; without its key."""
    return read_frame(connection, _NAMES)
