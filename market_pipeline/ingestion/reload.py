"""Reading a stored market again: the preview of cost and changes, and the reload itself.

Here: the plan, the sample, the marks and the loop. Not here: the dump that is made first
(``storage.markets.admin``), and the transaction of a batch (``write``).

The spans to be read again are first marked in the ledger, as if an older parser had read them. So
nothing is compared with them, no statistic mixes old and new bars, and a reload that was killed
continues where it stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine

from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.errors import PipelineError
from market_pipeline.domain.grids import find_grid, from_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.parsing import TO_READ_AGAIN, adopt_parsing, list_spans, retire_spans
from market_pipeline.domain.planning import RELOAD, FetchRequest
from market_pipeline.domain.ranges import intersect_windows, pack_windows, subtract_windows
from market_pipeline.domain.records import Window
from market_pipeline.domain.sessions import EPOCH
from market_pipeline.ingestion.batches import (
    BarBatch,
    BarPage,
    ClaimedMarket,
    MarketStopped,
    Progress,
)
from market_pipeline.ingestion.claims import CLAIM_PATIENCE, CLAIM_TIME
from market_pipeline.ingestion.commit import write_batches
from market_pipeline.ingestion.drive import make_limiter
from market_pipeline.ingestion.fetch import MOST_FAILURES, fetch_page, is_full
from market_pipeline.ingestion.outcomes import BatchResult
from market_pipeline.ingestion.receipts import Run, begin_receipt
from market_pipeline.ingestion.request import Request, Route
from market_pipeline.providers.rate_limiter import CallCounter, current_limiter, use_limiter
from market_pipeline.storage.bars.events import OpenDifference
from market_pipeline.storage.bars.stored import read_bars
from market_pipeline.storage.coverage.ledger import CoverageChange, read_coverage, write_coverages
from market_pipeline.storage.markets.lookup import read_market
from market_pipeline.storage.markets.registration import register_markets
from market_pipeline.storage.runs.claims import hold_claim, hold_market, renew_claim

TRIGGER = "reload"
SAMPLE_BARS = 200
FACTS = ("calendar", "quote", "price_basis")
_PRICES = ["open", "high", "low", "close"]


@dataclass(frozen=True, slots=True)
class Part:
    """What is to be read again of one interval.

    Attributes:
        interval: Of the bars.
        stored: Every span with stored final bars (UTC).
        reachable: What is to be read again. lost: What should be, and the provider has no more.
        requests: The requests, oldest first.
    """

    interval: Interval
    stored: tuple[Window, ...]
    reachable: tuple[Window, ...]
    lost: tuple[Window, ...]
    requests: tuple[FetchRequest, ...]


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """What a reload of a market would do.

    Attributes:
        route: Provider and market, as the provider describes it now.
        market_id: The stored market's key.
        parts: The finest interval first.
        facts: What is stored otherwise than the provider says now: old and new by name.
    """

    route: Route
    market_id: int
    parts: tuple[Part, ...]
    facts: Mapping[str, tuple[str, str]]

    @property
    def requests(self) -> tuple[FetchRequest, ...]:
        """All requests."""
        return tuple(request for part in self.parts for request in part.requests)


def plan_market_reload(
    connection: Connection, route: Route, market_id: int, request: Request
) -> ReloadPlan:
    """Return what a reload would read: what waits to be read again, else all that is stored.

    What waits was read by an older parser, or by a reload that did not end. When the market's facts
    have changed it is all that is stored.

    Args:
        connection: On the market tables; asks nobody else.
        route: Provider and market, as the provider describes it now.
        market_id: The stored market's key.
        request: Whose clocks count.

    Raises:
        PipelineError: The market is deactivated.
    """
    facts = _find_changed_facts(connection, route, market_id)
    found = read_coverage(connection, [market_id])
    coverages = {interval: known for (_, interval), known in found.items()}
    parts = [
        _plan_part(route, interval, coverages[interval], request, is_whole=bool(facts))
        for interval in route[1].intervals
        if interval in coverages
    ]
    return ReloadPlan(route, market_id, tuple(parts), facts)


def _find_changed_facts(
    connection: Connection, route: Route, market_id: int
) -> dict[str, tuple[str, str]]:
    stored = read_market(connection, market_id)
    if not stored.is_active:
        raise PipelineError(
            f"{route[1].provider}:{route[1].symbol} is deactivated: `market-pipeline markets add` "
            "takes it back first"
        )
    facts = {name: (getattr(stored.record, name), getattr(route[1], name)) for name in FACTS}
    return {name: pair for name, pair in facts.items() if pair[0] != pair[1]}


def _plan_part(
    route: Route, interval: Interval, coverage: Coverage, request: Request, *, is_whole: bool
) -> Part:
    provider, market = route
    terms = provider.describe_history(market, interval)
    known = adopt_parsing(coverage, terms.parsing)
    reach = EPOCH if terms.reaches_back is None else request.asked_at - terms.reaches_back
    stored = [span.window for span in list_spans(known)]
    waiting = intersect_windows(known.older, [Window(reach, request.now)])
    wanted = known.older if waiting and not is_whole else stored
    reachable = intersect_windows(wanted, [Window(reach, request.now)])
    return Part(
        interval,
        tuple(stored),
        tuple(reachable),
        tuple(subtract_windows(wanted, reachable)),
        _build_requests(interval, market.calendar, reachable, terms.page),
    )


def _build_requests(
    interval: Interval, calendar: str, windows: Sequence[Window], page: Any
) -> tuple[FetchRequest, ...]:
    if not windows:
        return ()
    grid = find_grid(calendar, interval, Window(windows[0].start, windows[-1].end))
    parts = [
        Window(from_micros(grid.cut(part).opens[0]), part.end)
        for part in windows
        if grid.count(part)
    ]
    pages = pack_windows(parts, page)
    return tuple(
        FetchRequest(interval, window, RELOAD, grid.count(window))
        for window in pages
        if grid.count(window)
    )


def sample_changes(engine: Engine, plan: ReloadPlan, now: datetime) -> list[dict[str, Any]]:
    """Ask for the newest bars to be read again of each interval, and compare them with the stored.

    Returns:
        One row for each interval: ``compared``, ``would change``, ``did not come`` (bars),
        ``largest change`` of a close (a fraction), and ``error`` where nothing came.
    """
    with use_limiter(make_limiter(engine, [plan.route])):
        pages = [
            fetch_page(*plan.route, _cut_sample(part, plan.route[1].calendar), now)
            for part in plan.parts
            if part.requests
        ]
    with engine.connect() as connection:
        return [_compare(connection, plan.market_id, page) for page in pages]


def _cut_sample(part: Part, calendar: str) -> FetchRequest:
    last = part.requests[-1]
    grid = find_grid(calendar, part.interval, last.window)
    start = max(last.window.start, grid.step_back(last.window.end, SAMPLE_BARS))
    window = Window(start, last.window.end)
    return FetchRequest(part.interval, window, RELOAD, grid.count(window))


def _compare(connection: Connection, market_id: int, page: BarPage) -> dict[str, Any]:
    interval, window = page.request.interval, page.request.window
    stored = read_bars(connection, market_id, interval, window.start, window.end)
    stored = stored[stored["is_final"]]
    columns = ["open_time", *_PRICES]
    both = stored[columns].merge(
        page.validated.good.to_frame()[columns], on="open_time", suffixes=("", "_new")
    )
    came = both[[f"{name}_new" for name in _PRICES]].to_numpy()
    changes = abs(both["close_new"] / both["close"] - 1)
    return {
        "interval": interval.value,
        "compared": len(both),
        "would change": int((both[_PRICES].to_numpy() != came).any(axis=1).sum()),
        "largest change": float(changes.max()) if len(both) else None,
        "did not come": len(stored) - len(both),
        "error": page.error,
    }


def reload_market(engine: Engine, run: Run, route: Route, market_id: int) -> Iterator[BatchResult]:
    """Read a market again in its claim, and yield what became of each batch.

    The market's facts are replaced and what is to be read again is marked in the first transaction;
    each batch's transaction takes the mark off what came. Interrupted, it is done by another call.

    Raises:
        ClaimTimeoutError: Another run is fetching the market.
        SupersededError: Another run took it; what was committed stays.
    """
    with hold_market(engine, market_id, run.run_id, CLAIM_TIME, CLAIM_PATIENCE) as token:
        held = ClaimedMarket(route, market_id, token, {}, OpenDifference(0))
        requests = _mark_for_reload(engine, run, held)
        with use_limiter(make_limiter(engine, [route])):
            for batch in _iterate_batches(engine, run, held, requests):
                yield _write(engine, run, batch)


def _write(engine: Engine, run: Run, batch: BarBatch) -> BatchResult:
    (landed,) = write_batches(engine, run, [batch])
    if isinstance(landed.item, MarketStopped):
        raise landed.item.error
    return landed.result


def _mark_for_reload(engine: Engine, run: Run, held: ClaimedMarket) -> tuple[FetchRequest, ...]:
    """Mark what is to be read again, and return the requests for it."""
    with engine.begin() as connection:
        hold_claim(connection, held.market_id, held.token)
        begin_receipt(connection, run)
        plan = plan_market_reload(connection, held.route, held.market_id, run.request)
        if plan.facts:
            default = run.request.is_default_routing
            register_markets(connection, [held.route[1]], default, replace_facts=True)
        found = {key[1]: one for key, one in read_coverage(connection, [held.market_id]).items()}
        changes = []
        for part in plan.parts:
            before = found[part.interval]
            after = _retire(held.route, part, before, is_whole=bool(plan.facts))
            if after != before:
                key = (held.market_id, part.interval)
                changes.append(CoverageChange(key, before, after))
                found[part.interval] = after
        write_coverages(connection, changes, run.run_id)
    held.coverages = found
    return plan.requests


def _retire(route: Route, part: Part, coverage: Coverage, *, is_whole: bool) -> Coverage:
    parsing = route[0].describe_history(route[1], part.interval).parsing
    known = adopt_parsing(coverage, parsing)
    spans = part.stored if is_whole else part.reachable
    return retire_spans(known, subtract_windows(spans, known.older), TO_READ_AGAIN)


def _iterate_batches(
    engine: Engine, run: Run, held: ClaimedMarket, requests: Sequence[FetchRequest]
) -> Iterator[BarBatch]:
    progress, waiting = Progress(), list[BarPage]()
    for request in requests:
        if len(progress.failures) >= MOST_FAILURES:
            break
        renew_claim(engine, held.market_id, held.token, CLAIM_TIME)
        waiting.append(_fetch(run, held, progress, request))
        if is_full(waiting):
            yield BarBatch(held, tuple(waiting), progress.copy())
            waiting = []
    yield BarBatch(held, tuple(waiting), progress.copy(), is_last=True)


def _fetch(run: Run, held: ClaimedMarket, progress: Progress, request: FetchRequest) -> BarPage:
    limiter = CallCounter(current_limiter())
    with use_limiter(limiter):
        page = fetch_page(*held.route, request, run.request.now)
    progress.count_page(page, limiter.calls, limiter.throttled)
    return page
