"""What the dashboard's pages of markets read: a bounded number of statements, however many markets.

Rows come as mappings; times are UTC. Not here: what runs did (``page_run_queries``), what a page
makes of the rows (``api.pages``).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from market_pipeline.storage.statistics.newest import NEWEST, find_method_in_use

Row = Mapping[str, Any]
_RECENT_RUNS = 50

_OVERVIEW = f"""
    WITH recent AS (
        SELECT run_id, started_at FROM market_data.ingestion_run
        ORDER BY started_at DESC LIMIT {_RECENT_RUNS}
    ), receipt AS (
        SELECT DISTINCT ON (market_id) market_id, run_id, started_at, outcome, reason
        FROM recent JOIN market_data.ingestion_run_market USING (run_id)
        ORDER BY market_id, started_at DESC
    ), hole AS (
        SELECT market_id, count(*) AS holes FROM market_data.coverage_hole GROUP BY market_id
    )
    SELECT m.market_id, m.provider, m.symbol, m.name, m.quote, m.calendar, m.is_primary,
        s.price, s.observed_at, s.change_24h_ratio, d.close, d.close_time,
        coalesce(holes, 0) AS holes,
        receipt.run_id, receipt.started_at AS run_started_at, receipt.outcome, receipt.reason
    FROM market_data.market m
    LEFT JOIN LATERAL (
        SELECT price, observed_at, change_24h_ratio FROM market_data.market_snapshot
        WHERE market_id = m.market_id ORDER BY observed_at DESC LIMIT 1
    ) s ON true
    LEFT JOIN LATERAL (
        SELECT close, close_time FROM market_data.market_aggregate
        WHERE market_id = m.market_id AND "interval" = '1d' AND is_final
        ORDER BY open_time DESC LIMIT 1
    ) d ON true
    LEFT JOIN hole USING (market_id)
    LEFT JOIN receipt USING (market_id)
    WHERE m.is_active ORDER BY m.symbol, m.provider
"""
_SPARKS = """
    SELECT wanted.market_id, array_agg(bar.close ORDER BY bar.open_time) AS closes,
        array_agg(bar.open_time ORDER BY bar.open_time) AS opens
    FROM unnest(%(market_ids)s::bigint[]) AS wanted (market_id)
    CROSS JOIN LATERAL (
        SELECT open_time, close FROM market_data.market_aggregate
        WHERE market_id = wanted.market_id AND "interval" = '1d' AND is_final
        ORDER BY open_time DESC LIMIT %(count)s
    ) bar GROUP BY wanted.market_id
"""
_MARKET = """
    SELECT * FROM market_data.market
    WHERE symbol = %(symbol)s AND (provider = %(provider)s OR %(provider)s IS NULL AND is_primary)
    ORDER BY is_active DESC, listed_from DESC LIMIT 1
"""
_BARS = """
    SELECT open_time, close_time, open, high, low, close, volume, volume_kind, source_kind,
        is_final, known_at, dataset_version
    FROM market_data.market_aggregate WHERE market_id = %(market_id)s AND "interval" = %(interval)s
    ORDER BY open_time DESC LIMIT %(count)s
"""
_SNAPSHOT = """
    SELECT * FROM market_data.market_snapshot WHERE market_id = %(market_id)s
    ORDER BY observed_at DESC LIMIT 1
"""
_STATISTICS = f"""
    SELECT DISTINCT ON (horizon) * FROM market_data.market_roi_statistic
    WHERE market_id = %(market_id)s AND "interval" = '1d'
    ORDER BY horizon, {NEWEST}
"""
_REVISIONS = """
    SELECT old."interval", old.open_time, old.close AS old_close, old.volume AS old_volume,
        coalesce(now.close, later.close) AS close, coalesce(now.volume, later.volume) AS volume,
        old.known_at, old.known_until, old.replaced_by_version, old.replaced_by_run
    FROM market_data.market_aggregate_revision old
    LEFT JOIN market_data.market_aggregate now ON now.market_id = old.market_id
        AND now."interval" = old."interval" AND now.open_time = old.open_time
        AND now.dataset_version = old.replaced_by_version
    LEFT JOIN market_data.market_aggregate_revision later ON later.market_id = old.market_id
        AND later."interval" = old."interval" AND later.open_time = old.open_time
        AND later.dataset_version = old.replaced_by_version
    WHERE old.market_id = %(market_id)s
    ORDER BY old.replaced_by_version DESC, old."interval", old.open_time LIMIT %(count)s
