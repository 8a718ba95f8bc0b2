"""Asking providers, market by market: each answer becomes one judged batch."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pandas as pd

from market_pipeline.domain.bars import build_daily_bars
from market_pipeline.domain.errors import ProviderError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.judging import JudgedBars, judge_bars
from market_pipeline.domain.records import Market, PriceSnapshot, build_empty_bar_frame
from market_pipeline.domain.sessions import build_hourly_grid, read_sessions
from market_pipeline.ingestion.request import Request
from market_pipeline.providers.base import Provider

logger = logging.getLogger("market_pipeline.ingestion")
Route = tuple[Provider, Market]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_DAY = datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class BarBatch:
    """What one market's provider answered, judged.

    Attributes:
        market: Whose bars. judged: The bars, good and rejected. received: How many came.
        failures: What could not be fetched; empty when all was.
    """

    market: Market
    judged: JudgedBars
    received: int
    failures: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """``ok``, ``partial`` when something is missing, ``failed`` when nothing is usable."""
        if self.judged.good.empty:
            return "failed"
        return "partial" if self.failures or len(self.judged.rejected) else "ok"

    @property
    def reason(self) -> str | None:
        """What went wrong, in one line."""
        reasons = list(self.failures)
        if len(self.judged.rejected):
            counts = self.judged.rejected["rule"].value_counts()
            reasons += [f"{count} bars rejected: {rule}" for rule, count in counts.items()]
        if not reasons and self.judged.good.empty:
            reasons = ["the provider has no bars in this window"]
        return "; ".join(reasons)[:2_000] or None


@dataclass(frozen=True, slots=True)
class BarStream:
    """The batches of a run, fetched one by one while whoever drains it commits the one before."""

    routes: Sequence[Route]
    request: Request

    def __iter__(self) -> Iterator[BarBatch]:
        for provider, market in self.routes:
            yield collect_bars(provider, market, self.request)


@dataclass(frozen=True, slots=True)
class SnapshotBatch:
    """Live prices and the markets that gave none."""

    snapshots: list[PriceSnapshot] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def collect_bars(provider: Provider, market: Market, request: Request) -> BarBatch:
    """Fetch and judge every interval of one market; a failure keeps what came before it."""
    frames, failures = [build_empty_bar_frame()], []
    for interval in market.intervals:
        try:
            frames.append(provider.fetch_bars(market, interval, request.window, request.now))
        except ProviderError as error:
            failures.append(f"{interval}: {error}")
            logger.debug("%s %s: %s", market.symbol, interval, error)
    bars = _derive_days(pd.concat(frames, ignore_index=True), market)
    batch = BarBatch(market, _judge(bars, market, request), len(bars), tuple(failures))
    logger.debug("%s from %s: %d bars received", market.symbol, market.provider, len(bars))
    return batch


def collect_snapshots(routes: Sequence[Route], request: Request) -> SnapshotBatch:
    """Fetch live prices, one call a provider; one observed after the run's clock is left out."""
    batch = SnapshotBatch()
    markets: dict[str, list[Market]] = {}
    for provider, market in routes:
        markets.setdefault(provider.name, []).append(market)
    for provider in {route[0].name: route[0] for route in routes}.values():
        _collect_provider_snapshots(provider, markets[provider.name], request, batch)
    return batch


def _collect_provider_snapshots(
    provider: Provider, markets: list[Market], request: Request, batch: SnapshotBatch
) -> None:
    try:
        received = provider.fetch_snapshots(markets, request.now)
    except ProviderError as error:
        batch.failures.update({market.symbol: str(error) for market in markets})
        return
    usable = [
        one for one in received if one.observed_at <= request.now and 0 < one.price < float("inf")
    ]
    batch.snapshots.extend({one.market: one for one in usable}.values())
    silent = {market.symbol for market in markets} - {one.market.symbol for one in usable}
    batch.failures.update(dict.fromkeys(silent, "no price at or before the run's clock"))


def _derive_days(bars: pd.DataFrame, market: Market) -> pd.DataFrame:
    if Interval.DAY in market.intervals or bars.empty:
        return bars
    sessions = _read_sessions_around(bars, market)
    return pd.concat([bars, build_daily_bars(bars, sessions)], ignore_index=True)


def _judge(bars: pd.DataFrame, market: Market, request: Request) -> JudgedBars:
    sessions = _read_sessions_around(bars, market)
    return judge_bars(bars, request.now, build_hourly_grid(sessions))


def _read_sessions_around(bars: pd.DataFrame, market: Market) -> pd.DataFrame:
    """Return every session that a received bar can belong to, those beyond the window included."""
    if bars.empty:
        return read_sessions(market.calendar, EPOCH, EPOCH)
    first, last = bars["open_time"].min().to_pydatetime(), bars["open_time"].max().to_pydatetime()
    return read_sessions(
        market.calendar,
        max(first, EPOCH) - timedelta(days=2),
        min(last, LAST_DAY) + timedelta(days=2),
    )
