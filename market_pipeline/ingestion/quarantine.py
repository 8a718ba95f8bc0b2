"""Replaying quarantined bars: validates them by the current rules, and writes those that pass.

Here: the decision on each row and its transaction. Not here: the table
(``storage.bars.quarantine``), the rules (``domain.validation``).

A row passes if it breaks no rule and does not contradict a stored bar: what the provider sent later
and was accepted counts more than a row that was once refused. If several rows of one bar pass, the
last one is stored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pandas as pd
from sqlalchemy import Connection, Engine

from market_pipeline.domain.columns import BarColumns, read_frame_columns, to_micros_array
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.errors import ClaimTimeoutError, PipelineError, SupersededError
from market_pipeline.domain.grids import from_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.reconciliation import FetchResult, apply_fetch
from market_pipeline.domain.records import BAR_DTYPES, Market, Window
from market_pipeline.domain.sessions import EPOCH, LAST_DAY, read_times_around
from market_pipeline.domain.validation import NOT_A_SESSION, find_strays
from market_pipeline.ingestion.bar_writing import BarWriteResult, write_bars
from market_pipeline.ingestion.batches import Coverages
from market_pipeline.ingestion.derived import MarketBars
from market_pipeline.ingestion.receipts import (
    Run,
    add_table_receipt,
    begin_receipt,
    describe_counts,
)
from market_pipeline.ingestion.request import Request
from market_pipeline.ingestion.settle import add_inserted, find_absence
from market_pipeline.ingestion.validate import validate_answer
from market_pipeline.observability.logs import get_logger
from market_pipeline.storage.bars.events import read_restated_rows
from market_pipeline.storage.bars.quarantine import parse_payloads, read_quarantine, resolve_rows
from market_pipeline.storage.bars.stored import read_bars_of_keys
from market_pipeline.storage.coverage.ledger import CoverageChange, read_coverage, write_coverages
from market_pipeline.storage.markets.lookup import read_market
from market_pipeline.storage.runs.claims import hold_claim, hold_market
from market_pipeline.storage.runs.recording import add_to_markets, note_end
from market_pipeline.storage.tables import market_aggregate

logger = get_logger(__name__)
TRIGGER = "replay"
BEFORE_SPLIT = "before_split"
CLAIM_TIME = timedelta(minutes=2)
CLAIM_PATIENCE = timedelta(minutes=1)
_STORED = 0  # No row of the quarantine has this id.


@dataclass(frozen=True, slots=True)
class Replay:
    """What became of the rows.

    Attributes:
        run_id: The run that wrote them; it has a receipt if any was good.
        replayed: The rows that are stored now.
        refused: The others, each with the rule that it still breaks and its evidence.
    """

    run_id: UUID
    replayed: tuple[int, ...] = ()
    refused: Mapping[int, str] = field(default_factory=dict)

    def __or__(self, other: "Replay") -> "Replay":
        replayed = tuple(sorted((*self.replayed, *other.replayed)))
        return Replay(self.run_id, replayed, {**self.refused, **other.refused})


def replay_rows(engine: Engine, row_ids: Sequence[int] | None, now: datetime) -> Replay:
    """Validate rows again and store the good ones, market by market, each in one transaction.

    Args:
        engine: The database.
        row_ids: Which; None: every open one.
        now: By this clock bars lie in the future, or not (UTC).

    Raises:
        PipelineError: A row does not exist or is not open; nothing was written.
        ClaimTimeoutError: A market is being ingested and stays so; those before it were written.
    """
    with engine.connect() as connection:
        rows = read_open_rows(connection, row_ids)
    result = Replay(uuid4())
    for market_id, group in rows.groupby("market_id", sort=True):
        result |= _replay_market(engine, result.run_id, int(str(market_id)), group, now)
    return result


def replay_sessions(engine: Engine, calendar: str, now: datetime) -> bool:
    """Validate again the bars of dates or hours that a calendar has a session for by now.

    Nobody is waited for.

    Args:
        engine: The database.
        calendar: As this process knows it.
        now: By this clock bars lie in the future, or not (UTC).

    Returns:
        Whether all were validated: a market that is being ingested is left for another time.
    """
    with engine.connect() as connection:
        rows = read_quarantine(connection, status="open", rule=NOT_A_SESSION, calendar=calendar)
    opens = to_micros_array(rows["open_time"])
    intervals = rows["interval"].to_numpy(dtype=object)
    rows = rows[~find_strays(intervals, opens, read_times_around(opens, calendar))]
    run_id, is_whole = uuid4(), True
    for market_id, group in rows.groupby("market_id", sort=True):
        try:
            _replay_market(engine, run_id, int(str(market_id)), group, now, timedelta(0))
        except (ClaimTimeoutError, SupersededError) as error:
            logger.warning("bars of new sessions wait", calendar=calendar, error=str(error))
            is_whole = False
    return is_whole


def discard_rows(engine: Engine, row_ids: Sequence[int], now: datetime) -> list[int]:
    """Mark rows as bad for good, and return them.

    Raises:
        PipelineError: A row does not exist or is not open; nothing was changed.
    """
    with engine.begin() as connection:
        read_open_rows(connection, row_ids)
        return resolve_rows(connection, row_ids, "discarded", now)


def read_open_rows(connection: Connection, row_ids: Sequence[int] | None) -> pd.DataFrame:
    """Return the rows asked for, or all that are open.

    Raises:
        PipelineError: One of them does not exist or is not open.
    """
    if row_ids is None:
        return read_quarantine(connection, status="open")
    rows = read_quarantine(connection, row_ids=row_ids)
    unknown = sorted(set(row_ids) - set(rows["row_id"]))
    if unknown:
        raise PipelineError(
            f"row {_format_ids(unknown)} is not in the quarantine: `market-pipeline quarantine "
            "list` shows what is"
        )
    closed = rows[rows["status"] != "open"]
    if len(closed):
        told = [
            f"{row.row_id} was {row.status} at {row.resolved_at:%Y-%m-%d %H:%M} UTC"
            for row in closed.sort_values("row_id").itertuples()
        ]
        raise PipelineError(f"row {'; row '.join(told)}: name open rows only. Nothing was changed")
    return rows


def _format_ids(row_ids: Iterable[int]) -> str:
    return ", ".join(map(str, row_ids))


def _replay_market(
    engine: Engine,
    run_id: UUID,
    market_id: int,
    rows: pd.DataFrame,
    now: datetime,
    patience: timedelta = CLAIM_PATIENCE,
) -> Replay:
    with (
        hold_market(engine, market_id, run_id, CLAIM_TIME, patience) as token,
        engine.begin() as connection,
    ):
        hold_claim(connection, market_id, token)
        one = read_market(connection, market_id).record
        refused, good = _validate_again(connection, one, market_id, rows, now)
        kept = sorted(set(rows["row_id"]) - refused.keys())
        if kept:
            run = describe_run(run_id, TRIGGER, one, good, now)
            _write(connection, run, one, market_id, good)
            resolve_rows(connection, kept, "replayed", now)
    return Replay(run_id, tuple(kept), refused)


def _validate_again(
    connection: Connection, market: Market, market_id: int, rows: pd.DataFrame, now: datetime
) -> tuple[dict[int, str], BarColumns]:
    """Return why rows are refused, and the bars of the others."""
    ordered = rows.sort_values(["last_seen_at", "row_id"])
    bars = parse_payloads(list(ordered["payload"])).assign(row_id=list(ordered["row_id"]))
    refused = {
        row_id: f"{BEFORE_SPLIT}: it came before {at}, when these prices were restated"
        for row_id, at in read_restated_rows(connection, list(ordered["row_id"])).items()
    }
    bars = bars[~bars["row_id"].isin(refused.keys())]
    stored = _read_stored(connection, market_id, bars)
    # Of equals the last is kept, so that a stored bar is contradicted, never replaced by its equal.
    whole = pd.concat([bars, stored], ignore_index=True)
    ids = whole["row_id"].to_numpy()
    validated = validate_answer(read_frame_columns(whole), market, now)
    rejected = validated.rejected
    told = zip(ids[rejected.places].tolist(), rejected.rules, rejected.details, strict=True)
    refused |= {row_id: f"{rule}: {detail}" for row_id, rule, detail in told}
    refused.pop(_STORED, None)
    kept = bars[~bars["row_id"].isin(refused.keys())]
    keys = set(zip(kept["interval"], to_micros_array(kept["open_time"]).tolist(), strict=True))
    good = validated.good
    found = zip(good.interval.tolist(), good.open_time.tolist(), strict=True)
    return refused, good.take(np.array([key in keys for key in found], dtype=bool))


def _read_stored(connection: Connection, market_id: int, bars: pd.DataFrame) -> pd.DataFrame:
    """Return the stored bars that have the key of one of the bars."""
    timed = bars[bars["open_time"].between(EPOCH, LAST_DAY)]
    keys = list(zip(timed["interval"], timed["open_time"].dt.to_pydatetime(), strict=True))
    stored = read_bars_of_keys(connection, market_id, keys)
    return stored.astype(dict(BAR_DTYPES)).assign(row_id=_STORED)


def describe_run(
    run_id: UUID, trigger: str, market: Market, good: BarColumns, now: datetime
) -> Run:
    """Return the run of a command that writes bars of one market without asking its provider."""
    start, end = from_micros(good.open_time.min()), from_micros(good.close_time.max())
    request = Request(
        symbols=(market.symbol,),
        providers=(market.provider,),
        lookback_days=0,
        asked_at=now,
        now=now,
        window=Window(start, end),
        is_default_routing=False,
    )
    return Run(run_id, trigger, now, request)


def _write(
    connection: Connection, run: Run, market: Market, market_id: int, good: BarColumns
) -> None:
    """Write bars as an ingestion would: weeks, version, coverage and receipt in one transaction."""
    begin_receipt(connection, run)
    before = {key[1]: value for key, value in read_coverage(connection, [market_id]).items()}
    healed = _heal_coverage(before, run, market, good)
    absence = find_absence(market, before, {**before, **healed})
    parts = [MarketBars(market, market_id, good, absence)]
    written = write_bars(connection, run, parts)[market_id]
    changes = [
        CoverageChange((market_id, interval), before.get(interval, Coverage()), after)
        for interval, after in add_inserted(healed, written.inserted).items()
    ]
    write_coverages(connection, changes, run.run_id)
    add_written(connection, run, market_id, len(good), written)


def add_written(
    connection: Connection, run: Run, market_id: int, received: int, written: BarWriteResult
) -> None:
    """Write the receipt of bars that no provider was asked for."""
    counts = describe_counts(written.counts, written.derived)
    versions = dict.fromkeys(("first_version", "last_version"), written.version)
    row: dict[str, Any] = {"received": received, **counts, **versions, "outcome": "ok"}
    add_to_markets(connection, run.run_id, {market_id: row})
    rows = written.counts + written.derived
    add_table_receipt(connection, run, market_aggregate.name, rows, "ok")
    note_end(connection, run.run_id)


def _heal_coverage(before: Coverages, run: Run, market: Market, good: BarColumns) -> Coverages:
    """Close the holes that the bars leave; nothing was asked of the provider."""
    groups = {Interval(name): good.of_interval(Interval(name)) for name in set(good.interval)}
    return {
        interval: _apply_bars(
            before.get(interval, Coverage()), interval, market.calendar, bars, run.request.now
        )
        for interval, bars in groups.items()
    }


def _apply_bars(
    coverage: Coverage, interval: Interval, calendar: str, bars: BarColumns, now: datetime
) -> Coverage:
    kept = {name: getattr(coverage, name) for name in ("verified", "round")}
    coverage = replace(coverage, refreshed_at=now)  # No answer: it ends no outage.
    nothing = bars.open_time[:0]
    for at in range(len(bars)):
        bar, opens = bars.take(slice(at, at + 1)), from_micros(bars.open_time[at])
        answer = FetchResult(
            Window(opens, opens + timedelta(microseconds=1)), bar, nothing, now, now
        )
        coverage = apply_fetch(coverage, interval, calendar, timedelta(0), answer)
    return replace(coverage, **kept)
