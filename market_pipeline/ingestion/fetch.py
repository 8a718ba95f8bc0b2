"""The part of one market in a run: asks for page after page, and gives batches.

Not here: what is asked for (``plan``), the claims (``claims``), the transaction (``commit``), and
the other markets (``drive``).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pandas as pd
from sqlalchemy import Engine

from market_pipeline.domain.budgets import BudgetLimit
from market_pipeline.domain.columns import NO_BARS, read_frame_columns
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.errors import ProviderError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.parsing import adopt_parsing
from market_pipeline.domain.planning import RETRY, VERIFY, FetchRequest
from market_pipeline.domain.records import Market
from market_pipeline.ingestion.batches import BarBatch, BarPage, ClaimedMarket, Progress
from market_pipeline.ingestion.claims import HeldClaims
from market_pipeline.ingestion.plan import plan_market
from market_pipeline.ingestion.request import Request
from market_pipeline.ingestion.tracing import DifferenceWatch
from market_pipeline.ingestion.validate import leave_older_bars, validate_answer
from market_pipeline.observability.logs import get_logger
from market_pipeline.observability.tracing import span
from market_pipeline.providers.base import Provider
from market_pipeline.providers.rate_limiter import CallCounter, current_limiter, use_limiter
from market_pipeline.storage.runs.budget import count_verifications_left, note_verifications

logger = get_logger(__name__)
BATCH_BARS = 20_000
MOST_FAILURES = 3


@dataclass(frozen=True, slots=True)
class MarketFetch:
    """A claimed market whose provider is about to be asked.

    Attributes:
        engine: Where the ledgers are. request: What the run was asked. held: The market.
        claims: Of the whole run. limit: How often the provider may be asked.
    """

    engine: Engine
    request: Request
    held: ClaimedMarket
    claims: HeldClaims
    limit: BudgetLimit

    def __iter__(self) -> Iterator[BarBatch]:
        """Yield batches to commit in order; the last one gives the claim back.

        Raises:
            SupersededError: Another run took the market.
        """
        began, progress = time.monotonic(), Progress()
        for batch in self._iterate_batches(progress):
            progress.seconds = time.monotonic() - began
            yield replace(batch, progress=progress.copy())

    def _iterate_batches(self, progress: Progress) -> Iterator[BarBatch]:
        watch = self._open_watch()
        waiting: list[BarPage] = []
        for page in self._iterate_pages(progress, watch):
            waiting.append(page)
            # What is known of a difference is kept with every page that tells more of it.
            if watch.is_tracing or is_full(waiting):
                yield self._pack(waiting, watch)
                waiting = []
        yield replace(self._pack(waiting, watch), is_last=True)

    def _list_requests(self, watch: DifferenceWatch) -> Iterator[FetchRequest]:
        """Yield what is needed, then what a difference asks for; later ones follow from answers."""
        yield from self._choose_requests(watch)
        yield from watch.iterate_trace()
        yield from watch.iterate_reload()

    def _choose_requests(self, watch: DifferenceWatch) -> tuple[FetchRequest, ...]:
        """Return what is needed, then old holes and verification while the budget has a share."""
        plan = self.held.plan or plan_market(
            self.held.route, watch.coverages, self.request, watch.difference
        )
        spare = (*plan.retries, *plan.verifications)
        if not spare or self.limit.is_open:
            return (*plan.requests, *spare)
        left = count_verifications_left(self.engine, self.held.route[0].name, self.limit)
        return (*plan.requests, *spare[:left])

    def _iterate_pages(self, progress: Progress, watch: DifferenceWatch) -> Iterator[BarPage]:
        provider, market = self.held.route
        for request in self._list_requests(watch):
            failures = len(progress.failures)
            if failures >= MOST_FAILURES:
                return
            if failures and request.purpose == VERIFY:
                continue
            self.claims.keep(self.held.market_id)
            limiter = CallCounter(current_limiter())
            with use_limiter(limiter):
                page = fetch_page(provider, market, request, self.request.now)
            page = leave_older_bars(watch.review(page), watch.coverages.get(request.interval))
            progress.count_page(page, limiter.calls, limiter.throttled)
            if request.purpose in (RETRY, VERIFY) and not self.limit.is_open:
                note_verifications(self.engine, provider.name, limiter.calls)
            yield page

    def _open_watch(self) -> DifferenceWatch:
        found = self.held.coverages.items()
        coverages = {of: self._adopt_parsing(of, known) for of, known in found}
        return DifferenceWatch(self.engine, self.held, self.request, coverages)

    def _adopt_parsing(self, interval: Interval, known: Coverage) -> Coverage:
        """Set what an older parser has stored apart; the first batch's transaction keeps it so."""
        provider, market = self.held.route
        coverage = adopt_parsing(known, provider.describe_history(market, interval).parsing)
        if coverage is not known and coverage.older_parsings:
            logger.warning(
                "answers are read differently now: stored bars stay, and statistics across the "
                "change are NULL until `market-pipeline markets reload`",
                interval=interval.value,
            )
        return coverage

    def _pack(self, pages: Sequence[BarPage], watch: DifferenceWatch) -> BarBatch:
        batch = BarBatch(
            self.held,
            tuple(pages),
            difference=watch.difference,
            opens_event=not watch.is_stored,
            releases=watch.releases,
        )
        watch.note_stored()
        return batch


def fetch_page(provider: Provider, market: Market, request: FetchRequest, now: datetime) -> BarPage:
    """Ask and validate; an error of the provider becomes part of the page.

    Args:
        provider: The market's.
        market: Whose bars.
        request: Which.
        now: The run's clock (UTC).
    """
    asked_at, began = datetime.now(UTC), time.perf_counter()
    bars, error, status = NO_BARS, None, None
    about = {"provider": provider.name, "market": market.symbol, "interval": request.interval.value}
    try:
        with span("fetch", **about, purpose=request.purpose) as handle:
            answer = provider.fetch_bars(market, request.interval, request.window, now)
            bars = read_frame_columns(answer) if isinstance(answer, pd.DataFrame) else answer
            handle.set_attributes(bars=len(bars))
    except ProviderError as failure:
        error, status = str(failure), failure.status
        logger.warning("the provider failed", interval=request.interval.value, error=str(failure))
    seconds = time.perf_counter() - began
    validated = validate_answer(bars, market, now)
    return BarPage(request, validated, len(bars), now, asked_at, seconds, error, status)


def is_full(pages: Sequence[BarPage]) -> bool:
    """Tell whether pages are enough for a transaction."""
    return sum(page.received for page in pages) >= BATCH_BARS
