"""All markets of a run at once: workers fetch while waves of what they fetched are committed."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from threading import Condition, Event

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from market_pipeline.domain.errors import PipelineError
from market_pipeline.ingestion.batches import BarBatch, ClaimedMarket, Item, MarketStopped
from market_pipeline.ingestion.claims import MARKETS_AT_ONCE, HeldClaims, MarketQueue
from market_pipeline.ingestion.commit import commit_wave
from market_pipeline.ingestion.fetch import MarketFetch
from market_pipeline.ingestion.outcomes import Landed
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import Route
from market_pipeline.observability.logs import log_context
from market_pipeline.observability.tracing import span
from market_pipeline.providers.rate_limiter import use_limiter
from market_pipeline.settings import read_fetch_workers
from market_pipeline.storage.bulk.upsert import WriteCounts
from market_pipeline.storage.markets.registration import ensure_markets
from market_pipeline.storage.runs.budget import DatabaseRateLimiter, read_budget_limits
from market_pipeline.storage.runs.claims import hold_liveness_lock
from market_pipeline.storage.server.watchdog import WATCHDOG
from market_pipeline.storage.tables import market_aggregate

# Shorter than a claim holds: a market whose provider has no budget left is given up for now.
GATE_PATIENCE = timedelta(seconds=60)
_WAIT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class WaveLimits:
    """When a wave is committed: as soon as one of these is reached, or nothing more comes.

    Attributes:
        markets: How many it may hold. rows: How many bars, and how many may wait besides.
        seconds: How long it may gather after the first.
    """

    markets: int = 250
    rows: int = 100_000
    seconds: float = 0.5


@dataclass(frozen=True)
class BarStream:
    """The bars of a run, wave by wave; nothing is fetched before it is iterated."""

    engine: Engine
    run: Run
    routes: Sequence[Route]
    limits: WaveLimits = WaveLimits()

    def __iter__(self) -> Iterator[list[Landed]]:
        """Yield what became of each wave, once it is committed."""
        stop = Event()
        ready = _ReadyItems(self.limits, stop)
        claims = HeldClaims(self.engine)
        with (
            hold_liveness_lock(self.engine, self.run.run_id),
            ThreadPoolExecutor(read_fetch_workers(), thread_name_prefix="fetch") as pool,
        ):
            work = self._begin(pool, claims, ready, stop)
            try:
                while wave := ready.take():
                    landed = self._commit(wave)
                    claims.drop(_list_ended(wave))
                    yield landed
                for future in work:
                    future.result()
            finally:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                # A database that is away frees them itself when it sees this session end.
                with suppress(OperationalError):
                    claims.release()

    def _commit(self, wave: Sequence[Item]) -> list[Landed]:
        with span("upsert", table=market_aggregate.name, markets=len(wave)) as handle:
            landed = commit_wave(self.engine, self.run, wave)
            counts = sum((one.result.counts + one.result.derived for one in landed), WriteCounts())
            handle.set_attributes(**counts.describe())
        return landed

    def _begin(
        self, pool: ThreadPoolExecutor, claims: HeldClaims, ready: "_ReadyItems", stop: Event
    ) -> list["Future[None]"]:
        is_default = self.run.request.is_default_routing
        ids = ensure_markets(self.engine, [market for _, market in self.routes], is_default)
        routes = dict(zip(ids, self.routes, strict=True))
        limiter = make_limiter(self.engine, self.routes, stop)
        workers = min(read_fetch_workers(), len(routes))
        at_once = _choose_claimed(limiter, workers)
        queue = MarketQueue(self.engine, self.run, routes, claims, stop, at_once)
        ready.expect(workers)
        task = _Worker(self.engine, self.run, queue, claims, limiter, ready, stop)
        return [pool.submit(copy_context().run, task.work) for _ in range(workers)]


@dataclass(frozen=True, slots=True)
class _Worker:
    """Fetches one market after the other."""

    engine: Engine
    run: Run
    queue: MarketQueue
    claims: HeldClaims
    limiter: DatabaseRateLimiter
    ready: "_ReadyItems"
    stop: Event

    def work(self) -> None:
        """Fetch until no market is left, or the run stops."""
        try:
            while (found := self.queue.take()) is not None and not self.stop.is_set():
                if isinstance(found, MarketStopped):
                    self.ready.put(found)
                else:
                    self._fetch(found)
        finally:
            self.ready.end()

    def _fetch(self, held: ClaimedMarket) -> None:
        provider, market = held.route
        fetch = MarketFetch(
            self.engine, self.run.request, held, self.claims, self.limiter.limits[provider.name]
        )
        try:
            about = log_context(provider=provider.name, market=market.symbol)
            with about, use_limiter(self.limiter):
                for batch in fetch:
                    self.ready.put(batch)
                    if self.stop.is_set():
                        return
        except PipelineError as error:
            self.ready.put(MarketStopped(held.route, error, held.token))


class _ReadyItems:
    """What was fetched and waits for its transaction, bounded in bars."""

    def __init__(self, limits: WaveLimits, stop: Event) -> None:
        self._limits, self._stop = limits, stop
        self._items, self._rows, self._workers = deque[Item](), 0, 0
        self._changed = Condition()

    def expect(self, workers: int) -> None:
        """Say how many will put something in."""
        self._workers = workers

    def put(self, item: Item) -> None:
        """Hand over; waits while enough is there already."""
        with self._changed:
            while self._items and self._rows >= self._limits.rows and not self._stop.is_set():
                self._changed.wait(_WAIT_SECONDS)
            self._items.append(item)
            self._rows += item.rows
            self._changed.notify_all()

    def end(self) -> None:
        """Say that one of those who put something in has no more."""
        with self._changed:
            self._workers -= 1
            self._changed.notify_all()

    def take(self) -> list[Item]:
        """Return the next wave; none when nothing more comes."""
        WATCHDOG.insist_on_ending()
        with self._changed:
            while not self._items and self._workers:
                self._changed.wait(_WAIT_SECONDS)
                WATCHDOG.insist_on_ending()
            self._gather()
            return self._pick()

    def _gather(self) -> None:
        end = time.monotonic() + self._limits.seconds
        while self._workers and not self._is_full():
            left = end - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _is_full(self) -> bool:
        return len(self._items) >= self._limits.markets or self._rows >= self._limits.rows

    def _pick(self) -> list[Item]:
        """Take out what fits; the second batch of a market waits for the next wave."""
        wave: dict[Route, Item] = {}
        rows = 0
        for _ in range(len(self._items)):
            item = self._items.popleft()
            is_over = len(wave) >= self._limits.markets or rows >= self._limits.rows
            if item.route in wave or is_over:
                self._items.append(item)
            else:
                wave[item.route] = item
                rows += item.rows
        self._rows -= rows
        self._changed.notify_all()
        return list(wave.values())


def _list_ended(wave: Sequence[Item]) -> list[int]:
    return [item.market_id for item in wave if isinstance(item, BarBatch) and item.is_last]


def _choose_claimed(limiter: DatabaseRateLimiter, workers: int) -> int:
    """Return how many markets are claimed together: what is asked for within a minute or so."""
    rates = [limit.calls_per_minute for limit in limiter.limits.values()]
    slowest = min((rate for rate in rates if rate is not None), default=MARKETS_AT_ONCE)
    return max(workers, min(int(slowest), MARKETS_AT_ONCE))


def make_limiter(
    engine: Engine, routes: Sequence[Route], stop: Event | None = None
) -> DatabaseRateLimiter:
    """Return the limiter before the providers of some markets, shared with all other processes.

    Args:
        engine: Where the budget is kept.
        routes: Provider and market.
        stop: Ends every wait when it is set.
    """
    limits = read_budget_limits(provider for provider, _ in routes)
    pause = stop or Event()
    return DatabaseRateLimiter(
        engine, limits, GATE_PATIENCE, sleep=lambda seconds: _wait(pause, seconds)
    )


def _wait(stop: Event, seconds: float) -> None:
    stop.wait(seconds)
