"""Bars written the way ingestion writes them, version by version, and what should be read back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID, uuid4

import numpy as np
import pandas as pd
from sqlalchemy import Engine, text

from market_pipeline.domain.records import UTC_DTYPE, build_bar_frame
from market_pipeline.storage.bulk.staging import stage_frame
from market_pipeline.storage.bulk.upsert import merge_staged, take_dataset_version
from market_pipeline.storage.ledgers import dataset_version
from market_pipeline.storage.tables import ingestion_run, market, market_aggregate

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
FIRST_COMMIT = datetime(2024, 6, 1, tzinfo=UTC)
LENGTHS = {"1h": timedelta(hours=1), "1d": timedelta(days=1), "1w": timedelta(weeks=1)}


class Commit(NamedTuple):
    """What a committed batch was stamped with."""

    version: int
    known_at: datetime
    run_id: UUID


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the tests: all its prices lie about its close."""

    open_time: datetime
    close: float
    interval: str = "1d"
    volume: float | None = None
    is_final: bool = True


def make_days(closes: Iterable[float], first: datetime = MONDAY) -> list[Bar]:
    """Return final daily bars, one day after the other."""
    return [Bar(first + timedelta(days=at), close) for at, close in enumerate(closes)]


@dataclass
class History:
    """A database that is written to, an hour between two commits."""

    engine: Engine
    commits: list[Commit] = field(default_factory=list)

    def add_market(self, symbol: str, provider: str = "mock", is_primary: bool = True) -> int:
        """Add a market that never closes, and return its key."""
        row = {"provider": provider, "provider_market_id": symbol, "symbol": symbol}
        row |= {"name": symbol, "base": symbol, "quote": "USD", "venue": "v", "calendar": "24/7"}
        row |= {"intervals": ["1h", "1d"], "price_basis": "unadjusted", "is_primary": is_primary}
        with self.engine.begin() as connection:
            added = connection.execute(market.insert().values(row))
        return int(added.inserted_primary_key[0])  # type: ignore[index]

    def clear(self) -> None:
        """Take out every bar, and begin with version 1 and the first commit's time again."""
        self.commits.clear()
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "TRUNCATE market_data.market_aggregate, market_data.market_aggregate_revision, "
                    "market_data.dataset_version"
                )
            )
            connection.execute(text("SELECT setval('market_data.dataset_version_seq', 1, false)"))

    def commit(self, market_id: int, bars: Sequence[Bar]) -> Commit:
        """Write a batch in a transaction of its own, by a run of its own."""
        frame = build_frame(bars).assign(market_id=market_id)
        run_id, known_at = uuid4(), FIRST_COMMIT + timedelta(hours=len(self.commits))
        with self.engine.begin() as connection:
            staged = stage_frame(connection, market_aggregate, frame)
            version = take_dataset_version(connection)
            stamps = {"dataset_version": version, "known_at": known_at, "run_id": run_id}
            merge_staged(connection, staged, stamps)
            for interval, part in frame.groupby("interval"):
                connection.execute(
                    dataset_version.insert().values(
                        version=version,
                        known_at=known_at,
                        run_id=run_id,
                        interval=interval,
                        market_id=market_id,
                        first_open_time=part["open_time"].min().to_pydatetime(),
                        last_open_time=part["open_time"].max().to_pydatetime(),
                    )
                )
            connection.execute(
                ingestion_run.insert().values(
                    run_id=run_id, trigger="manual", provider="mock", request={},
                    started_at=known_at, outcome="ok",
                )
            )  # fmt: skip
        self.commits.append(Commit(version, known_at, run_id))
        return self.commits[-1]


def build_frame(bars: Sequence[Bar]) -> pd.DataFrame:
    """Return the bar frame of bars."""
    opens = pd.Series([bar.open_time for bar in bars], dtype=UTC_DTYPE)
    closes = np.array([bar.close for bar in bars])
    return build_bar_frame(
        {
            "interval": [bar.interval for bar in bars],
            "open_time": opens,
            "close_time": opens + pd.Series([LENGTHS[bar.interval] for bar in bars]),
            "open": closes,
            "high": closes + 1,
            "low": closes - 0.5,
            "close": closes,
            "volume": np.array([bar.volume for bar in bars], dtype="float64"),
            "volume_kind": ["none" if bar.volume is None else "base" for bar in bars],
            "is_final": [bar.is_final for bar in bars],
        }
    )


Key = tuple[int, str, datetime]
Known = tuple[float, float | None, int]
Snapshot = Mapping[Key, Known]


@dataclass
class Model:
    """The final bars of every version, in plain Python: close, volume and the version of each."""

    stored: dict[Key, tuple[Bar, int]] = field(default_factory=dict)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)

    def commit(self, market_id: int, bars: Sequence[Bar], version: int) -> None:
        """Take a batch as the write path should."""
        for bar in {(one.interval, one.open_time): one for one in bars}.values():
            key = (market_id, bar.interval, bar.open_time)
            before = self.stored.get(key)
            is_kept = before is not None and (
                before[0] == bar or (before[0].is_final and not bar.is_final)
            )
            if not is_kept:
                self.stored[key] = (bar, version)
        self.snapshots[version] = {
            key: (bar.close, bar.volume, known_in)
            for key, (bar, known_in) in self.stored.items()
            if bar.is_final
        }

    def find_first_values(self) -> Snapshot:
        """Return the first final values that each bar ever had."""
        first: dict[Key, Known] = {}
        for version in sorted(self.snapshots):
            first = {**self.snapshots[version], **first}
        return first


def read_back(frame: pd.DataFrame, market_ids: Mapping[str, int]) -> dict[Key, Known]:
    """Return a frame of ``read_aggregates`` as a snapshot."""
    columns = ("symbol", "interval", "open_time", "close", "volume", "dataset_version")
    rows = frame[list(columns)].itertuples(index=False)
    return {
        (market_ids[symbol], interval, opened.to_pydatetime()): (
            close,
            None if np.isnan(volume) else volume,
            version,
        )
        for symbol, interval, opened, close, volume, version in rows
    }
