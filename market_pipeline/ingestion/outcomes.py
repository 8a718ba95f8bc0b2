"""The outcome of a batch: how its market stands, and what its receipt says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.spikes import find_spikes
from market_pipeline.domain.validation import NOT_A_SESSION
from market_pipeline.ingestion.bar_writing import BarWriteResult
from market_pipeline.ingestion.batches import BarBatch, Coverages, Item
from market_pipeline.ingestion.plan import describe_cut
from market_pipeline.ingestion.receipts import Run, describe_counts, shorten_reason
from market_pipeline.storage.bulk.upsert import WriteCounts


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


def decide_result(run: Run, batch: BarBatch, kept: Kept, suspicion: str | None) -> BatchResult:
    """Return how a market stands after a batch, with everything that went wrong in one line."""
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


def describe_batch(batch: BarBatch, kept: Kept, result: BatchResult) -> dict[str, Any]:
    """Return what a batch adds to its market's receipt."""
    progress, written = batch.progress, kept.written
    spikes = [find_spikes(page.validated.good).sum() for page in batch.pages]
    return {
        "requested": progress.requested,
        "received": batch.rows,
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
        "claim_token": batch.held.token,
        "assumed": batch.route[1].assumed,
    }


def _find_watermark(coverages: Mapping[Interval, Coverage]) -> datetime | None:
    return max(filter(None, (known.watermark for known in coverages.values())), default=None)
