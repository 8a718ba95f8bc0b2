"""Binance: traded candles of crypto pairs in stablecoins, full history, without a key.

Here: its markets, queries and parsers. Not here: pages and the bar frame (``candles.py``), sockets
(``http.py``).

Wire facts: a candle has twelve cells, prices as text, times in milliseconds, oldest first. Both
ends of a query are included, by the open. An answer is cut at its end after 1,000 candles. The
running candle comes too. Calls are counted by weight, 6,000 a minute for an address; all calls here
weigh 2. ``X-MBX-USED-WEIGHT-1M`` says what the address has used, other programs included. 418 is a
ban of an address that went on after a 429. 451 is a refused location. Dollars are not traded here:
``BTC-USDT`` is another market than ``BTC-USD``.
"""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import ClassVar

import numpy as np
import pandas as pd

from market_pipeline.domain.errors import PermanentProviderError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, PriceSnapshot, Window
from market_pipeline.providers.candles import CandleExchange, build_candle_frame
from market_pipeline.providers.http import HttpResponse, Params
from market_pipeline.providers.payloads import (
    parse_decimals,
    parse_numbers,
    parse_rows,
    parse_stamps,
    read_field,
)
from market_pipeline.providers.rate_limiter import report_throttled
from market_pipeline.providers.snapshots import ask_together

NAME = "binance"
# fmt: off
USDT_COINS = (
    "BTC", "ETH", "SOL", "XRP", "BNB", "ADA", "DOGE", "TRX", "LTC", "BCH",
    "LINK", "DOT", "AVAX", "XLM", "ATOM", "ETC", "UNI", "FIL", "ALGO", "AAVE",
    "SHIB", "NEAR", "HBAR", "VET", "ICP", "XTZ", "USDC", "OP", "ARB", "APT", "INJ", "SUI", "PEPE",
)
# fmt: on
COLUMNS = ("open", "high", "low", "close", "volume")
SNAPSHOTS_PER_CALL = 20  # weighs 2; 21 would weigh 40
WEIGHT_PER_CALL = 2
WEIGHT_PER_MINUTE = 6000
USED_WEIGHT = "x-mbx-used-weight-1m"
PAUSE_SECONDS = 60.0  # The weight is counted anew each minute.


class BinanceProvider(CandleExchange):
    """Serves pairs of Binance's spot market from its own trades."""

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "Traded bars of Binance in USDT, full history; refuses some countries"
    homepage: ClassVar[str] = "https://www.binance.com"
    # Half of what is granted: an address may have other users.
    calls_per_minute: ClassVar[float | None] = WEIGHT_PER_MINUTE / WEIGHT_PER_CALL / 2
    base_url: ClassVar[str] = "https://api.binance.com"
    symbols: ClassVar[tuple[str, ...]] = (
        *(f"{coin}-USDT" for coin in USDT_COINS),
        "BTC-USDC", "ETH-USDC", "ETH-BTC",
    )  # fmt: skip
    quotes: ClassVar[frozenset[str]] = frozenset({"USDT", "USDC", "BTC", "ETH", "BNB", "EUR"})
    page_candles: ClassVar[int] = 1000
    publication_lag: ClassVar[timedelta] = timedelta(minutes=1)  # unpublished: a margin
    unlisted: ClassVar[tuple[str, ...]] = ("Invalid symbol",)

    def spell(self, base: str, quote: str) -> str:
        """Return the pair's name, such as ``BTCUSDT``."""
        return f"{base}{quote}"

    def read_status(self, answer: HttpResponse) -> int:
        """Return 429 for a ban, and make all processes pause when the weight is nearly used."""
        used = answer.headers.get(USED_WEIGHT, "")
        if used.isdecimal() and int(used) > 0.9 * WEIGHT_PER_MINUTE:
            report_throttled(NAME, PAUSE_SECONDS)
        return 429 if answer.status == 418 else answer.status

    def build_query(self, market: Market, interval: Interval, page: Window) -> tuple[str, Params]:
        """Return path and query of the candles that open within a page."""
        return "/api/v3/klines", {
            "symbol": market.provider_market_id,
            "interval": interval.value,
            "startTime": int(page.start.timestamp() * 1000),
            "endTime": int(page.end.timestamp() * 1000) - 1,
            "limit": self.page_candles,
        }

    def parse_bars(
        self, body: object, market: Market, interval: Interval, now: datetime
    ) -> pd.DataFrame:
        """Return the bar frame of candles; those of another length are refused."""
        del market  # candles do not say whose they are
        opens, *cells, closes, _, trades = parse_rows(NAME, "klines", body, 9)
        columns = {
            name: parse_decimals(NAME, name, values)
            for name, values in zip(COLUMNS, cells, strict=True)
        }
        columns["trades"] = parse_numbers(NAME, "trades", trades)
        open_ms, close_ms = (parse_numbers(NAME, "klines", stamps) for stamps in (opens, closes))
        if not np.all(close_ms - open_ms == interval.duration.total_seconds() * 1000 - 1):
            raise PermanentProviderError(NAME, f"asked for candles of {interval}, got other ones")
        about = (NAME, self.publication_lag, interval)
        return build_candle_frame(*about, open_ms / 1000, columns, now)

    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return last prices, 20 markets in one request."""
        del now  # the answer says when each price was true
        return ask_together(markets, SNAPSHOTS_PER_CALL, self._fetch_tickers)

    def _fetch_tickers(self, markets: Sequence[Market]) -> list[PriceSnapshot]:
        names = [market.provider_market_id for market in markets]
        params = {"symbols": json.dumps(names, separators=(",", ":"))}
        return parse_tickers(self.fetch_body("/api/v3/ticker/24hr", params, markets[0]), markets)


def parse_tickers(body: object, markets: Sequence[Market]) -> list[PriceSnapshot]:
    """Return the price of each market that an answer names, in the markets' order."""
    if not isinstance(body, list):
        raise PermanentProviderError(NAME, "ticker/24hr did not answer with a list")
    rows = {str(read_field(NAME, row, "symbol")): row for row in body}
    known = [market for market in markets if market.provider_market_id in rows]
    return [_parse_ticker(rows[market.provider_market_id], market) for market in known]


def _parse_ticker(row: object, market: Market) -> PriceSnapshot:
    names = ("lastPrice", "quoteVolume", "priceChangePercent")
    price, volume, change_pct = parse_decimals(
        NAME, "ticker/24hr", [read_field(NAME, row, name) for name in names]
    )
    stamp = parse_numbers(NAME, "closeTime", [read_field(NAME, row, "closeTime")])
    observed_at = parse_stamps(NAME, "closeTime", stamp / 1000)[0].to_pydatetime()
    return PriceSnapshot(
        market,
        observed_at,
        float(price),
        volume_24h=float(volume),
        change_24h_ratio=float(change_pct) / 100,
    )
