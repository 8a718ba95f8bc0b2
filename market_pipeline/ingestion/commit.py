"""The transactions of a run: a wave of many markets' batches, each whole or not at all.

A wave is one transaction: bars with their days and weeks, coverage, quarantine and receipts. The
markets that another run took drop out. If the database refuses a row, the wave is halved until the
market at fault stands alone, so the others land.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import DataError, IntegrityError, OperationalError

from market_pipeline.domain.arrays import Micros
from market_pipeline.domain.bars import BuiltBars
from market_pipeline.domain.columns import NO_BARS, BarColumns, join_columns, read_frame_columns
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.differences import REPAIRING, WITHDRAWN, Difference, find_span
from market_pipeline.domain.errors import StorageError
from market_pipeline.domain.grids import from_micros
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.ranges import merge_windows
from market_pipeline.domain.records import Market, Window
from market_pipeline.domain.sessions import LAST_DAY
from market_pipeline.domain.spikes import find_spikes
from market_pipeline.domain.strays import HANDFUL
from market_pipeline.domain.validation import NOT_A_SESSION
from market_pipeline.ingestion.batches import BarBatch, Coverages, Item, MarketStopped
from market_pipeline.ingestion.plan import describe_cut
from market_pipeline.ingestion.receipts import (
    Run,
    add_requests,
    add_table_receipt,
    begin_receipt,
    describe_counts,
    describe_stop,
    shorten_reason,
)
from market_pipeline.ingestion.repairing import (
    RepairState,
    assess_repair,
    describe_bars,
    describe_difference,
)
from market_pipeline.ingestion.settle import (
    NOTHING_ABSENT,
    MarketBars,
    add_inserted,
    derive_bars,
    find_absence,
    join_built,
    join_parts,
    list_needed_spans,
    settle_coverage,
)
from market_pipeline.ingestion.strays import suspect_calendar
from market_pipeline.ingestion.suspecting import (
    can_be_suspected,
    find_suspect_span,
    suspect_splits,
)
from market_pipeline.storage.bars.events import (
    EventSpan,
    open_difference,
    resolve_difference,
    update_difference,
)
from market_pipeline.storage.bars.history import note_version
from market_pipeline.storage.bars.quarantine import count_strays, record_rejected
from market_pipeline.storage.bars.stored import read_spans
from market_pipeline.storage.bulk.staging import stage_frame
from market_pipeline.storage.bulk.upsert import (
    WriteCounts,
    merge_by,
    take_dataset_version,
    upsert_frame,
)
from market_pipeline.storage.coverage.ledger import CoverageChange, count_inserted, write_coverages
from market_pipeline.storage.latest.market_versions import bump_market_versions
from market_pipeline.storage.markets.registration import ensure_market, register_markets
from market_pipeline.storage.runs.claims import hold_claims, release_claims
from market_pipeline.storage.runs.recording import add_to_markets
from market_pipeline.storage.tables import market, market_aggregate

_TRIES = 3
_PASSING = ("40", "55P03", "57014")
"""SQLSTATEs of a transaction that may succeed when it is repeated as a whole."""
Keys = Mapping[tuple[int, str], WriteCounts]
Groups = Mapping[tuple[int, str], Micros]
"""The open_time of bars by market and interval."""
Counted = Mapping[int, Mapping[str, WriteCounts]]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What the database did with a batch, and how its market stands.

    Attributes:
        counts: Of fetched bars. derived: Of days and weeks built from them.
        outcome: Of the market so far; it is its last word with the last batch.
        reason: What went wrong, in one line. holes_left: Spans that should be there and are not.
        quarantined: Bars of the market that were refused, those aside that no session has.
    """

    counts: WriteCounts
    outcome: str
    reason: str | None
    holes_left: int = 0
    quarantined: int = 0
    derived: WriteCounts = field(default_factory=WriteCounts)


@dataclass(frozen=True, slots=True)
class Landed:
    """A batch, or a market that gave none, and what became of it."""

    item: Item
    result: BatchResult


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


@dataclass(frozen=True, slots=True)
class Kept:
    """What a batch came to with what is known of the market's difference.

    Attributes:
        written: Of bars, multiplied ones included. coverages: As they are with the batch.
        reason: What is still to be done about the difference; None: nothing.
        ended_from: The difference is over; from when on bars may have changed by it (UTC).
    """

    written: BarWriteResult
    coverages: Coverages
    reason: str | None = None
    ended_from: datetime | None = None


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
            stopped = MarketStopped(batch.route, lost[batch.market_id])
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
            kept = _keep_difference(self._connection, self._run, batch, batch.difference, kept)
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
            result = _decide_result(self._run, batch, one, suspicion)
            rows[batch.market_id] = _describe_batch(batch, one, result)
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
    """Commit the receipt of a market that gave no batch."""
    outcome = "ok" if stopped.is_superseded else "failed"
    market_id = ensure_market(engine, stopped.route[1], run.request.is_default_routing)
    with engine.begin() as connection:
        begin_receipt(connection, run)
        row = describe_stop(str(stopped.error), outcome)
        row["assumed"] = stopped.route[1].assumed
        add_to_markets(connection, run.run_id, {market_id: row})
        landed = "ok" if outcome == "ok" else "partial"
        add_table_receipt(connection, run, market_aggregate.name, WriteCounts(), landed)
    return BatchResult(WriteCounts(), outcome, str(stopped.error))


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


