"""Mock provider: plausible prices for any symbol, without a network.

Each price is a pure function of the seed, the symbol and the moment (``mock_prices.py``). So the
same request has the same answer on any machine, however windows overlap.
``MOCK_FAULTS`` makes it misbehave on command: see ``mock_faults.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import numpy as np

from market_pipeline.domain.columns import BarColumns, build_columns, read_frame_columns
from market_pipeline.domain.errors import PermanentProviderError, SettingError
from market_pipeline.domain.grids import from_micros, to_micros
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import HistoryTerms, Market, PriceSnapshot, Window
from market_pipeline.domain.sessions import SessionTimes, read_session_times
from market_pipeline.domain.symbols import describe_symbol
from market_pipeline.providers.mock_faults import EMPTY_PAGE, FaultPlan, parse_faults
from market_pipeline.providers.mock_prices import (
    LEVELS,
    Columns,
    build_daily,
    build_hourly,
    build_paths,
    build_volumes,
    find_level,
    is_pair,
    split_by_length,
)
from market_pipeline.providers.mock_spoiling import refuse_call, scale_price, spoil_bars
from market_pipeline.providers.rate_limiter import admit
from market_pipeline.providers.snapshots import ask_each
from market_pipeline.settings import read_variable

HISTORY_START = datetime(1990, 1, 1, tzinfo=UTC)
CLOSED_AT_MOST = timedelta(days=10)
PAGES = {Interval.HOUR: timedelta(days=60), Interval.DAY: timedelta(days=1000)}


class MockProvider:
    """Serves every well-formed symbol: pairs around the clock, all else in New York's sessions.

    Args:
        environ: MOCK_SEED and MOCK_FAULTS are read.
    """

    name: ClassVar[str] = "mock"
    summary: ClassVar[str] = "Seeded, repeatable prices for any symbol; needs no network"
    homepage: ClassVar[str] = "https://en.wikipedia.org/wiki/Geometric_Brownian_motion"
    calls_per_minute: ClassVar[float | None] = None
    calls_per_month: ClassVar[int | None] = None

    def __init__(self, environ: Mapping[str, str]) -> None:
        text = read_variable("MOCK_SEED", environ)
        if not text.lstrip("-").isdecimal():
            raise SettingError(f"MOCK_SEED={text!r}: expected a whole number")
        self._seed = int(text)
        faults = parse_faults(read_variable("MOCK_FAULTS", environ))
        self._faults = FaultPlan(faults, self._seed)

    def explain_missing_settings(self) -> str | None:
        """Return None: nothing has to be set."""
        return None

    def list_symbols(self) -> tuple[str, ...]:
        """Return examples; any symbol is served."""
        return tuple(LEVELS)

    def find_market(self, symbol: str) -> Market | None:
        """Return a market for any symbol but one with a provider's prefix."""
        if ":" in symbol:
            return None
        description = describe_symbol(symbol)
        return Market(
            provider=self.name,
            symbol=symbol,
            provider_market_id=symbol,
            name=description.name,
            base=description.base,
            quote=description.quote,
            venue="mock",
            calendar=description.calendar,
            intervals=(Interval.HOUR, Interval.DAY),
        )

    def describe_history(self, market: Market, interval: Interval) -> HistoryTerms:
        """Return pages of some 1,000 bars; bars are out when they close."""
        del market  # all are served alike
        return HistoryTerms(page=PAGES[interval])

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> BarColumns:
        """Return a window's bars; the one running at ``now`` holds what happened until then.

        Raises:
            ProviderError: A fault asks for it, or the market has no bars of the interval.
        """
        if interval not in market.intervals:
            raise PermanentProviderError(self.name, f"{market.symbol} has no bars of {interval}")
        admit(self.name)
        faults = self._faults.draw(market.symbol, interval, window, now)
        refuse_call(market.symbol, faults)
        columns = self._build_window(market, interval, window, now)
        bars = _describe_bars(market.symbol, interval, columns, now)
        if not faults:
            return bars
        level = find_level(self._seed, market.symbol)
        return read_frame_columns(spoil_bars(bars.to_frame(), faults, level))

    def _build_window(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> Columns:
        start, end = to_micros(window.start), to_micros(window.end)
        first = max(window.start, HISTORY_START) - timedelta(days=1)
        sessions = _read_open_sessions(market.calendar, first, now)
        sessions = sessions.take(sessions.dates < end)
        columns = self._build_columns(market.symbol, interval, sessions, now)
        is_wanted = (columns["open_time"] >= start) & (columns["open_time"] < end)
        return {name: values[is_wanted] for name, values in columns.items()}

    def _build_columns(
        self, symbol: str, interval: Interval, sessions: SessionTimes, now: datetime
    ) -> Columns:
        """Return the columns of the sessions' bars, oldest first; times are UTC without a zone."""
        parts = [
            self._build_part(symbol, interval, part, now) for part in split_by_length(sessions)
        ] or [build_daily(sessions, np.empty((0, 1)), np.empty((0, 1)), now)]
        if len(parts) == 1:
            return parts[0]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        order = np.argsort(columns["open_time"])
        return {name: values[order] for name, values in columns.items()}

    def _build_part(
        self, symbol: str, interval: Interval, sessions: SessionTimes, now: datetime
    ) -> Columns:
        """Return the columns of sessions of equal length."""
        paths = build_paths(self._seed, symbol, sessions, now)
        volumes = build_volumes(self._seed, symbol, sessions, now)
        build = build_daily if interval is Interval.DAY else build_hourly
        return build(sessions, paths, volumes, now)

    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return the price at ``now``, or at the last close when the market is closed.

        Raises:
            ProviderError: Faults refuse every market; the last refusal, with the reason of each.
        """
        if markets:
            admit(self.name)
        return ask_each(markets, lambda market: self._fetch_snapshot(market, now))

    def _fetch_snapshot(self, market: Market, now: datetime) -> list[PriceSnapshot]:
        """Return the price as the faults leave it."""
        moment = Window(now, now + timedelta(microseconds=1))
        faults = self._faults.draw(market.symbol, None, moment, now)
        refuse_call(market.symbol, faults)
        snapshot = self._build_snapshot(market, now)
        if snapshot is None or any(fault.kind == EMPTY_PAGE for fault in faults):
            return []
        level = find_level(self._seed, market.symbol)
        return [replace(snapshot, price=scale_price(snapshot.price, faults, level))]

    def _build_snapshot(self, market: Market, now: datetime) -> PriceSnapshot | None:
        """Return the price at ``now``; None where there was no session before yesterday's now."""
        day_before = now - timedelta(days=1)
        sessions = _read_open_sessions(market.calendar, day_before - CLOSED_AT_MOST, now)
        earliest = len(_leave_open(sessions, day_before).opens) - 1
        if earliest < 0:
            return None
        sessions = sessions.take(slice(earliest, None))
        hours = self._build_columns(market.symbol, Interval.HOUR, sessions, now)
        before = sessions.take(slice(1))
        earlier = build_paths(self._seed, market.symbol, before, day_before)[0, -1]
        is_recent = hours["open_time"] >= to_micros(day_before)
        price = float(hours["close"][-1])
        return PriceSnapshot(
            market,
            min(now, from_micros(sessions.closes[-1])),
            price,
            volume_24h=float((hours["volume"] * hours["close"])[is_recent].sum()),
            change_24h_ratio=float(price / earlier - 1),
        )


def _read_open_sessions(calendar: str, start: datetime, now: datetime) -> SessionTimes:
    first = to_micros(max(start, HISTORY_START))
    sessions = read_session_times(calendar, first, to_micros(now))
    return _leave_open(sessions, now)


def _leave_open(sessions: SessionTimes, now: datetime) -> SessionTimes:
    """Return the sessions that had begun, on a date that had, at a moment."""
    moment = to_micros(now)
    return sessions.take((sessions.opens < moment) & (sessions.dates < moment))


def _describe_bars(symbol: str, interval: Interval, columns: Columns, now: datetime) -> BarColumns:
    return build_columns(
        **columns,
        interval=interval.value,
        volume_kind="base" if is_pair(symbol) else "shares",
        is_final=columns["close_time"] <= to_micros(now),
    )
