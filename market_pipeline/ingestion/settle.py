"""The settlement of a batch: what its answers prove about the coverage of their market.

Everything here is pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from market_pipeline.domain.coverage import Coverage, find_gone, lose_reach
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.parsing import adopt_parsing, renew_spans
from market_pipeline.domain.planning import TRACE
from market_pipeline.domain.ranges import subtract_windows
from market_pipeline.domain.reconciliation import (
    FetchResult,
    apply_failure,
    apply_fetch,
    release_settled,
    skip_turn,
)
from market_pipeline.domain.records import Market, Window
from market_pipeline.ingestion.batches import BarBatch, BarPage, Coverages
from market_pipeline.ingestion.plan import find_earliest
from market_pipeline.ingestion.request import Request


@dataclass(frozen=True, slots=True)
class UnavailableBars:
    """What will never come of the bars that days or weeks are made of, by open_time (UTC).

    Attributes:
        gone: All of it. new: What this batch has brought to light.
    """

    gone: Sequence[Window] = ()
    new: Sequence[Window] = ()


NOTHING_ABSENT = UnavailableBars()


def settle_coverage(request: Request, batch: BarBatch) -> Coverages:
    """Return the coverage of a market after a batch; the caller counts the bars."""
    provider, market = batch.route
    terms = {interval: provider.describe_history(market, interval) for interval in market.intervals}
    after = _release(batch)
    for interval in after.keys() & terms.keys():
        after[interval] = adopt_parsing(after[interval], terms[interval].parsing)
    for page in batch.pages:
        interval, lag = page.request.interval, terms[page.request.interval].publication_lag
        if page.request.purpose == TRACE and page.error is not None:
            continue  # It was asked for to compare what is stored: nothing is missing.
        known = after.get(interval, Coverage(parsing=terms[interval].parsing))
        after[interval] = _apply_page(known, page, market.calendar, lag, request.asked_at)
    for interval in after.keys() & terms.keys():
        after[interval] = lose_reach(after[interval], find_earliest(terms[interval], request))
    return after


def _release(batch: BarBatch) -> Coverages:
    """Return the coverage that a batch's pages add to: what differs may be missing from now on."""
    before = batch.held.coverages
    if not batch.releases or batch.difference is None:
        return dict(before)
    released = {interval: trace.released for interval, trace in batch.difference.list_traces()}
    return {
        interval: release_settled(known, released.get(interval, ()))
        for interval, known in before.items()
    }


def _apply_page(
    known: Coverage, page: BarPage, calendar: str, lag: timedelta, asked_at: datetime
) -> Coverage:
    request = page.request
    if page.error is not None:
        failed = apply_failure(known, request.window, asked_at, page.error, page.status)
        return skip_turn(failed, request.window, page.now) if request.is_turn else failed
    rejected = page.validated.rejected.bars.of_interval(request.interval)
    bars = page.validated.good.of_interval(request.interval)
    answer = FetchResult(
        request.window, bars, rejected.open_time, page.now, asked_at, request.is_turn
    )
    known = renew_spans(known, request.interval, calendar, request.window, bars)
    return apply_fetch(known, request.interval, calendar, lag, answer)


def find_absence(
    market: Market, before: Mapping[Interval, Coverage], after: Mapping[Interval, Coverage]
) -> UnavailableBars:
    """Return what will never come of a market, by its coverage before and after a batch."""
    base = Interval.DAY if Interval.DAY in market.intervals else Interval.HOUR
    known, gone = (find_gone(coverage.get(base, Coverage())) for coverage in (before, after))
    if known == gone:
        return UnavailableBars(gone)
    return UnavailableBars(gone, subtract_windows(gone, known))


def add_inserted(
    coverages: Mapping[Interval, Coverage], inserted: Mapping[Interval, int]
) -> Coverages:
    """Return coverages that have counted new bars in."""
    return {
        interval: replace(coverage, bars=coverage.bars + inserted.get(interval, 0))
        for interval, coverage in coverages.items()
    }
