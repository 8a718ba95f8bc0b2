"""Mock provider: plausible prices for any symbol, without a network.

Each price is a pure function of the seed, the symbol and the moment (``mock_prices.py``). So the
same request has the same answer on any machine, however windows overlap.
``MOCK_FAULTS`` makes it misbehave on command: see ``mock_faults.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pandas as pd

from market_pipeline.domain.errors import PermanentProviderError, SettingError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import (
    HistoryTerms,
    Market,
    PriceSnapshot,
    Window,
    build_bar_frame,
    build_empty_bar_frame,
)
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.domain.symbols import describe_symbol
from market_pipeline.providers.mock_faults import EMPTY_PAGE, FaultPlan, parse_faults
from market_pipeline.providers.mock_prices import (
    LEVELS,
    build_daily,
    build_hourly,
    build_paths,
    build_volumes,
    find_level,
    is_pair,
)
from market_pipeline.providers.mock_spoiling import refuse_call, scale_price, spoil_bars
from market_pipeline.providers.rate_limiter import admit
from market_pipeline.providers.snapshots import ask_each
from market_pipeline.settings import read_variable

HISTORY_START = datetime(1990, 1, 1, tzinfo=UTC)
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
    ) -> pd.DataFrame:
        """Return a window's bars; the one running at ``now`` holds what happened until then.

        Raises:
            ProviderError: A fault asks for it, or the market has no bars of the interval.
        """
        if interval not in market.intervals:
            raise PermanentProviderError(self.name, f"{market.symbol} has no bars of {interval}")
        admit(self.name)
        faults = self._faults.draw(market.symbol, interval, window, now)
        refuse_call(market.symbol, faults)
        bars = self._build_bars(market, interval, window, now)
        return spoil_bars(bars, faults, find_level(self._seed, market.symbol)) if faults else bars

    def _build_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> pd.DataFrame:
        first = max(window.start, HISTORY_START) - timedelta(days=1)
        sessions = _read_open_sessions(market.calendar, first, now)
        sessions = sessions[sessions["session_date"] < pd.Timestamp(window.end)]
        parts = [
            self._build_part(market.symbol, interval, part, now)
            for part in _split_by_length(sessions)
        ]
        if not parts:
            return build_empty_bar_frame()
        bars = pd.concat(parts, ignore_index=True)
        is_wanted = bars["open_time"].between(window.start, window.end, inclusive="left")
        return bars[is_wanted].sort_values("open_time", ignore_index=True)

    def _build_part(
        self, symbol: str, interval: Interval, sessions: pd.DataFrame, now: datetime
    ) -> pd.DataFrame:
        """Return the bar frame of sessions of equal length."""
        paths = build_paths(self._seed, symbol, sessions, now)
        volumes = build_volumes(self._seed, symbol, sessions, now)
        build = build_daily if interval is Interval.DAY else build_hourly
        columns = build(sessions, paths, volumes, now)
        closes = pd.DatetimeIndex(columns["close_time"]).tz_localize("UTC")
        return build_bar_frame(
            {
                **columns,
                "open_time": pd.DatetimeIndex(columns["open_time"]).tz_localize("UTC"),
                "close_time": closes,
                "interval": interval.value,
                "volume_kind": "base" if is_pair(symbol) else "shares",
                "is_final": closes <= pd.Timestamp(now),
            }
        )

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
        day_before = now - timedelta(days=1)
        latest, earlier = self._read_price(market, now), self._read_price(market, day_before)
        if latest is None or earlier is None:
            return None
        hours = self._build_bars(market, Interval.HOUR, Window(day_before, now), now)
        traded = float((hours["volume"] * hours["close"]).sum())
        change = latest[1] / earlier[1] - 1
        return PriceSnapshot(market, *latest, volume_24h=traded, change_24h_ratio=change)

    def _read_price(self, market: Market, moment: datetime) -> tuple[datetime, float] | None:
        """Return when the market last traded up to a moment, and at what price."""
        sessions = _read_open_sessions(market.calendar, moment - timedelta(days=10), moment)
        if sessions.empty:
            return None
        last = sessions.iloc[[-1]]
        price = float(build_paths(self._seed, market.symbol, last, moment)[0, -1])
        return min(moment, last["close_time"].iloc[0].to_pydatetime()), price


def _read_open_sessions(calendar: str, start: datetime, now: datetime) -> pd.DataFrame:
    sessions = read_sessions(calendar, max(start, HISTORY_START), now)
    return sessions[sessions["open_time"] < pd.Timestamp(now)]


def _split_by_length(sessions: pd.DataFrame) -> list[pd.DataFrame]:
    lengths = sessions["close_time"] - sessions["open_time"]
    return [part for _, part in sessions.groupby(lengths)]
