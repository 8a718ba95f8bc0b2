"""The newest values of markets, as JSON, with the stamps they belong to: one statement, one moment.

Every part is found by index, whatever the number of bars, snapshots and statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, TextClause, text

from market_pipeline.storage.latest.market_versions import EVERYTHING
from market_pipeline.storage.rows import Row, fetch
from market_pipeline.storage.statistics.series import NEWEST, find_method_in_use


def _select_snapshot(market_id: str) -> str:
    # A market's newest snapshot.
    return f"""
    SELECT observed_at, price, change_24h_ratio, volume_24h, market_cap, realised_volatility, roi,
        bars_as_of, reason, fetched_at
    FROM market_data.market_snapshot WHERE market_id = {market_id}
    ORDER BY observed_at DESC LIMIT 1
    """


_NEWEST_SNAPSHOT = text(_select_snapshot(":market_id"))
_SNAPSHOT = _select_snapshot("chosen.market_id")
# The newest final bar of each interval of a chosen market.
_BARS = """
    SELECT bar.* FROM (VALUES ('1h'), ('1d'), ('1w')) lengths ("interval"), LATERAL (
        SELECT bar."interval", open_time, close_time, open, high, low, close, volume, volume_kind,
            source_kind, known_at, dataset_version
        FROM market_data.market_aggregate bar
        WHERE bar.market_id = chosen.market_id AND bar."interval" = lengths."interval"
            AND is_final
        ORDER BY open_time DESC LIMIT 1
    ) bar
"""
# A market has few horizons and many days: each horizon is found from the one before it.
_HORIZONS = """
    WITH RECURSIVE horizons (horizon) AS (
        (SELECT horizon FROM market_data.market_roi_statistic
            WHERE market_id = chosen.market_id AND "interval" = '1d' ORDER BY horizon LIMIT 1)
        UNION ALL
        SELECT (SELECT later.horizon FROM market_data.market_roi_statistic later
            WHERE later.market_id = chosen.market_id AND later."interval" = '1d'
                AND later.horizon > horizons.horizon
            ORDER BY later.horizon LIMIT 1)
        FROM horizons WHERE horizons.horizon IS NOT NULL
    ) SELECT horizon FROM horizons WHERE horizon IS NOT NULL
"""
# The newest daily statistics of a chosen market, the shortest horizon first.
_ROI = f"""
    SELECT statistic.* FROM ({_HORIZONS}) horizons, LATERAL (
        SELECT statistic.horizon, "interval", as_of, method, roi, annualised_return,
            annualised_volatility, realised_volatility, sharpe, sortino, max_drawdown, calmar,
            drawdown_peak_at, drawdown_trough_at, drawdown_recovered_at, annualisation_factor,
            n_returns, n_missing, first_bar_at, reason, dataset_version
        FROM market_data.market_roi_statistic statistic
        WHERE market_id = chosen.market_id AND "interval" = '1d'
            AND statistic.horizon = horizons.horizon
        ORDER BY {NEWEST} LIMIT 1
    ) statistic ORDER BY length(statistic.horizon), statistic.horizon
"""
# The newest values of markets as JSON, each with the stamp that they belong to.
_LATEST = text(f"""
    WITH wanted AS (
        SELECT * FROM unnest(CAST(:providers AS text[]), CAST(:symbols AS text[]))
            wanted (provider, symbol)
    ), chosen AS (
        SELECT DISTINCT ON (provider, symbol) market.* FROM market_data.market
        JOIN wanted USING (provider, symbol)
        ORDER BY provider, symbol, is_active DESC, listed_from DESC, market_id
    )
    SELECT provider, symbol,
        greatest(0,
            (SELECT version FROM market_data.market_stamp WHERE scope = provider || ':' || symbol),
            (SELECT version FROM market_data.market_stamp WHERE scope = '{EVERYTHING}')) AS version,
        (SELECT row_to_json(latest)::text FROM (SELECT
            symbol, provider, name, base, quote, venue, calendar, is_primary, is_active,
            (SELECT max(version) FROM market_data.dataset_version dataset
                WHERE dataset.market_id = chosen.market_id) AS dataset_version,
            (SELECT row_to_json(snapshot) FROM ({_SNAPSHOT}) snapshot) AS snapshot,
            (SELECT coalesce(json_agg(bar), '[]') FROM ({_BARS}) bar) AS bars,
            (SELECT coalesce(json_agg(newest), '[]') FROM ({_ROI}) newest) AS roi
        ) latest) AS body
    FROM chosen ORDER BY symbol, provider
""")


@dataclass(frozen=True, slots=True)
class LatestRow:
    """One market's newest values as JSON, and the stamp that they belong to.

    Times are ISO 8601 in UTC, numbers that are unknown null.
    """

    provider: str
    symbol: str
    version: int
    body: bytes


def read_latest_rows(connection: Connection, markets: Sequence[tuple[str, str]]) -> list[LatestRow]:
    """Return the newest values of (provider, symbol) pairs, by symbol and provider.

    A pair that is not stored has no row.
    """
    rows = connection.execute(*build_latest_query(markets))
    return [LatestRow(row.provider, row.symbol, row.version, _end_with_z(row.body)) for row in rows]


def _end_with_z(body: str) -> bytes:
    """Return JSON of PostgreSQL with its UTC offsets as Z, which it has no setting for."""
    return body.replace('+00:00"', 'Z"').encode()


def build_latest_query(markets: Sequence[tuple[str, str]]) -> tuple[TextClause, dict[str, Any]]:
    """Return the statement and its parameters."""
    providers, symbols = ([pair[at] for pair in markets] for at in (0, 1))
    return _LATEST, {"providers": providers, "symbols": symbols, "method": find_method_in_use()}


def read_snapshot(connection: Connection, market_id: int) -> Row | None:
    """Return a market's newest snapshot."""
    return next(iter(fetch(connection, _NEWEST_SNAPSHOT, market_id=market_id)), None)