"""
_COMPARED = """
    SELECT m.market_id, m.provider, m.symbol, m.calendar, m.quote, m.is_primary
    FROM market_data.market m
    WHERE m.is_active ORDER BY m.symbol, m.provider
"""
_HORIZONS = "SELECT DISTINCT horizon FROM market_data.market_comparison"
_RATIO = """
    SELECT open_time, base.close AS base_close, quote.close AS quote_close
    FROM market_data.market_aggregate base JOIN market_data.market_aggregate quote
        USING ("interval", open_time)
    WHERE base.market_id = %(base)s AND quote.market_id = %(quote)s AND "interval" = '1d'
        AND base.is_final AND quote.is_final AND open_time >= %(start)s
    ORDER BY open_time
"""
_QUARANTINED = """
    SELECT row_id, "interval", open_time, rule, detail, times_seen, first_seen_at, last_seen_at,
        status FROM market_data.quarantined_row WHERE market_id = %(market_id)s
    ORDER BY last_seen_at DESC, row_id DESC LIMIT %(count)s
"""


def read_overview(connection: Connection) -> list[Row]:
    """Return each active market with its newest price, close, holes and receipt."""
    return fetch(connection, _OVERVIEW)


def read_sparks(connection: Connection, market_ids: Sequence[int], count: int) -> list[Row]:
    """Return the last final daily closes of markets and their ``opens``, the oldest first."""
    return fetch(connection, _SPARKS, market_ids=list(market_ids), count=count)


def read_market(connection: Connection, name: str) -> Row | None:
    """Return the market called ``provider:symbol``, or the primary one of a bare symbol."""
    provider, _, symbol = name.rpartition(":") if ":" not in name else name.partition(":")
    spelled = {"provider": provider.lower() or None, "symbol": symbol}
    exact = fetch(connection, _MARKET, **spelled)
    upper = exact or fetch(connection, _MARKET, **{**spelled, "symbol": symbol.upper()})
    found = upper or fetch(connection, _MARKET, provider=None, symbol=name)
    return found[0] if found else None


def read_newest_bars(
    connection: Connection, market_id: int, interval: str, count: int
) -> list[Row]:
    """Return the newest bars of a market, provisional ones too, the oldest first."""
    return fetch(connection, _BARS, market_id=market_id, interval=interval, count=count)[::-1]


def read_snapshot(connection: Connection, market_id: int) -> Row | None:
    """Return a market's newest snapshot."""
    rows = fetch(connection, _SNAPSHOT, market_id=market_id)
    return rows[0] if rows else None


def read_statistics(connection: Connection, market_id: int) -> list[Row]:
    """Return a market's newest daily statistics, one row a horizon, the shortest first."""
    rows = fetch(connection, _STATISTICS, market_id=market_id, method=find_method_in_use())
    return sorted(rows, key=lambda row: int(row["horizon"].removesuffix("d")))


def read_revised(connection: Connection, market_id: int, count: int) -> list[Row]:
    """Return final values of a market that were replaced, and by what, the newest first."""
    return fetch(connection, _REVISIONS, market_id=market_id, count=count)


def read_quarantined(connection: Connection, market_id: int, count: int) -> list[Row]:
    """Return a market's rows in quarantine, the newest first."""
    return fetch(connection, _QUARANTINED, market_id=market_id, count=count)


def read_compared_markets(connection: Connection) -> list[Row]:
    """Return the active markets, by symbol and provider."""
    return fetch(connection, _COMPARED)


def read_compared_horizons(connection: Connection) -> list[str]:
    """Return the horizons that comparisons are stored of, the shortest first."""
    found = [row["horizon"] for row in fetch(connection, _HORIZONS)]
    return sorted(found, key=lambda horizon: int(horizon.removesuffix("d")))


def read_ratio(connection: Connection, base: int, quote: int, start: datetime) -> list[Row]:
    """Return final daily closes of two markets on the dates that both have, in order."""
    return fetch(connection, _RATIO, base=base, quote=quote, start=start)


def fetch(connection: Connection, query: str, **parameters: Any) -> list[Row]:
    """Return a query's rows."""
    given = {name: _spell(value) for name, value in parameters.items()}
    return [dict(row) for row in connection.exec_driver_sql(query, given).mappings()]


def _spell(value: Any) -> Any:
    """Return a parameter as the driver takes it: it knows no UUID."""
    return str(value) if isinstance(value, UUID) else value
