"""Bars of many markets on their way into the table: with the days and weeks that they touch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Connection

from market_pipeline.domain.arrays import Micros
from market_pipeline.domain.bars import BuiltBars
from market_pipeline.domain.columns import NO_BARS, BarColumns, read_frame_columns
from market_pipeline.domain.grids import from_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market
from market_pipeline.ingestion.derived import (
    MarketBars,
    derive_bars,
    join_built,
    join_parts,
    list_needed_spans,
)
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.settle import NOTHING_ABSENT
from market_pipeline.ingestion.suspecting import can_be_suspected
from market_pipeline.storage.bars.history import note_version
from market_pipeline.storage.bars.stored import read_spans
from market_pipeline.storage.bulk.staging import stage_frame
from market_pipeline.storage.bulk.upsert import WriteCounts, merge_by, take_dataset_version
from market_pipeline.storage.latest.market_versions import bump_market_versions
from market_pipeline.storage.tables import market_aggregate

Keys = Mapping[tuple[int, str], WriteCounts]
Groups = Mapping[tuple[int, str], Micros]
"""The open_time of bars by market and interval."""
Counted = Mapping[int, Mapping[str, WriteCounts]]


@dataclass(frozen=True, slots=True)
class BarWriteResult:
    """What became of one market's bars.

    Attributes:
        counts: Of fetched bars. derived: Of days and weeks built from them.
        version: Theirs; None when nothing changed. inserted: How many are new, by interval.
        last_version: Where a second one was needed.
        days: The daily bars among them, fetched or built.
    """

    counts: WriteCounts = field(default_factory=WriteCounts)
    derived: WriteCounts = field(default_factory=WriteCounts)
    version: int | None = None
    inserted: Mapping[Interval, int] = field(default_factory=dict)
    last_version: int | None = None
    days: BarColumns = NO_BARS

    def __add__(self, later: "BarWriteResult") -> "BarWriteResult":
        """Return both; what was written later replaced stored bars alone."""
        first = self.version if self.version is not None else later.version
        counts, derived = self.counts + later.counts, self.derived + later.derived
        return BarWriteResult(counts, derived, first, self.inserted, later.version, self.days)


def write_bars(
    connection: Connection, run: Run, parts: Sequence[MarketBars]
) -> dict[int, BarWriteResult]:
    """Write bars of markets, the days and weeks they touch, and where the changes are.

    Args:
        connection: In a transaction that holds the claim of each market.
        run: On whose behalf.
        parts: The bars, by market.

    Returns:
        What became of them, by market_id.
    """
    if not parts:
        return {}
    now = run.request.now
    stored = BuiltBars(*read_spans(connection, list_needed_spans(parts, now)))
    fetched, built = join_parts(parts), derive_bars(parts, stored, now)
    whole = join_built([fetched, built])
    frame = whole.bars.to_frame().assign(market_id=whole.owners)
    staged = stage_frame(connection, market_aggregate, frame)
    groups = _group_opens(fetched), _group_opens(built)
    version = take_dataset_version(connection)  # waits for the merges before it
    stamps: dict[str, Any] = {
        "dataset_version": version,
        "known_at": datetime.now(UTC),
        "run_id": run.run_id,
    }
    changed = merge_by(connection, staged, stamps, ("market_id", "interval"))
    spans = _list_spans(groups, changed)
    if spans:
        note_version(connection, spans, stamps)
        bump_market_versions(connection, {market_id for market_id, _ in spans}, version)
    counted = _count_keys(groups[0], changed), _count_keys(groups[1], changed)
    written = {market_id for market_id, _ in spans}
    days = _group_days(whole, [part for part in parts if can_be_suspected(part.market)])
    return {
        part.market_id: _build_result(part.market_id, counted, written, version, days)
        for part in parts
    }


def write_market_bars(
    connection: Connection, run: Run, market: Market, market_id: int, bars: pd.DataFrame
) -> BarWriteResult:
    """Write the bar frame of one market as :func:`write_bars` does."""
    part = MarketBars(market, market_id, read_frame_columns(bars), NOTHING_ABSENT)
    return write_bars(connection, run, [part])[market_id]


def _list_spans(
    groups: Iterable[Groups], changed: Keys
) -> dict[tuple[int, str], tuple[datetime, datetime]]:
    """Return where the bars of the markets lie of which any has changed."""
    touched = {market_id for market_id, _ in changed}
    return {
        key: (from_micros(opens.min()), from_micros(opens.max()))
        for group in groups
        for key, opens in group.items()
        if key[0] in touched
    }


def _group_opens(whole: BuiltBars) -> Groups:
    """Return the open_time of each market's bars, by interval."""
    lengths = whole.bars.interval.astype(str)
    order = np.lexsort((lengths, whole.owners))
    owners, lengths, opens = whole.owners[order], lengths[order], whole.bars.open_time[order]
    is_new = (owners[1:] != owners[:-1]) | (lengths[1:] != lengths[:-1])
    first = np.append(0, np.flatnonzero(is_new) + 1) if len(owners) else np.empty(0, np.intp)
    keys = zip(owners[first].tolist(), lengths[first].tolist(), strict=True)
    return dict(zip(keys, np.split(opens, first[1:]), strict=True)) if len(owners) else {}


def _count_keys(groups: Groups, changed: Keys) -> dict[int, dict[str, WriteCounts]]:
    """Return what became of bars, by market and interval; what did not change is told as well."""
    counted: dict[int, dict[str, WriteCounts]] = {}
    for (market_id, interval), opens in groups.items():
        known = changed.get((market_id, interval), WriteCounts())
        unchanged = len(opens) - known.inserted - known.updated
        counted.setdefault(market_id, {})[interval] = replace(known, unchanged=unchanged)
    return counted


def _group_days(whole: BuiltBars, parts: Sequence[MarketBars]) -> dict[int, BarColumns]:
    is_day = whole.bars.interval == Interval.DAY.value
    return {
        part.market_id: whole.bars.take(is_day & (whole.owners == part.market_id)) for part in parts
    }


def _build_result(
    market_id: int,
    counted: tuple[Counted, Counted],
    written: set[int],
    version: int,
    days: Mapping[int, BarColumns],
) -> BarWriteResult:
    fetched, built = (of.get(market_id, {}) for of in counted)
    return BarWriteResult(
        sum(fetched.values(), WriteCounts()),
        sum(built.values(), WriteCounts()),
        version if market_id in written else None,
        {Interval(interval): count.inserted for interval, count in fetched.items()},
        days=days.get(market_id, NO_BARS),
    )
