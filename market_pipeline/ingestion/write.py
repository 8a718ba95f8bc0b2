"""The transactions of a run: a batch with its weeks, coverage and receipt, all or nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import DataError, IntegrityError

from market_pipeline.domain.coverage import Coverage, lose_reach
from market_pipeline.domain.differences import REPAIRING, WITHDRAWN, Difference, find_span
from market_pipeline.domain.errors import StorageError, SupersededError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.parsing import adopt_parsing, renew_spans
from market_pipeline.domain.planning import TRACE
from market_pipeline.domain.ranges import merge_windows
from market_pipeline.domain.reconciliation import (
    FetchResult,
    apply_failure,
    apply_fetch,
    release_settled,
    skip_turn,
)
from market_pipeline.domain.records import Market, Window, build_empty_bar_frame
from market_pipeline.domain.sessions import LAST_DAY
from market_pipeline.domain.spikes import find_spikes
from market_pipeline.domain.validation import NOT_A_SESSION
from market_pipeline.ingestion.batches import BarBatch
from market_pipeline.ingestion.derived import (
    NOTHING_ABSENT,
    UnavailableBars,
    find_absence,
    rebuild_days,
    rebuild_weeks,
)
from market_pipeline.ingestion.fetching import BarPage
from market_pipeline.ingestion.planning import describe_cut, find_earliest
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
from market_pipeline.ingestion.request import Request
from market_pipeline.ingestion.strays import suspect_calendar
from market_pipeline.ingestion.stream import Item, MarketStopped
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
from market_pipeline.storage.bars.quarantine import record_rejected
from market_pipeline.storage.bulk.staging import stage_frame
from market_pipeline.storage.bulk.upsert import (
    WriteCounts,
    merge_staged,
    take_dataset_version,
    upsert_frame,
)
from market_pipeline.storage.coverage.ledger import read_coverage, write_coverage
from market_pipeline.storage.latest.market_versions import bump_market_versions
from market_pipeline.storage.markets.registration import ensure_market, register_markets
from market_pipeline.storage.runs.claims import hold_claim, release_claim
from market_pipeline.storage.runs.recording import add_to_market
from market_pipeline.storage.tables import market, market_aggregate

Coverages = dict[Interval, Coverage]


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
class BarWriteResult:
    """What became of bars.

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
    days: pd.DataFrame = field(default_factory=build_empty_bar_frame)

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


def commit_item(engine: Engine, run: Run, item: Item) -> BatchResult:
    """Commit whatever a stream gives; a batch that another run overtook counts as that run's."""
    if isinstance(item, MarketStopped):
        return write_stop(engine, run, item)
    try:
        return write_batch(engine, run, item)
    except SupersededError as error:
        return write_stop(engine, run, MarketStopped(item.route, error))
    except (DataError, IntegrityError) as error:
        reason = StorageError(f"the database refused the bars: {error.orig}")
        return write_stop(engine, run, MarketStopped(item.route, reason))


def write_batch(engine: Engine, run: Run, batch: BarBatch) -> BatchResult:
    """Commit one batch: bars, the weeks they touch, coverage, quarantine and receipt.

    Raises:
        SupersededError: Another run has claimed the market; nothing was written.
    """
    with engine.begin() as connection:
        hold_claim(connection, batch.market_id, batch.token)
        begin_receipt(connection, run)
        before = _read_coverages(connection, batch.market_id)
        after = _apply_pages(run.request, batch, _release(batch, before))
        absence = find_absence(batch.route[1], before, after)
        written = _write_bars(connection, run, batch, absence)
        kept = Kept(written, add_inserted(after, written))
        if batch.difference is not None:
            kept = _keep_difference(connection, run, batch, batch.difference, kept)
        written, after = kept.written, kept.coverages
        _suspect_splits(connection, run, batch, kept, before)
        _write_coverages(connection, run, batch, before, after)
        suspicion = suspect_calendar(connection, batch.route[1], batch.market_id, after)
        result = _decide_result(run, batch, written, after, kept.reason, suspicion)
        row = _describe_batch(batch, written, result, before, after)
        add_to_market(connection, run.run_id, batch.market_id, row)
        add_requests(connection, run, batch.market_id, batch.pages)
        _report_table(connection, run, batch, result)
        if batch.is_last:
            release_claim(connection, batch.market_id, batch.token)
    return result


