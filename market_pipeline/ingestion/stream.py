"""All markets of a run at once: workers fetch while the consumer of the stream commits."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from queue import Full, Queue
from threading import Event
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from market_pipeline.domain.errors import PipelineError, SupersededError
from market_pipeline.ingestion.batches import BarBatch
from market_pipeline.ingestion.market_run import MarketRun
from market_pipeline.ingestion.request import Request, Route
from market_pipeline.observability.logs import log_context
from market_pipeline.providers.rate_limiter import use_limiter
from market_pipeline.storage.runs.budget import DatabaseRateLimiter, read_budget_limits
from market_pipeline.storage.runs.claims import hold_liveness_lock, release_run_claims

WORKERS = 4
# Shorter than a claim holds: a market whose provider has no budget left is given up for now.
GATE_PATIENCE = timedelta(seconds=60)
_WAIT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class MarketStopped:
    """A market that gave no batch, and why."""

    route: Route
    error: PipelineError

    @property
    def is_superseded(self) -> bool:
        """Whether another run does this market's work."""
        return isinstance(self.error, SupersededError)


Item = BarBatch | MarketStopped


@dataclass(frozen=True)
class BarStream:
    """The batches of a run; at most a few wait in memory for their transaction."""

    engine: Engine
    run_id: UUID
    request: Request
    routes: Sequence[Route]

    def __iter__(self) -> Iterator[Item]:
        """Yield batches as they come; those of one market in their order."""
        ready: Queue[Item | None] = Queue(maxsize=WORKERS)
        stop = Event()
        with (
            hold_liveness_lock(self.engine, self.run_id),
            ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="fetch") as pool,
        ):
            limiter = make_limiter(self.engine, self.routes, stop)
            work = [
                pool.submit(copy_context().run, self._work, limiter, route, ready, stop)
                for route in self.routes
            ]
            try:
                yield from _drain(ready, work)
            finally:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                # A database that is away frees them itself when it sees this session end.
                with suppress(OperationalError):
                    release_run_claims(self.engine, self.run_id)

    def _work(
        self, limiter: DatabaseRateLimiter, route: Route, ready: "Queue[Item | None]", stop: Event
    ) -> None:
        limit = limiter.limits[route[0].name]
        try:
            provider, market = route
            about = log_context(provider=provider.name, market=market.symbol)
            with about, use_limiter(limiter):
                for batch in MarketRun(self.engine, self.run_id, self.request, route, limit):
                    _put_item(batch, ready, stop)
                    if stop.is_set():
                        return
        except PipelineError as error:
            _put_item(MarketStopped(route, error), ready, stop)
        finally:
            _put_item(None, ready, stop)


def _drain(ready: "Queue[Item | None]", work: Sequence["Future[None]"]) -> Iterator[Item]:
    """Yield until every worker has said that it is done; what one did not expect is raised."""
    left = len(work)
    while left:
        item = ready.get()
        if item is None:
            left -= 1
        else:
            yield item
    for future in work:
        future.result()


def _put_item(item: Item | None, ready: "Queue[Item | None]", stop: Event) -> None:
    while not stop.is_set():
        try:
            ready.put(item, timeout=_WAIT_SECONDS)
        except Full:
            continue
        return


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
