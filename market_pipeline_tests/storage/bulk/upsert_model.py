"""A table with every column type in use, random batches for it, and what should become of them."""

import string
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pandas as pd
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
)

from market_pipeline.domain.records import UTC_DTYPE
from market_pipeline.storage.bulk.upsert import WriteCounts

KEYS = ("market_id", "interval", "open_time")
VALUES = ("price", "trades", "count", "label", "day", "is_final", "source")
DTYPES = {
    "market_id": "int64",
    "interval": "str",
    "open_time": UTC_DTYPE,
    "price": "float64",
    "trades": "Int64",
    "count": "Int32",
    "label": "str",
    "day": UTC_DTYPE,
    "is_final": "bool",
    "source": "object",
}
ORIGIN = datetime(2024, 1, 1, tzinfo=UTC)
Row = dict[str, Any]
_SERIES = {"market_id": 2, "interval": "1d"}
metadata = MetaData(schema="public")


def _columns(extra_key: str | None = None) -> list[Column[Any]]:
    time = DateTime(timezone=True)
    return [
        Column("market_id", BigInteger, primary_key=True),
        Column("interval", Text, primary_key=True),
        Column("open_time", time, primary_key=True),
        Column("price", Double),
        Column("trades", BigInteger),
        Column("count", Integer),
        Column("label", Text),
        Column("day", Date),
        Column("is_final", Boolean, nullable=False),
        Column("source", Uuid),
        Column("known_at", time, primary_key=extra_key == "known_at", nullable=False),
        Column("dataset_version", BigInteger, nullable=False),
        Column("run_id", Uuid),
    ]


revision = Table(
    "sample_revision",
    metadata,
    *_columns(),
    Column("known_until", DateTime(timezone=True)),
    Column("replaced_by_version", BigInteger, primary_key=True),
    Column("replaced_by_run", Uuid),
)
sample = Table(
    "sample",
    metadata,
    *_columns(),
    info={
        "stamps": ("known_at", "dataset_version", "run_id"),
        "guard": "(incoming.is_final OR NOT stored.is_final)",
        "revisions": revision,
    },
)

_LETTERS = string.ascii_letters + string.digits + "é'\"\\{},\t\n \u20bf🙂"
rows = st.fixed_dictionaries(
    {
        "market_id": st.integers(1, 3),
        "interval": st.sampled_from(("1h", "1d", "four")),
        "open_time": st.integers(0, 3).map(lambda hours: ORIGIN + timedelta(hours=hours)),
        "price": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.just(1.0),
        "trades": st.none() | st.integers(-(2**63), 2**63 - 1),
        "count": st.none() | st.integers(-(2**31), 2**31 - 1),
        "label": st.none() | st.text(_LETTERS, max_size=6),
        "day": st.none() | st.dates(date(1900, 1, 1), date(2200, 1, 1)),
        "is_final": st.booleans(),
        "source": st.none() | st.uuids() | st.just(UUID(int=256)),
    }
)
_lists = st.lists(rows, max_size=12)
batches = _lists | _lists.map(lambda batch: [{**row, **_SERIES} for row in batch])
"""Of any markets, or of one series, which the merge looks for in its part of the table alone."""


def build_frame(batch: list[Row]) -> pd.DataFrame:
    """Return a batch as the frame that the write path takes."""
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in batch], dtype=kind) for name, kind in DTYPES.items()}
    )


@dataclass
class Model:
    """What the table and its revisions should hold, in plain Python."""

    stored: dict[tuple[Any, ...], tuple[Any, ...]] = field(default_factory=dict)
    revised: list[tuple[Any, ...]] = field(default_factory=list)

    def write(self, batch: list[Row], version: int) -> WriteCounts:
        """Take a batch as the write path should, and return the counts it should report."""
        counts = WriteCounts()
        unique = {tuple(row[key] for key in KEYS): row for row in batch}
        for key, row in unique.items():
            counts += self._write_row(key, tuple(row[name] for name in VALUES), version)
        return counts

    def _write_row(
        self, key: tuple[Any, ...], values: tuple[Any, ...], version: int
    ) -> WriteCounts:
        is_final = VALUES.index("is_final")
        if key not in self.stored:
            self.stored[key] = (*values, version)
            return WriteCounts(inserted=1)
        *before, known_in = self.stored[key]
        if tuple(before) == values or (before[is_final] and not values[is_final]):
            return WriteCounts(unchanged=1)
        if before[is_final]:
            self.revised.append((*key, *before, known_in, version))
        self.stored[key] = (*values, version)
        return WriteCounts(updated=1, revised=int(before[is_final]))