def write_stop(engine: Engine, run: Run, stopped: MarketStopped) -> BatchResult:
    """Commit the receipt of a market that gave no batch."""
    outcome = "ok" if stopped.is_superseded else "failed"
    market_id = ensure_market(engine, stopped.route[1], run.request.is_default_routing)
    with engine.begin() as connection:
        begin_receipt(connection, run)
        row = describe_stop(str(stopped.error), outcome)
        row["assumed"] = stopped.route[1].assumed
        add_to_market(connection, run.run_id, market_id, row)
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


def _write_bars(
    connection: Connection, run: Run, batch: BarBatch, absence: UnavailableBars
) -> BarWriteResult:
    bars = _join_good(batch.pages)
    for page in batch.pages:
        if len(page.validated.rejected):
            now = page.asked_at
            rejected = page.validated.rejected
            record_rejected(connection, run.run_id, batch.market_id, rejected, now)
    if bars.empty and not absence.new:
        return BarWriteResult()
    return write_market_bars(connection, run, batch.route[1], batch.market_id, bars, absence)


def write_market_bars(
    connection: Connection,
    run: Run,
    market: Market,
    market_id: int,
    bars: pd.DataFrame,
    absence: UnavailableBars = NOTHING_ABSENT,
) -> BarWriteResult:
    """Write bars of one market, the days and weeks they touch, and where the changes are.

    Args:
        connection: In a transaction.
        run: On whose behalf.
        market: The market.
        market_id: Its key.
        bars: A validated bar frame of fetched intervals; none, where only ``absence`` is news.
        absence: Bars that will never come: days and weeks do not wait for them.
    """
    groups = sorted(bars.groupby("interval"), key=lambda group: -len(group[1]))
    frames = [frame.assign(market_id=market_id) for _, frame in groups or [("", bars)]]
    staged = stage_frame(connection, market_aggregate, frames[0])
    version = take_dataset_version(connection)  # waits for the merges before it
    stamps: dict[str, Any] = {
        "dataset_version": version,
        "known_at": datetime.now(UTC),
        "run_id": run.run_id,
    }
    counts = [merge_staged(connection, staged, stamps)]
    counts += [upsert_frame(connection, market_aggregate, frame, stamps) for frame in frames[1:]]
    inserted = {
        Interval(str(interval)): count.inserted
        for (interval, _), count in zip(groups, counts, strict=False)
    }
    fetched, built = sum(counts, WriteCounts()), WriteCounts()
    for build in (rebuild_days, rebuild_weeks):
        derived = build(connection, market, market_id, pd.concat(frames), run.request.now, absence)
        if len(derived):
            frames.append(derived.assign(market_id=market_id))
            built += upsert_frame(connection, market_aggregate, frames[-1], stamps)
    if not (fetched + built).written:
        return BarWriteResult(fetched, built)
    note_version(connection, market_id, pd.concat(frames), stamps)
    bump_market_versions(connection, [market_id], version)
    full = [frame for frame in frames if len(frame)]
    days = [frame for frame in full if frame["interval"].iloc[0] == Interval.DAY.value]
    daily = pd.concat(days) if days else build_empty_bar_frame()
    return BarWriteResult(fetched, built, version, inserted, days=daily)


def _release(batch: BarBatch, before: Coverages) -> Coverages:
    """Return the coverage that a batch's pages add to: what differs may be missing from now on."""
    if not batch.releases or batch.difference is None:
        return before
    released = {interval: trace.released for interval, trace in batch.difference.list_traces()}
    return {
        interval: release_settled(known, released.get(interval, ()))
        for interval, known in before.items()
    }


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


def _suspect_splits(
    connection: Connection, run: Run, batch: BarBatch, kept: Kept, before: Coverages
) -> None:
    """Look for splits where bars are new, or where a difference is over."""
    market = batch.route[1]
    if kept.ended_from is not None:
        span = Window(kept.ended_from, LAST_DAY) if can_be_suspected(market) else None
    elif batch.difference is None and kept.written.version is not None:
        span = find_suspect_span(batch, kept.written.days, before)
    else:
        span = None
    if span is not None:
        suspect_splits(connection, market, batch.market_id, span, run.run_id)


def _join_good(pages: Iterable[BarPage]) -> pd.DataFrame:
    frames = [page.validated.good for page in pages if len(page.validated.good)]
    return pd.concat(frames, ignore_index=True) if frames else build_empty_bar_frame()