def _keep_difference(
    connection: Connection, run: Run, batch: BarBatch, difference: Difference, kept: Kept
) -> Kept:
    """Write what is known of a market's difference, and end it where its span was read again."""
    market_id = batch.market_id
    if difference.stage == WITHDRAWN:
        if not batch.opens_event:
            resolve_difference(connection, market_id, WITHDRAWN)
        return replace(kept, ended_from=run.request.window.start)
    ending = RepairState(difference.stage, find_span(difference, batch.route[1].calendar))
    if difference.stage == REPAIRING:
        ending = assess_repair(
            connection, market_id, batch.route, run.request, difference, kept.coverages
        )
    span, known = (
        EventSpan(*ending.span, describe_bars(difference)),
        replace(difference, stage=ending.stage),
    )
    if batch.opens_event:
        open_difference(connection, market_id, known, span, run.run_id)
    else:
        update_difference(connection, market_id, known, span)
    if ending.resolution is not None:
        resolve_difference(connection, market_id, ending.resolution)
    return _write_ending(connection, run, batch, ending, kept)


def _write_ending(
    connection: Connection, run: Run, batch: BarBatch, ending: RepairState, kept: Kept
) -> Kept:
    """Write the bars that were multiplied, and let what was left over count as settled."""
    written = kept.written
    if ending.bars is not None:
        market, market_id = batch.route[1], batch.market_id
        written += write_market_bars(connection, run, market, market_id, ending.bars)
    settled = {
        interval: replace(
            kept.coverages[interval],
            settled=tuple(merge_windows([*kept.coverages[interval].settled, *spans])),
        )
        for interval, spans in ending.settled.items()
    }
    reason = describe_difference(batch.difference, ending) if batch.difference else None
    return Kept(
        written,
        {**kept.coverages, **settled},
        reason,
        ending.span[0] if ending.is_over else None,
    )


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


def _decide_result(run: Run, batch: BarBatch, kept: Kept, suspicion: str | None) -> BatchResult:
    progress, window, after = batch.progress, run.request.window, kept.coverages
    left = [
        f"{interval} {hole.window.start:%Y-%m-%d %H:%M}: {hole.reason}"
        for interval, coverage in after.items()
        for hole in coverage.holes
        if not hole.is_explained
        and hole.window.start < window.end
        and window.start < hole.window.end
    ]
    reasons = [*progress.failures]
    refused = {rule: n for rule, n in progress.quarantined.items() if rule != NOT_A_SESSION}
    reasons += [f"{count} bars rejected: {rule}" for rule, count in refused.items()]
    if left and not progress.failures:
        reasons.append(f"{len(left)} holes left, the first at {left[0]}")
    reasons += [note for note in (kept.reason, suspicion) if note]
    is_empty = bool(progress.asked) and not any(known.bars for known in after.values())
    if is_empty and not reasons:
        reasons = ["the provider has no bars in this window"]
    outcome = "partial" if reasons else "ok"
    # A hole that cannot be filled does not fail a market that had nothing else to ask for.
    if is_empty or len(progress.failures) == progress.asked > progress.retries:
        outcome = "failed"
    if not batch.is_last:
        outcome, reasons = "partial", [*reasons, "not finished"]
    if progress.strays and not suspicion:
        calendar = batch.route[1].calendar
        reasons.append(
            f"{progress.strays} bars outside the sessions of {calendar}; they are in quarantine"
        )
    cut = describe_cut(batch.route[1], window)
    reasons += [cut] if cut else []
    quarantined = sum(refused.values()) + (progress.strays if suspicion else 0)
    written, reason = kept.written, shorten_reason(reasons)
    return BatchResult(written.counts, outcome, reason, len(left), quarantined, written.derived)


def _describe_batch(batch: BarBatch, kept: Kept, result: BatchResult) -> dict[str, Any]:
    progress, written = batch.progress, kept.written
    spikes = [find_spikes(page.validated.good).sum() for page in batch.pages]
    return {
        "requested": progress.requested,
        "received": progress.received,
        **describe_counts(written.counts, written.derived),
        "quarantined": result.quarantined,
        "spikes": int(sum(spikes)),
        "holes_left": result.holes_left,
        "calls": progress.calls,
        "throttled_calls": progress.throttled,
        "seconds": progress.seconds,
        "watermark_before": _find_watermark(batch.held.coverages),
        "watermark_after": _find_watermark(kept.coverages),
        "first_version": written.version,
        "last_version": written.last_version or written.version,
        "outcome": result.outcome,
        "reason": result.reason,
        "assumed": batch.route[1].assumed,
    }


def _find_watermark(coverages: Mapping[Interval, Coverage]) -> datetime | None:
    return max(filter(None, (known.watermark for known in coverages.values())), default=None)
