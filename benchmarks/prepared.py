"""A provider whose answers cost nothing, so that a run can be measured without one.

Prices repeat every day, so that history can be made by SQL and agrees with what is answered.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar

import numpy as np

from market_pipeline.domain.columns import BarColumns, build_columns
from market_pipeline.domain.grids import to_micros
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.records import HistoryTerms, Market, PriceSnapshot, Window

NAME = "prepared"
_STEPS = {Interval.HOUR: 3_600_000_000, Interval.DAY: 86_400_000_000}
_PAGES = {Interval.HOUR: timedelta(days=60), Interval.DAY: timedelta(days=1000)}


class PreparedProvider:
    """Serves any symbol; an hour's price is 100 and the hour of the day, a day's is 100."""

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "Answers that cost nothing, for benchmarks"
    homepage: ClassVar[str] = "https://example.org"
    calls_per_minute: ClassVar[float | None] = None
    calls_per_month: ClassVar[int | None] = None

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Need nothing."""

    def explain_missing_settings(self) -> str | None:
        """Return None: nothing has to be set."""
        return None

    def list_symbols(self) -> tuple[str, ...]:
        """Return none: any symbol is served."""
        return ()

    def find_market(self, symbol: str) -> Market | None:
        """Return a market that never closes."""
        base, _, quote = symbol.partition("-")
        intervals = (Interval.HOUR, Interval.DAY)
        return Market(NAME, symbol, symbol, symbol, base, quote, NAME, ALWAYS_OPEN, intervals)

    def describe_history(self, market: Market, interval: Interval) -> HistoryTerms:
        """Return pages of some 1,000 bars."""
        del market
        return HistoryTerms(page=_PAGES[interval])

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> BarColumns:
        """Return the bars of a window, final once they have closed."""
        del market
        step, end = _STEPS[interval], min(to_micros(window.end), to_micros(now))
        opens = np.arange(-(-to_micros(window.start) // step) * step, end, step, dtype=np.int64)
        price = 100.0 + opens % _STEPS[Interval.DAY] // _STEPS[Interval.HOUR]
        return build_columns(
            interval=interval.value, open_time=opens, close_time=opens + step,
            open=price, high=price, low=price, close=price, volume=np.ones(len(opens)),
            volume_kind="base", is_final=opens + step <= to_micros(now),
        )  # fmt: skip

    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return the same price for all."""
        return [PriceSnapshot(market, now, 100.0) for market in markets]


def install(folder: Path) -> None:
    """Make the provider known to processes that have the folder in PYTHONPATH."""
    about = folder / f"{NAME}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        f"[market_pipeline.providers]\n{NAME} = benchmarks.prepared:PreparedProvider\n"
    )
