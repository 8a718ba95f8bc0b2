"""What the watches ask: of the newest receipt, of coverage, of holes; one query for all markets."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select, text

from market_pipeline.domain.coverage import ASKED_OFTEN
from market_pipeline.storage.runs.evidence import COVERAGE, EXPLAINED
from market_pipeline.storage.tables import ingestion_run, market

_HOLES = text(f"""
    SELECT provider || ':' || symbol AS name, count(*) AS holes, min(reason) AS reason
    FROM market_data.coverage_hole JOIN market_data.market USING (market_id)
    WHERE is_active AND NOT {EXPLAINED} AND (tries >= {ASKED_OFTEN} OR first_seen_at < :before)
    GROUP BY 1 ORDER BY 1
""")


def read_last_start(connection: Connection) -> datetime | None:
    """Return when the newest run with a receipt began (UTC)."""
    return connection.execute(select(func.max(ingestion_run.c.started_at))).scalar()


def read_lasting_holes(connection: Connection, before: datetime) -> Sequence[Row[Any]]:
    """Return ``name``, ``holes`` and a ``reason`` of active markets with holes that do not heal.

    Args:
        connection: Any.
        before: Holes first seen before then, or asked for often, are told (UTC).
    """
    return connection.execute(_HOLES, {"before": before}).all()


def read_market_ids(connection: Connection) -> dict[tuple[str, str], int]:
    """Return market_id by provider and symbol, of active markets."""
    columns = (market.c.provider, market.c.symbol, market.c.market_id)
    found = connection.execute(select(*columns).where(market.c.is_active))
    return {(row.provider, row.symbol): row.market_id for row in found}


def read_coverage_rows(
    connection: Connection, market_ids: Sequence[int]
) -> list[Mapping[str, Any]]:
    """Return watermark and last explained hole of every series of some markets."""
    found = connection.execute(COVERAGE, {"market_ids": list(market_ids)})
    return [dict(row) for row in found.mappings()]
