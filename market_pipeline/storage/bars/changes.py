"""The final bars that differ between two dataset versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from market_pipeline.storage.rows import fetch

_VALUES = (
    "close_time", "open", "high", "low", "close", "volume", "volume_kind", "trades", "source_kind",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Changes:
    """Changed bars.

    Attributes:
        total: How many there are.
        rows: The first of them, by symbol, provider, interval and open_time: ``symbol``,
            ``provider``, ``interval``, ``open_time``, ``changed`` (``new``, or the names of the
            values that differ, with commas), ``old_close``, ``close``, ``old_volume``, ``volume``,
            and ``version``, ``known_at``, ``run_id`` of the new values.
    """

    total: int
    rows: tuple[Mapping[str, Any], ...]


def read_changed_bars(
    connection: Connection,
    older: int,
    newer: int,
    market_ids: Sequence[int] | None = None,
    limit: int | None = None,
) -> Changes:
    """Return the final bars that differ between two versions, each once.

    The ledger of versions tells in which markets and spans to look; a bar restated and put back
    in between does not differ.
    """
    parameters = {
        "older": older,
        "newer": newer,
        "market_ids": None if market_ids is None else list(market_ids),
        "limit": limit,
    }
    rows = fetch(connection, text(_build_query()), **parameters)
    total = rows[0]["total"] if rows else 0
    return Changes(total, tuple({k: v for k, v in row.items() if k != "total"} for row in rows))


def _build_query() -> str:
    is_other = {name: f"old.{name} IS DISTINCT FROM bar.{name}" for name in _VALUES}
    names = ", ".join(f"CASE WHEN {test} THEN '{name}' END" for name, test in is_other.items())
    # The final bars that differ between two versions, with their old and new values.
    return f"""
        WITH batch AS (
            SELECT * FROM market_data.dataset_version WHERE version > :older AND version <= :newer
            AND (CAST(:market_ids AS bigint[]) IS NULL OR market_id = ANY(:market_ids))
        ), bar AS (
            {_select_written("market_data.market_aggregate")}
            UNION ALL
            {_select_written("market_data.market_aggregate_revision")}
                AND bar.replaced_by_version > :newer
        )
        SELECT symbol, provider, bar.interval, bar.open_time,
            CASE WHEN old.market_id IS NULL THEN 'new' ELSE concat_ws(', ', {names}) END AS changed,
            old.close AS old_close, bar.close, old.volume AS old_volume, bar.volume,
            bar.dataset_version AS version, bar.known_at, bar.run_id, count(*) OVER () AS total
        FROM bar JOIN market_data.market USING (market_id)
        LEFT JOIN market_data.market_aggregate_revision old ON old.market_id = bar.market_id
            AND old.interval = bar.interval AND old.open_time = bar.open_time
            AND old.dataset_version <= :older AND old.replaced_by_version > :older
        WHERE old.market_id IS NULL OR {" OR ".join(is_other.values())}
        ORDER BY symbol, provider, bar.interval, bar.open_time LIMIT :limit
    """


def _select_written(table: str) -> str:
    """Return the query for what the batches wrote and a table holds."""
    names = (
        "market_id",
        "interval",
        "open_time",
        *_VALUES,
        "dataset_version",
        "known_at",
        "run_id",
    )
    return f"""
        SELECT {", ".join(f"bar.{name}" for name in names)}
        FROM batch JOIN {table} bar ON bar.market_id = batch.market_id
            AND bar.interval = batch.interval AND bar.dataset_version = batch.version
            AND bar.open_time BETWEEN batch.first_open_time AND batch.last_open_time
        WHERE bar.is_final"""
