"""The claims of a run: markets are claimed, read and planned many at a time, and kept together."""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from threading import Event, Lock

import numpy as np
from sqlalchemy import Connection, Engine

from market_pipeline.domain.columns import BarColumns
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.errors import SupersededError
from market_pipeline.domain.grids import to_micros
from market_pipeline.domain.planning import FetchRequest
from market_pipeline.ingestion.batches import ClaimedMarket, Coverages, MarketStopped
from market_pipeline.ingestion.plan import plan_market
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import Route
from market_pipeline.storage.bars.events import read_left_open
from market_pipeline.storage.bars.stored import SeriesSpan, read_spans
from market_pipeline.storage.coverage.ledger import read_coverage
from market_pipeline.storage.runs.claims import (
    explain_timeout,
    give_back_claims,
    renew_claims,
    take_claims,
)

CLAIM_TIME = timedelta(minutes=2)
CLAIM_PATIENCE = timedelta(minutes=10)
MARKETS_AT_ONCE = 200
_RENEW_SECONDS = 20.0
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 1.0
_MOST_OVERLAP_BARS = 200


class HeldClaims:
    """The tokens that a run holds; whoever is about to ask a provider keeps all of them alive."""

    def __init__(self, engine: Engine) -> None:
        """Begin with none."""
        self._engine, self._lock = engine, Lock()
        self._tokens: dict[int, int] = {}
        self._lost: dict[int, SupersededError] = {}
        self._renewed_at = time.monotonic()

    def add(self, tokens: Mapping[int, int]) -> None:
        """Hold more."""
        with self._lock:
            self._tokens |= tokens

    def drop(self, market_ids: Iterable[int]) -> None:
        """Hold some no more."""
        with self._lock:
            for market_id in market_ids:
                self._tokens.pop(market_id, None)

    def release(self) -> None:
        """Give back those that are still held."""
        with self._lock:
            give_back_claims(self._engine, self._tokens)

    def keep(self, market_id: int) -> None:
        """Renew all claims from time to time, in one statement.

        Raises:
            SupersededError: Another run took this market.
        """
        with self._lock:
            if self._tokens and time.monotonic() - self._renewed_at >= _RENEW_SECONDS:
                self._renewed_at = time.monotonic()
                lost = renew_claims(self._engine, self._tokens, CLAIM_TIME)
                self._lost |= lost
                self._tokens = {k: v for k, v in self._tokens.items() if k not in lost}
            if market_id in self._lost:
                raise self._lost[market_id]


