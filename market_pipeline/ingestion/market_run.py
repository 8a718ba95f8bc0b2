"""One market's part of a run: claim it, plan, ask page by page, hand over what came.

Not here: the transaction that a batch lands in (``write``), and the other markets (``stream``).
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

import numpy as np
import pandas as pd
from sqlalchemy import Engine

from market_pipeline.domain.budgets import BudgetLimit
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.grids import Micros, find_grid
from market_pipeline.domain.planning import RETRY, VERIFY, Ask
from market_pipeline.domain.settling import find_known
from market_pipeline.domain.splits import find_split_ratio
from market_pipeline.ingestion.batches import BarBatch, Progress
from market_pipeline.ingestion.fetching import Page, fetch_page
from market_pipeline.ingestion.planning import Coverages, plan_market, plan_reload
from market_pipeline.ingestion.registration import ensure_market
from market_pipeline.ingestion.request import Request, Route
from market_pipeline.providers.gate import CountingGate, current_gate, use_gate
from market_pipeline.storage.budget import count_verifications_left, note_verifications
from market_pipeline.storage.claims import renew_claim, wait_for_claim
from market_pipeline.storage.coverage import read_coverage
from market_pipeline.storage.events import has_open_event
from market_pipeline.storage.queries import read_bars

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
        coverages, is_rescaled = self._read_state(claimed.market_id)
        asks = () if is_rescaled else self._choose_asks(coverages)
        waiting: list[Page] = []
        for page in self._iterate_pages(claimed, asks, coverages):
            ratio = self._find_split(claimed.market_id, page, coverages.get(page.ask.interval))
            if ratio is not None:
                is_rescaled = True
                yield replace(claimed, split_ratio=ratio)
                break
            waiting.append(page)
            if _is_full(waiting):
                yield replace(claimed, pages=tuple(waiting))
                waiting = []
        if is_rescaled:
            yield from self._iterate_reload(claimed, coverages)
        else:
            yield replace(claimed, pages=tuple(waiting), is_last=True)

    def _iterate_reload(self, claimed: BarBatch, coverages: Coverages) -> Iterator[BarBatch]:
        """Yield the whole market again: old and new scale must not stand side by side."""
        waiting: list[Page] = []
        asks, is_whole = plan_reload(self.route, coverages, self.request), True
        for page in self._iterate_pages(claimed, asks, coverages):
            is_whole &= not self._count_absent(page, coverages.get(page.ask.interval))
            waiting.append(page)
            if _is_full(waiting):
                yield replace(claimed, pages=tuple(waiting))
                waiting = []
        is_whole &= not claimed.progress.failures
        yield replace(claimed, pages=tuple(waiting), is_last=True, ends_reload=is_whole)

    def _count_absent(self, page: Page, known: Coverage | None) -> int:
        """Return how many known bars did not come back: they keep the old scale."""
        part = _cut_known(page, self.route[1].calendar, known)
        came = pd.DatetimeIndex(page.judged.good["open_time"]).as_unit("us").asi8
        return int((~np.isin(part, came)).sum())

    def _choose_asks(self, coverages: Coverages) -> tuple[Ask, ...]:
        """Return what is needed, then old holes and verification while the budget has a share."""
        plan = plan_market(self.route, coverages, self.request)
        spare = (*plan.retries, *plan.verifications)
        if not spare:
            return plan.asks
        left = count_verifications_left(self.engine, self.route[0].name, self.limit)
        return (*plan.asks, *spare[:left])

    def _iterate_pages(
        self, claimed: BarBatch, asks: Iterable[Ask], coverages: Coverages
    ) -> Iterator[Page]:
        provider, market = self.route
        for ask in asks:
            most = 1 if ask.purpose == VERIFY else MOST_FAILURES
            if len(claimed.progress.failures) >= most:
                return
            renew_claim(self.engine, claimed.market_id, claimed.token, CLAIM_TIME)
            gate = CountingGate(current_gate())
            with use_gate(gate):
                page = fetch_page(provider, market, ask, self.request.now)
            page = _doubt_silence(page, market.calendar, coverages.get(ask.interval))
            claimed.progress.count_page(page, gate.calls, gate.throttled)
            if ask.purpose in (RETRY, VERIFY) and not self.limit.is_open:
                note_verifications(self.engine, provider.name, gate.calls)
            yield page

    def _read_state(self, market_id: int) -> tuple[Coverages, bool]:
        with self.engine.connect() as connection:
            found = read_coverage(connection, [market_id])
            is_rescaled = has_open_event(connection, market_id)
        return {interval: coverage for (_, interval), coverage in found.items()}, is_rescaled

    def _find_split(self, market_id: int, page: Page, known: Coverage | None) -> float | None:
        """Compare with stored final bars, if the answer can have any."""
        if page.judged.good.empty or not len(_cut_known(page, self.route[1].calendar, known)):
            return None
        window = page.ask.window
        with self.engine.connect() as connection:
            stored = read_bars(connection, market_id, page.ask.interval, window.start, window.end)
        return find_split_ratio(stored[stored["is_final"]], page.judged.good)


def _is_full(pages: list[Page]) -> bool:
    return sum(page.received for page in pages) >= BATCH_BARS


def _doubt_silence(page: Page, calendar: str, known: Coverage | None) -> Page:
    """Turn an empty answer about a span that has bars into a failure: it had them before."""
    if page.error is not None or page.received:
        return page
    stored = len(_cut_known(page, calendar, known))
    if not stored:
        return page
    return replace(
        page, error=f"the provider has no bars in this window, of which {stored} are stored"
    )


def _cut_known(page: Page, calendar: str, known: Coverage | None) -> Micros:
    """Return where the bars open that are stored, final, and within what was asked for."""
    part = find_grid(calendar, page.ask.interval, page.ask.window).cut(page.ask.window)
    return part.opens[find_known(known or Coverage(), part)]
