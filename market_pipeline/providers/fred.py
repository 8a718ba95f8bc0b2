"""FRED: closes of the S&P 500 for ten years, without a key.

Here: its one market, the query, and the parser of the CSV. Not here: sockets (``http.py``).

The series belongs to S&P Dow Jones Indices. FRED's terms allow personal use and forbid to
redistribute it: do not publish what this provider brings, nor serve it to others.

Wire facts: the head is ``observation_date,SP500`` (``DATE,SP500`` before). A holiday is a row with
an empty cell. Ten years are there, a day further every day. A close appears in the evening of New
York or on the next morning. There is no open, high, low or volume, and no price of the moment.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import ClassVar

import pandas as pd

from market_pipeline.domain.errors import PermanentProviderError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import (
    HistoryTerms,
    Market,
    PriceSnapshot,
    Window,
    build_bar_frame,
    build_empty_bar_frame,
)
from market_pipeline.providers.http import CallLimits, Clocks, Params, open_client
from market_pipeline.providers.payloads import parse_decimals
from market_pipeline.providers.session_closes import find_session_closes
from market_pipeline.providers.snapshots import ask_each

NAME = "fred"
BASE_URL = "https://fred.stlouisfed.org"
# symbol: (series, readable name, calendar)
SERIES: Mapping[str, tuple[str, str, str]] = {"SPX": ("SP500", "S&P 500", "XNYS")}
DATE_HEADS = ("observation_date", "DATE")
HISTORY = timedelta(days=3650)
REACH = HISTORY - timedelta(days=7)  # planned today, perhaps asked some days later
PUBLICATION_LAG = timedelta(hours=18)
RECENT = timedelta(days=14)  # holds a close, whatever the holidays


class FredProvider:
    """Serves the closes of the S&P 500."""

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "S&P 500, daily closes of ten years; not to be redistributed; no key"
    homepage: ClassVar[str] = "https://fred.stlouisfed.org"
    calls_per_minute: ClassVar[float | None] = 30.0  # polite: the real limit is unpublished
    calls_per_month: ClassVar[int | None] = None

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        clocks: Clocks | None = None,
        limits: CallLimits | None = None,
    ) -> None:
        self._client = open_client(NAME, BASE_URL, environ, limits, clocks)

    def explain_missing_settings(self) -> str | None:
        """Return None: nothing has to be set."""
        return None

    def list_symbols(self) -> tuple[str, ...]:
        """Return the symbols that have a series."""
        return tuple(SERIES)

    def find_market(self, symbol: str) -> Market | None:
        """Return the market of a symbol that has a series."""
        if symbol not in SERIES:
            return None
        series, name, calendar = SERIES[symbol]
        return Market(
            provider=NAME,
            symbol=symbol,
            provider_market_id=series,
            name=name,
            base=symbol,
            quote="USD",
            venue="FRED",
            calendar=calendar,
            intervals=(Interval.DAY,),
        )

    def describe_history(self, market: Market, interval: Interval) -> HistoryTerms:
        """Return ten years as one page."""
        del market, interval  # there is one of each
        return HistoryTerms(REACH, PUBLICATION_LAG, REACH)

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> pd.DataFrame:
        """Return the closes of a window as bars of one price; holidays are left out."""
        if interval is not Interval.DAY:
            raise PermanentProviderError(
                NAME, f"{market.symbol} has no bars of {interval}, only 1d"
            )
        path, params = build_query(market, window)
        bars = parse_bars(self._client.fetch(path, params).body, market, now)
        is_wanted = bars["open_time"].between(window.start, window.end, inclusive="left")
        return bars[is_wanted].reset_index(drop=True)

    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return the close of each market's last session, at that moment."""
        return ask_each(markets, lambda market: self._fetch_close(market, now))

    def _fetch_close(self, market: Market, now: datetime) -> list[PriceSnapshot]:
        bars = self.fetch_bars(market, Interval.DAY, Window(now - RECENT, now), now)
        last = bars[bars["close_time"] <= pd.Timestamp(now)].tail(1)
        return [
            PriceSnapshot(market, moment.to_pydatetime(), float(price))
            for moment, price in zip(last["close_time"], last["close"], strict=True)
        ]


def build_query(market: Market, window: Window) -> tuple[str, Params]:
    """Return path and query of the dates of a window, both included."""
    return "/graph/fredgraph.csv", {
        "id": market.provider_market_id,
        "cosd": f"{window.start:%Y-%m-%d}",
        "coed": f"{window.end:%Y-%m-%d}",
    }


def parse_bars(body: bytes, market: Market, now: datetime) -> pd.DataFrame:
    """Return the bar frame of a CSV of closes, ordered; a bar ends with its session.

    Another head, or a cell that is neither a number nor empty, is a ``PermanentProviderError``.
    """
    head, *lines = body.decode("utf-8", "replace").splitlines() or [""]
    if head not in [f"{date},{market.provider_market_id}" for date in DATE_HEADS]:
        raise PermanentProviderError(
            NAME,
            f"expected the CSV of {market.provider_market_id}, its first line is {head[:60]!r}",
        )
    rows = [line.split(",") for line in lines if not line.endswith((",", ",."))]
    if not all(len(row) == 2 for row in rows):
        raise PermanentProviderError(NAME, "a row has not two cells: did the CSV change?")
    if not rows:
        return build_empty_bar_frame()
    return _build_frame(_parse_dates([date for date, _ in rows]), rows, market, now)


def _parse_dates(texts: Sequence[str]) -> "pd.Series[pd.Timestamp]":
    dates = pd.to_datetime(pd.Series(texts), format="%Y-%m-%d", utc=True, errors="coerce")
    if not dates.between("1850-01-01", "2100-01-01").all():
        raise PermanentProviderError(NAME, "a date of the CSV is not yyyy-mm-dd")
    return dates.dt.as_unit("us")


def _build_frame(
    dates: "pd.Series[pd.Timestamp]", rows: Sequence[Sequence[str]], market: Market, now: datetime
) -> pd.DataFrame:
    prices = parse_decimals(NAME, "SP500", [price for _, price in rows])
    closes = find_session_closes(dates, market.calendar)
    frame = build_bar_frame(
        {
            "interval": Interval.DAY.value,
            "open_time": pd.DatetimeIndex(dates),
            "close_time": pd.DatetimeIndex(closes),
            **dict.fromkeys(("open", "high", "low", "close"), prices),
            "source_kind": "points",
            "is_final": (closes + PUBLICATION_LAG <= pd.Timestamp(now)).to_numpy(),
        }
    )
    return frame.sort_values("open_time", kind="stable", ignore_index=True)