class MarketQueue:
    """A run's markets, each claimed before it is handed out; safe to share between threads.

    One that another run holds comes last, and is waited for by who has nothing else to do.

    Args:
        engine: The database.
        run: The run.
        routes: The markets, by market_id.
        claims: Takes the tokens in.
        stop: Ends every wait when it is set.
        at_once: How many are claimed together.
    """

    def __init__(
        self,
        engine: Engine,
        run: Run,
        routes: Mapping[int, Route],
        claims: HeldClaims,
        stop: Event,
        at_once: int = MARKETS_AT_ONCE,
    ) -> None:
        self._at_once = at_once
        self._engine, self._run, self._claims, self._stop = engine, run, claims, stop
        self._todo, self._busy = deque(routes.items()), deque[tuple[int, Route]]()
        self._ready: deque[ClaimedMarket] = deque()
        self._lock = Lock()
        self._waits_until: float | None = None

    def take(self) -> ClaimedMarket | MarketStopped | None:
        """Return the next market; None when there are no more."""
        pause = _PAUSE_SECONDS
        while not self._stop.is_set():
            with self._lock:
                if (item := self._find_next()) is not None:
                    return item
                if not self._busy:
                    return None
            self._stop.wait(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
        return None

    def _find_next(self) -> ClaimedMarket | MarketStopped | None:
        while not self._ready and self._todo:
            count = min(self._at_once, len(self._todo))
            self._claim([self._todo.popleft() for _ in range(count)])
        if self._ready:
            return self._ready.popleft()
        if not self._busy:
            return None
        count = min(self._at_once, len(self._busy))
        self._claim([self._busy.popleft() for _ in range(count)])
        return self._ready.popleft() if self._ready else self._give_up()

    def _claim(self, routes: Sequence[tuple[int, Route]]) -> None:
        found = claim_markets(self._engine, self._run, dict(routes))
        self._claims.add({held.market_id: held.token for held in found})
        self._ready.extend(found)
        taken = {held.market_id for held in found}
        self._busy.extend(pair for pair in routes if pair[0] not in taken)
        if found:
            self._waits_until = None

    def _give_up(self) -> MarketStopped | None:
        """Return a market that has been waited for long enough, if there is one."""
        if self._waits_until is None:
            self._waits_until = time.monotonic() + CLAIM_PATIENCE.total_seconds()
        if time.monotonic() < self._waits_until:
            return None
        market_id, route = self._busy.popleft()
        return MarketStopped(route, explain_timeout(self._engine, market_id, CLAIM_PATIENCE))


def claim_markets(engine: Engine, run: Run, routes: Mapping[int, Route]) -> list[ClaimedMarket]:
    """Return the markets that no other run holds, claimed, with all that their plan needs.

    Args:
        engine: The database.
        run: The run; it shows life as long as the claims count.
        routes: Provider and market, by market_id.
    """
    tokens = take_claims(engine, routes, run.run_id, CLAIM_TIME)
    ids = [market_id for market_id in routes if market_id in tokens]
    with engine.connect() as connection:
        coverages: dict[int, Coverages] = {market_id: {} for market_id in ids}
        for (market_id, interval), known in read_coverage(connection, ids).items():
            coverages[market_id][interval] = known
        left_open = read_left_open(connection, ids)
        claimed = [
            ClaimedMarket(routes[one], one, tokens[one], coverages[one], left_open[one])
            for one in ids
        ]
        _plan_ahead(claimed, run)
        _read_overlaps(connection, claimed)
    return claimed


def _plan_ahead(claimed: Sequence[ClaimedMarket], run: Run) -> None:
    """Plan the markets without a difference; of the others a page tells what comes next."""
    for held in claimed:
        if held.left_open.difference is None:
            held.plan = plan_market(held.route, held.coverages, run.request)


def _read_overlaps(connection: Connection, claimed: Sequence[ClaimedMarket]) -> None:
    """Read the few stored bars that are asked for again, of all markets in one statement."""
    wanted = {held.market_id: _list_overlapping(held) for held in claimed}
    spans = [
        SeriesSpan(market_id, request.interval, request.window)
        for market_id, requests in wanted.items()
        for request in requests
    ]
    if not spans:
        return
    bars, owners = read_spans(connection, spans)
    order = np.lexsort((bars.open_time, owners))
    bars, owners = bars.take(order), owners[order]
    for held in claimed:
        first, last = np.searchsorted(owners, [held.market_id, held.market_id + 1])
        its = bars.take(slice(int(first), int(last)))
        held.overlaps = {request: _cut(its, request) for request in wanted[held.market_id]}


def _list_overlapping(held: ClaimedMarket) -> list[FetchRequest]:
    """Return the short requests; what a long one meets is read when it has been answered."""
    if held.plan is None:
        return []
    return [
        request
        for request in held.plan.requests
        if request.bars <= _MOST_OVERLAP_BARS
        and held.coverages.get(request.interval, Coverage()).settled
    ]


def _cut(bars: BarColumns, request: FetchRequest) -> BarColumns:
    start, end = to_micros(request.window.start), to_micros(request.window.end)
    is_its = (bars.interval == request.interval.value) & bars.is_final
    return bars.take(is_its & (start <= bars.open_time) & (bars.open_time < end))