def _read_coverages(connection: Connection, market_id: int) -> Coverages:
    found = read_coverage(connection, [market_id])
    return {interval: coverage for (_, interval), coverage in found.items()}


def _apply_pages(request: Request, batch: BarBatch, before: Coverages) -> Coverages:
    provider, market = batch.route
    terms = {interval: provider.describe_history(market, interval) for interval in market.intervals}
    after = dict(before)
    for interval in before.keys() & terms.keys():
        after[interval] = adopt_parsing(before[interval], terms[interval].parsing)
    for page in batch.pages:
        interval, lag = page.request.interval, terms[page.request.interval].publication_lag
        if page.request.purpose == TRACE and page.error is not None:
            continue  # It was asked for to compare what is stored: nothing is missing.
        known = after.get(interval, Coverage(parsing=terms[interval].parsing))
        after[interval] = _apply_page(known, page, market.calendar, lag, request.asked_at)
    for interval in after.keys() & terms.keys():
        after[interval] = lose_reach(after[interval], find_earliest(terms[interval], request))
    return after


def add_inserted(coverages: Coverages, written: BarWriteResult) -> Coverages:
    """Return coverages that have counted the new bars in."""
    return {
        interval: replace(coverage, bars=coverage.bars + written.inserted.get(interval, 0))
        for interval, coverage in coverages.items()
    }


def _apply_page(
    known: Coverage, page: BarPage, calendar: str, lag: timedelta, asked_at: datetime
) -> Coverage:
    request = page.request
    if page.error is not None:
        failed = apply_failure(known, request.window, asked_at, page.error, page.status)
        return skip_turn(failed, request.window, page.now) if request.is_turn else failed
    rejected = page.validated.rejected
    refused = rejected.loc[rejected["interval"] == request.interval.value, "open_time"]
    good = page.validated.good
    bars = good[good["interval"] == request.interval.value]
    answer = FetchResult(request.window, bars, refused, page.now, asked_at, request.is_turn)
    known = renew_spans(known, request.interval, calendar, request.window, bars)
    return apply_fetch(known, request.interval, calendar, lag, answer)


def _write_coverages(
    connection: Connection, run: Run, batch: BarBatch, before: Coverages, after: Coverages
) -> None:
    for interval, coverage in after.items():
        known = before.get(interval, Coverage())
        answered = [
            page.asked_at
            for page in batch.pages
            if page.request.interval is interval and page.error is None
        ]
        if coverage == known and not answered:
            continue
        key = (batch.market_id, interval)
        refreshed_at = max(answered, default=None)
        write_coverage(connection, key, known, coverage, refreshed_at, run.run_id)


def _decide_result(
    run: Run,
    batch: BarBatch,
    written: BarWriteResult,
    after: Coverages,
    restating: str | None,
    suspicion: str | None,
) -> BatchResult:
    progress, window = batch.progress, run.request.window
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
    reasons += [note for note in (restating, suspicion) if note]
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
    reason = shorten_reason(reasons)
    return BatchResult(written.counts, outcome, reason, len(left), quarantined, written.derived)


def _describe_batch(
    batch: BarBatch,
    written: BarWriteResult,
    result: BatchResult,
    before: Coverages,
    after: Coverages,
) -> dict[str, Any]:
    progress = batch.progress
    spikes = [find_spikes(page.validated.good) for page in batch.pages if len(page.validated.good)]
    return {
        "requested": progress.requested,
        "received": progress.received,
        **describe_counts(written.counts, written.derived),
        "quarantined": result.quarantined,
        "spikes": sum(map(len, spikes)),
        "holes_left": result.holes_left,
        "calls": progress.calls,
        "throttled_calls": progress.throttled,
        "seconds": progress.seconds,
        "watermark_before": _find_watermark(before),
        "watermark_after": _find_watermark(after),
        "first_version": written.version,
        "last_version": written.last_version or written.version,
        "outcome": result.outcome,
        "reason": result.reason,
        "assumed": batch.route[1].assumed,
    }


def _find_watermark(coverages: Coverages) -> datetime | None:
    return max(filter(None, (known.watermark for known in coverages.values())), default=None)


def _report_table(connection: Connection, run: Run, batch: BarBatch, result: BatchResult) -> None:
    # One failed market of many makes a run partial; a batch that is not the last says nothing yet.
    landed = "ok" if result.outcome == "ok" or not batch.is_last else "partial"
    rows = result.counts + result.derived
    add_table_receipt(connection, run, market_aggregate.name, rows, landed)
