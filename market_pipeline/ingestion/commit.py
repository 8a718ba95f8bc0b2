"""The transactions of a run: a wave of many markets' batches, each whole or not at all.

A wave is one transaction: bars with their days and weeks, coverage, quarantine and receipts. The
markets that another run took drop out. If the database refuses a row, the wave is halved until the
market at fault stands alone, so the others land.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pandas as pd
from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import DataError, IntegrityError, OperationalError

from market_pipeline.domain.columns import join_columns
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.errors import StorageError
from market_pipeline.domain.intervals import ALWAYS_OPEN
from market_pipeline.domain.records import Market, Window
from market_pipeline.domain.sessions import LAST_DAY
from market_pipeline.domain.strays import HANDFUL
from market_pipeline.ingestion.bar_writing import BarWriteResult, write_bars
from market_pipeline.ingestion.batches import BarBatch, Coverages, Item, MarketStopped
from market_pipeline.ingestion.derived import MarketBars
from market_pipeline.ingestion.outcomes import (
    BatchResult,
    Kept,
    Landed,
    decide_result,
    describe_batch,
)
from market_pipeline.ingestion.receipts import (
    Run,
    add_requests,
    add_table_receipt,
    begin_receipt,
    describe_stop,
)
from market_pipeline.ingestion.repairing import keep_difference
from market_pipeline.ingestion.settle import add_inserted, find_absence, settle_coverage
from market_pipeline.ingestion.strays import suspect_calendar
from market_pipeline.ingestion.suspecting import can_be_suspected, find_suspect_span, suspect_splits
from market_pipeline.storage.bars.quarantine import count_strays, record_rejected
from market_pipeline.storage.bulk.upsert import WriteCounts, upsert_frame
from market_pipeline.storage.coverage.ledger import CoverageChange, count_inserted, write_coverages
from market_pipeline.storage.latest.market_versions import bump_market_versions
from market_pipeline.storage.markets.registration import ensure_market, register_markets
from market_pipeline.storage.runs.claims import hold_claims, release_claims
from market_pipeline.storage.runs.receipts import find_later_receipt
from market_pipeline.storage.runs.recording import add_to_markets
from market_pipeline.storage.tables import market, market_aggregate

_TRIES = 3
_NOT_DONE = "no receipt says that its work is done: run again"
_PASSING = ("40", "55P03", "57014")
"""SQLSTATEs of a transaction that may succeed when it is repeated as a whole."""


def commit_wave(engine: Engine, run: Run, items: Sequence[Item]) -> list[Landed]:
    """Commit what was fetched since the last wave; one market is in it once at most.

    A batch that another run overtook counts as that run's.

    Raises:
        OperationalError: The database is away, or refused the wave several times.
    """
    stopped = [item for item in items if isinstance(item, MarketStopped)]
    landed = [Landed(item, write_stop(engine, run, item)) for item in stopped]
    return landed + _commit(engine, run, [item for item in items if isinstance(item, BarBatch)])


def _commit(engine: Engine, run: Run, batches: Sequence[BarBatch]) -> list[Landed]:
    if not batches:
        return []
    try:
        return _repeat(engine, run, batches)
    except (DataError, IntegrityError) as error:
        if len(batches) > 1:
            middle = len(batches) // 2
            halves = batches[:middle], batches[middle:]
            return [landed for half in halves for landed in _commit(engine, run, half)]
        reason = StorageError(f"the database refused the bars: {error.orig}")
        stopped = MarketStopped(batches[0].route, reason)
        return [Landed(batches[0], write_stop(engine, run, stopped))]


def _repeat(engine: Engine, run: Run, batches: Sequence[BarBatch]) -> list[Landed]:
    """Write a wave, and repeat it as a whole when what refused it may have passed."""
    for left in reversed(range(_TRIES)):
        try:
            return write_batches(engine, run, batches)
        except OperationalError as error:
            state = getattr(error.orig, "pgcode", None) or ""
            if not left or not state.startswith(_PASSING):
                raise
    raise AssertionError("unreachable")


def write_batches(engine: Engine, run: Run, batches: Sequence[BarBatch]) -> list[Landed]:
    """Commit batches of different markets in one transaction.

    What is known of their coverage goes on with them. A market that another run took since is left
    out, with the reason.
    """
    with engine.begin() as connection:
        tokens = {batch.market_id: batch.held.token for batch in batches}
        lost = hold_claims(connection, tokens)
        begin_receipt(connection, run)
        wave = _Wave(connection, run, [one for one in batches if one.market_id not in lost])
        landed = wave.write()
        ended = {one.market_id: one.held.token for one in wave.batches if one.is_last}
        release_claims(connection, ended)
    for batch, coverages in zip(wave.batches, wave.coverages, strict=True):
        batch.held.coverages = coverages
    for batch in batches:
        if batch.market_id in lost:
            stopped = MarketStopped(batch.route, lost[batch.market_id], batch.held.token)
            landed.append(Landed(stopped, write_stop(engine, run, stopped)))
    return landed


class _Wave:
    """One transaction of batches, each of a market whose claim is held.

    Attributes:
        batches: Of different markets. coverages: Theirs, once it is written.
    """

    def __init__(self, connection: Connection, run: Run, batches: Sequence[BarBatch]) -> None:
        self._connection, self._run = connection, run
        self.batches, self.coverages = batches, list[Coverages]()

    def write(self) -> list[Landed]:
        """Write quarantine, coverage, bars and receipts; what need not wait comes before the lock.

        The coverage of a market with a difference depends on its bars, and comes after them.
        """
        self._record_rejected()
        add_requests(self._connection, self._run, self.batches)
        settled = [settle_coverage(self._run.request, batch) for batch in self.batches]
        self._write_coverages(settled, differing=False)
        written = self._write_bars(settled)
        kept = [
            self._keep(batch, after, written.get(batch.market_id, BarWriteResult()))
            for batch, after in zip(self.batches, settled, strict=True)
        ]
        self.coverages = [one.coverages for one in kept]
        self._count_inserted(kept)
        self._write_coverages(self.coverages, differing=True)
        return self._report(kept)

    def _record_rejected(self) -> None:
        for batch in self.batches:
            for page in batch.pages:
                rejected = page.validated.rejected
                record_rejected(
                    self._connection, self._run.run_id, batch.market_id, rejected, page.asked_at
                )

    def _write_bars(self, settled: Sequence[Coverages]) -> dict[int, BarWriteResult]:
        parts = []
        for batch, after in zip(self.batches, settled, strict=True):
            market = batch.route[1]
            absence = find_absence(market, batch.held.coverages, after)
            bars = join_columns([page.validated.good for page in batch.pages])
            if len(bars) or absence.new:
                parts.append(MarketBars(market, batch.market_id, bars, absence))
        return write_bars(self._connection, self._run, parts)

    def _keep(self, batch: BarBatch, after: Coverages, written: BarWriteResult) -> Kept:
        kept = Kept(written, add_inserted(after, written.inserted))
        if batch.difference is not None:
            kept = keep_difference(self._connection, self._run, batch, batch.difference, kept)
        _suspect_splits(self._connection, self._run, batch, kept)
        return kept

    def _write_coverages(self, after: Sequence[Coverages], differing: bool) -> None:
        changes = [
            change
            for batch, coverages in zip(self.batches, after, strict=True)
            if (batch.difference is not None) is differing
            for change in _list_changes(batch, coverages)
        ]
        write_coverages(self._connection, changes, self._run.run_id)

    def _count_inserted(self, kept: Sequence[Kept]) -> None:
        inserted = {
            (batch.market_id, interval): count
            for batch, one in zip(self.batches, kept, strict=True)
            if batch.difference is None
            for interval, count in one.written.inserted.items()
            if count
        }
        count_inserted(self._connection, inserted)

    def _report(self, kept: Sequence[Kept]) -> list[Landed]:
        suspicions = self._suspect_calendars()
        landed, rows = [], {}
        for batch, one in zip(self.batches, kept, strict=True):
            suspicion = suspicions.get(batch.market_id)
            result = decide_result(self._run, batch, one, suspicion)
            rows[batch.market_id] = describe_batch(batch, one, result)
            landed.append(Landed(batch, result))
        add_to_markets(self._connection, self._run.run_id, rows)
        self._report_table(landed)
        return landed

    def _suspect_calendars(self) -> dict[int, str | None]:
        """Return why calendars are suspect; a handful of strays at least makes one so."""
        markets = {
            batch.market_id: (batch.route[1], coverages)
            for batch, coverages in zip(self.batches, self.coverages, strict=True)
            if batch.route[1].calendar != ALWAYS_OPEN
        }
        counts = count_strays(self._connection, list(markets)) if markets else {}
        return {
            one: suspect_calendar(self._connection, markets[one][0], one, markets[one][1])
            for one, count in counts.items()
            if count >= HANDFUL
        }

    def _report_table(self, landed: Sequence[Landed]) -> None:
        # One failed market of many makes a run partial; what is not the last says nothing yet.
        is_short = any(one.item.is_last and one.result.outcome != "ok" for one in landed)
        rows = sum((one.result.counts + one.result.derived for one in landed), WriteCounts())
        outcome = "partial" if is_short else "ok"
        add_table_receipt(self._connection, self._run, market_aggregate.name, rows, outcome)


def write_stop(engine: Engine, run: Run, stopped: MarketStopped) -> BatchResult:
    """Commit the receipt of a market that gave no batch.

    One that another run took is ok if a receipt says that its work was done under a later claim.
    """
    market_id = ensure_market(engine, stopped.route[1], run.request.is_default_routing)
    with engine.begin() as connection:
        begin_receipt(connection, run)
        outcome, reason, doer = "failed", str(stopped.error), None
        if stopped.is_superseded:
            doer = find_later_receipt(connection, market_id, stopped.token)
            outcome = "ok" if doer else "partial"
            reason = f"{reason}; {f'run {doer} has done it' if doer else _NOT_DONE}"
        # Another stream of this run may have done it: its receipt is the better one.
        if doer != run.run_id:
            row = describe_stop(reason, outcome)
            row["assumed"] = stopped.route[1].assumed
            add_to_markets(connection, run.run_id, {market_id: row})
        landed = "ok" if outcome == "ok" else "partial"
        add_table_receipt(connection, run, market_aggregate.name, WriteCounts(), landed)
    return BatchResult(WriteCounts(), outcome, reason)


def _suspect_splits(connection: Connection, run: Run, batch: BarBatch, kept: Kept) -> None:
    """Look for splits where bars are new, or where a difference is over."""
    market = batch.route[1]
    if kept.ended_from is not None:
        span = Window(kept.ended_from, LAST_DAY) if can_be_suspected(market) else None
    elif batch.difference is None and kept.written.version is not None:
        span = find_suspect_span(batch, kept.written.days)
    else:
        span = None
    if span is not None:
        suspect_splits(connection, market, batch.market_id, span, run.run_id)


def _list_changes(batch: BarBatch, coverages: Coverages) -> list[CoverageChange]:
    changes = []
    for interval, after in coverages.items():
        before = batch.held.coverages.get(interval, Coverage())
        answered = [
            page.asked_at
            for page in batch.pages
            if page.request.interval is interval and page.error is None
        ]
        if after != before or answered:
            key, refreshed_at = (batch.market_id, interval), max(answered, default=None)
            changes.append(CoverageChange(key, before, after, refreshed_at))
    return changes


def write_rows(
    engine: Engine,
    run: Run,
    table: Table,
    rows: pd.DataFrame,
    outcome: str,
    tell: Callable[[Connection], None] | None = None,
) -> WriteCounts:
    """Commit rows of one table, their part of the receipt, and whatever else ``tell`` writes."""
    values = {"run_id": run.run_id, "fetched_at": datetime.now(UTC)}
    stamps = {name: values[name] for name in table.info["stamps"] if name in values}
    with engine.begin() as connection:
        begin_receipt(connection, run)
        counts = upsert_frame(connection, table, rows, stamps) if len(rows) else WriteCounts()
        if counts.written:
            keys = [
                column.name for column in table.primary_key if column.name.endswith("market_id")
            ]
            bump_market_versions(connection, pd.concat([rows[key] for key in keys]))
        add_table_receipt(connection, run, table.name, counts, outcome)
        if tell is not None:
            tell(connection)
    return counts


def write_markets(engine: Engine, run: Run, markets: Sequence[Market]) -> WriteCounts:
    """Commit the routed markets and their part of the receipt."""
    with engine.begin() as connection:
        begin_receipt(connection, run)
        counts = register_markets(connection, markets, run.request.is_default_routing)
        add_table_receipt(connection, run, market.name, counts, "ok")
    return counts
