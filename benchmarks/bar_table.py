"""The states a write starts from: ``market_aggregate`` empty, or holding the prepared bars."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
from sqlalchemy import insert

from benchmarks.bars import MARKETS, Span, build_bars, change_some
from benchmarks.database import Database
from market_pipeline.storage.bulk.upsert import WriteCounts, take_dataset_version, upsert_frame
from market_pipeline.storage.tables import market, market_aggregate, metadata

TABLE = f"{market_aggregate.schema}.{market_aggregate.name}"
RUN_ID = UUID("00000000-0000-4000-8000-000000000001")
STAMPS: Mapping[str, Any] = {
    "known_at": datetime(2026, 1, 1, tzinfo=UTC),
    "dataset_version": 1,
    "run_id": RUN_ID,
}
"""What stands in the full table; a tool that compares stamps finds them unchanged."""
KEYS = [column.name for column in market_aggregate.primary_key]
_FILLED = [name for name in metadata.tables if name.startswith(TABLE)]
_TRUNCATE = f"TRUNCATE {', '.join(_FILLED)}"


class BarTable:
    r"""The product's table of bars, its states, and what it is written from.

    Args:
        database: With the product's tables, empty.
        folder: Where the prepared files are put; the client reads them.
        rows: How many bars the full table holds.

    Attributes:
        bars: The bars of the full table, as the product is handed them.
        binary_file: The full table in COPY's binary format.
        text_file: The same in COPY's text format, which psql's ``\copy`` takes by default.
    """

    def __init__(self, database: Database, folder: Path, rows: int) -> None:
        self.database = database
        self.empty()
        self.hours = max(rows // MARKETS, 1)
        self.bars = build_bars(Span(0, self.hours))
        self.binary_file = folder / f"bars-{rows}.binary"
        self.text_file = folder / f"bars-{rows}.text"
        with database.engine.begin() as connection:
            upsert_frame(connection, market_aggregate, self.bars, STAMPS)
        self._export(self.binary_file, "binary")
        self._export(self.text_file, "text")

    @cached_property
    def newer_bars(self) -> pd.DataFrame:
        """As many bars: 1 % of them new, 1 % with another close, the others as in the table."""
        new_hours = max(self.hours // 100, 1)
        known = build_bars(Span(new_hours, self.hours))
        new = build_bars(Span(self.hours, self.hours + new_hours))
        return pd.concat([change_some(known), new]).sort_values(KEYS, ignore_index=True)

    def _export(self, file: Path, form: str) -> None:
        query = f"SELECT * FROM {TABLE} ORDER BY {', '.join(KEYS)}"  # noqa: S608 - constants
        self.database.run_psql("-c", f"\\copy ({query}) TO '{file}' (FORMAT {form})")

    def empty(self) -> None:
        """Bring about the empty table."""
        self.database.execute(_TRUNCATE, "CHECKPOINT")

    def fill(self) -> None:
        """Bring about the full table, without a dead row, hinted and visible."""
        self.database.execute(_TRUNCATE)
        self.copy_binary()
        self.database.execute(f"VACUUM (ANALYZE) {TABLE}", "CHECKPOINT")

    def copy_text(self) -> None:
        r"""Load the prepared text by psql's \copy: the practical limit."""
        self.database.run_psql("-c", f"\\copy {TABLE} FROM '{self.text_file}'")

    def copy_binary(self) -> None:
        """Load prepared bytes by binary COPY: the tighter limit."""
        with self.binary_file.open("rb") as stream, self.database.engine.begin() as connection:
            cursor = connection.connection.cursor()
            cursor.copy_expert(f"COPY {TABLE} FROM STDIN (FORMAT binary)", stream, 1 << 16)


def write_bars(database: Database, bars: pd.DataFrame) -> WriteCounts:
    """Write bars as the product does: one committed transaction, counted."""
    with database.engine.begin() as connection:
        stamps = {
            "known_at": datetime.now(UTC),
            "dataset_version": take_dataset_version(connection),
            "run_id": RUN_ID,
        }
        return upsert_frame(connection, market_aggregate, bars, stamps)


def prepare_markets(database: Database) -> None:
    """Add the markets that bars refer to, and keep the server's own work off their table."""
    rows = [
        {
            "market_id": number,
            "provider": "bench",
            "provider_market_id": f"M{number}",
            "symbol": f"M{number}-USD",
            "name": f"Market {number}",
            "base": f"M{number}",
            "quote": "USD",
            "venue": "bench",
            "calendar": "24/7",
            "intervals": ["1h"],
            "price_basis": "unadjusted",
        }
        for number in range(1, MARKETS + 1)
    ]
    with database.engine.begin() as connection:
        connection.execute(insert(market), rows)
    database.execute(f"ALTER TABLE {TABLE} SET (autovacuum_enabled = off)")
