"""Coinbase Exchange: traded candles of crypto pairs in dollars, euros and pounds, without a key.

Here: its markets, queries and parsers. Not here: pages and the bar frame (``candles.py``), sockets
(``http.py``).

Wire facts: a candle is ``[seconds, low, high, open, close, volume]``, in this order, newest first.
At most 300 candles come in one answer, ``start`` and ``end`` both included. A span in which nothing
was traded has no candle. The running candle comes too. Volumes are sums of float64, so their last
digits are noise (4.727521520000001). An unknown product is a 404.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import ClassVar

import numpy as np
import pandas as pd

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, PriceSnapshot, Window
from market_pipeline.providers.candles import CandleExchange, build_candle_frame
from market_pipeline.providers.http import Params
from market_pipeline.providers.payloads import parse_columns, parse_decimals, parse_time, read_field
from market_pipeline.providers.snapshots import ask_each

NAME = "coinbase"
# fmt: off
USD_COINS = (
    "BTC", "ETH", "SOL", "XRP", "ADA", "DOGE", "LTC", "BCH", "LINK", "DOT",
    "AVAX", "XLM", "ATOM", "ETC", "UNI", "FIL", "ALGO", "AAVE", "SHIB", "NEAR",
    "HBAR", "VET", "ICP", "XTZ", "USDT", "DAI", "OP", "ARB", "APT", "INJ", "SUI", "PEPE",
)
# fmt: on
COLUMNS = ("low", "high", "open", "close", "volume")
SIZE_DIGITS = 8  # The smallest step of an amount is 0.00000001.


class CoinbaseProvider(CandleExchange):
    """Serves pairs of Coinbase Exchange from its own trades."""

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "Traded bars of Coinbase Exchange, full history; needs no key"
    homepage: ClassVar[str] = "https://exchange.coinbase.com"
    calls_per_minute: ClassVar[float | None] = 300.0  # half of the 10 a second for an address
    base_url: ClassVar[str] = "https://api.exchange.coinbase.com"
    symbols: ClassVar[tuple[str, ...]] = (
        *(f"{coin}-USD" for coin in USD_COINS),
        "BTC-EUR", "ETH-EUR", "BTC-GBP", "ETH-GBP", "ETH-BTC",
    )  # fmt: skip
    quotes: ClassVar[frozenset[str]] = frozenset({"USD", "EUR", "GBP", "BTC", "USDC", "USDT"})
    page_candles: ClassVar[int] = 300
    publication_lag: ClassVar[timedelta] = timedelta(minutes=5)  # unpublished: a margin
    unlisted: ClassVar[tuple[str, ...]] = ("NotFound",)

    def spell(self, base: str, quote: str) -> str:
        """Return the product's id, such as ``BTC-USD``."""
        return f"{base}-{quote}"

    def build_query(self, market: Market, interval: Interval, page: Window) -> tuple[str, Params]:
        """Return path and query of a page; ``end`` is the last candle's open, after ``start``."""
        step = int(interval.duration.total_seconds())
        start, end = (int(moment.timestamp()) for moment in (page.start, page.end))
        return f"/products/{market.provider_market_id}/candles", {
            "granularity": step,
            "start": start,
            "end": max(end - step, start + step),
        }

    def parse_bars(
        self, body: object, market: Market, interval: Interval, now: datetime
    ) -> pd.DataFrame:
        """Return the bar frame of candles."""
        del market  # candles do not say whose they are
        opens, *cells = parse_columns(NAME, "candles", body, 1 + len(COLUMNS))
        columns = dict(zip(COLUMNS, cells, strict=True))
        columns["volume"] = np.round(columns["volume"], SIZE_DIGITS)
        about = (NAME, self.publication_lag, interval)
        return build_candle_frame(*about, opens, columns, now)

    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return the price and time of each market's last trade, one request a market."""
        del now  # the answer says when each price was true
        return ask_each(markets, self._fetch_snapshot, self.workers)

    def _fetch_snapshot(self, market: Market) -> list[PriceSnapshot]:
        path = f"/products/{market.provider_market_id}/ticker"
        return [parse_ticker(self.fetch_body(path, {}, market), market)]


def parse_ticker(body: object, market: Market) -> PriceSnapshot:
    """Return the price in a ticker; its volume counts coins, so it is left out."""
    price = parse_decimals(NAME, "price", [read_field(NAME, body, "price")])[0]
    observed_at = parse_time(NAME, "time", read_field(NAME, body, "time"))
    return PriceSnapshot(market, observed_at, float(price))
