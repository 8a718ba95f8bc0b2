"""The part of one market in a run: claims it, plans, fetches page by page, and gives batches.

Not here: the transaction of a batch (``write``), and the other markets (``stream``).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Engine

from market_pipeline.domain.budgets import BudgetLimit
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.parsing import adopt_parsing
from market_pipeline.domain.planning import RETRY, VERIFY, FetchRequest
from market_pipeline.ingestion.batches import BarBatch, Progress
from market_pipeline.ingestion.fetching import BarPage, fetch_page, leave_older_bars
from market_pipeline.ingestion.planning import plan_market
from market_pipeline.ingestion.request import Request, Route
from market_pipeline.ingestion.tracing import DifferenceWatch
from market_pipeline.observability.logs import get_logger
from market_pipeline.providers.rate_limiter import CallCounter, current_limiter, use_limiter
from market_pipeline.storage.bars.events import read_difference
from market_pipeline.storage.coverage.ledger import read_coverage
from market_pipeline.storage.markets.registration import ensure_market
from market_pipeline.storage.runs.budget import count_verifications_left, note_verifications
from market_pipeline.storage.runs.claims import renew_claim, wait_for_claim

logger = get_logger(__name__)
CLAIM_TIME = timedelta(minutes=2)
CLAIM_PATIENCE = timedelta(minutes=10)
BATCH_BARS = 20_000
MOST_FAILURES = 3


@dataclass(frozen=True, slots=True)
class MarketRun:
    """A market that a run is about to claim.

    Attributes:
        engine: Where the ledgers are. run_id: The run. request: What it was asked.
        route: Provider and market. limit: How often the provider may be asked.
    """

    engine: Engine
    run_id: UUID
    request: Request
    route: Route
    limit: BudgetLimit

    def __iter__(self) -> Iterator[BarBatch]:
        """Yield batches to commit in order; the last one gives the claim back."""
        market_id = ensure_market(self.engine, self.route[1], self.request.is_default_routing)
        token = wait_for_claim(self.engine, market_id, self.run_id, CLAIM_TIME, CLAIM_PATIENCE)
        claimed = BarBatch(self.route, market_id, token, (), Progress())
        began = time.monotonic()
        for batch in self._iterate_batches(claimed):
            batch.progress.seconds = time.monotonic() - began
            yield replace(batch, progress=batch.progress.copy())

    def _iterate_batches(self, claimed: BarBatch) -> Iterator[BarBatch]:
        watch = self._open_watch(claimed.market_id)
        waiting: list[BarPage] = []
        for page in self._iterate_pages(claimed, watch):
            waiting.append(page)
            # What is known of a difference is kept with every page that tells more of it.
            if watch.is_tracing or _is_full(waiting):
                yield _pack(claimed, waiting, watch)
                waiting = []
        yield replace(_pack(claimed, waiting, watch), is_last=True)

    def _list_requests(self, watch: DifferenceWatch) -> Iterator[FetchRequest]:
        """Yield what is needed, then what a difference asks for; later ones follow from answers."""
        yield from self._choose_requests(watch)
        yield from watch.iterate_trace()
        yield from watch.iterate_reload()

    def _choose_requests(self, watch: DifferenceWatch) -> tuple[FetchRequest, ...]:
        """Return what is needed, then old holes and verification while the budget has a share."""
        plan = plan_market(self.route, watch.coverages, self.request, watch.difference)
        spare = (*plan.retries, *plan.verifications)
        if not spare:
            return plan.requests
        left = count_verifications_left(self.engine, self.route[0].name, self.limit)
        return (*plan.requests, *spare[:left])

    def _iterate_pages(self, claimed: BarBatch, watch: DifferenceWatch) -> Iterator[BarPage]:
        provider, market = self.route
        for request in self._list_requests(watch):
            failures = len(claimed.progress.failures)
            if failures >= MOST_FAILURES:
                return
            if failures and request.purpose == VERIFY:
                continue
            renew_claim(self.engine, claimed.market_id, claimed.token, CLAIM_TIME)
            limiter = CallCounter(current_limiter())
            with use_limiter(limiter):
                page = fetch_page(provider, market, request, self.request.now)
            page = leave_older_bars(watch.review(page), watch.coverages.get(request.interval))
            claimed.progress.count_page(page, limiter.calls, limiter.throttled)
            if request.purpose in (RETRY, VERIFY) and not self.limit.is_open:
                note_verifications(self.engine, provider.name, limiter.calls)
            yield page

    def _open_watch(self, market_id: int) -> DifferenceWatch:
        with self.engine.connect() as connection:
            found = read_coverage(connection, [market_id])
            left_open = read_difference(connection, market_id)
        coverages = {of: self._adopt_parsing(of, known) for (_, of), known in found.items()}
        return DifferenceWatch(
            self.engine, market_id, self.route, self.request, coverages, left_open
        )

    def _adopt_parsing(self, interval: Interval, known: Coverage) -> Coverage:
        """Set what an older parser has stored apart; the first batch's transaction keeps it so."""
        provider, market = self.route
        coverage = adopt_parsing(known, provider.describe_history(market, interval).parsing)
        if coverage is not known and coverage.older_parsings:
            logger.warning(
                "answers are read differently now: stored bars stay, and statistics across the "
                "change are NULL until `market-pipeline markets reload`",
                interval=interval.value,
            )
        return coverage


def _pack(claimed: BarBatch, pages: Sequence[BarPage], watch: DifferenceWatch) -> BarBatch:
    batch = replace(
        claimed,
        pages=tuple(pages),
        difference=watch.difference,
        opens_event=not watch.is_stored,
        releases=watch.releases,
    )
    watch.note_stored()
    return batch


def _is_full(pages: list[BarPage]) -> bool:
    return sum(page.received for page in pages) >= BATCH_BARS
