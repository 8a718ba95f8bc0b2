"""Kraken: traded candles of crypto pairs, the newest 720 of each length, without a key.

Here: its markets, queries and parsers. Not here: pages and the bar frame (``candles.py``), sockets
(``http.py``).

Wire facts: errors come with HTTP 200 and a list ``error``. The key of a result is Kraken's own
long name (``XXBTZUSD`` for ``XBTUSD``), beside a key ``last``. Whatever ``since`` is, only the
newest 720 candles come. Reports differ on whether a candle that opens at ``since`` comes, so the
query begins a second before. The last candle is the running one. A candle in which nothing was
traded comes with volume 0. Prices are text. A ticker has no time. One bad pair fails a whole list.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import ClassVar

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
    read_error_message,
    read_field,
)
from market_pipeline.providers.snapshots import ask_together

NAME = "kraken"
# fmt: off
USD_COINS = (
    "BTC", "ETH", "SOL", "XRP", "ADA", "DOGE", "LTC", "BCH", "LINK", "DOT",
    "XLM", "XMR", "ATOM", "ETC", "UNI", "FIL", "ALGO", "AAVE", "XTZ", "USDT", "USDC", "DAI",
)
# fmt: on
COLUMNS = ("open", "high", "low", "close", "vwap", "volume")
SNAPSHOTS_PER_CALL = 50
# The status that an error means, by the words it begins with; all others mean a bad request.
LONGEST_ERROR_BYTES = 2000
MEANINGS: Mapping[str, int] = {
    "EAPI:Rate limit": 429,
    "EGeneral:Too many requests": 429,
    "EGeneral:Temporary lockout": 429,
    "EQuery:Unknown asset pair": 404,
    "EQuery:Invalid asset pair": 404,
    "EService:": 503,
    "EGeneral:Internal error": 503,
}


class KrakenProvider(CandleExchange):
    """Serves pairs of Kraken from its own trades."""

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "Traded bars of Kraken, the newest 720 (29 days of hours); no key"
    homepage: ClassVar[str] = "https://www.kraken.com"
    calls_per_minute: ClassVar[float | None] = 50.0  # about one a second, unpublished
    base_url: ClassVar[str] = "https://api.kraken.com"
    symbols: ClassVar[tuple[str, ...]] = (
        *(f"{coin}-USD" for coin in USD_COINS),
        "BTC-EUR", "ETH-EUR", "BTC-GBP", "ETH-GBP", "ETH-BTC",
    )  # fmt: skip
    quotes: ClassVar[frozenset[str]] = frozenset(
        {"USD", "EUR", "GBP", "CAD", "JPY", "CHF", "AUD", "BTC", "ETH", "USDT", "USDC"}
    )
    # Kraken kept LUNA for what others call LUNC, and calls their LUNA LUNA2.
    spellings: ClassVar[Mapping[str, str]] = {
        "BTC": "XBT", "DOGE": "XDG", "LUNC": "LUNA", "LUNA": "LUNA2",
    }  # fmt: skip
    page_candles: ClassVar[int] = 720
    kept_candles: ClassVar[int | None] = 720
    publication_lag: ClassVar[timedelta] = timedelta(minutes=2)  # unpublished: a margin
    unlisted: ClassVar[tuple[str, ...]] = ("Unknown asset pair", "Invalid asset pair")

    def spell(self, base: str, quote: str) -> str:
        """Return the pair's short name, such as ``XBTUSD``."""
        return f"{base}{quote}"

    def read_status(self, answer: HttpResponse) -> int:
        """Return what an error inside HTTP 200 means."""
        is_short = answer.status == 200 and len(answer.body) <= LONGEST_ERROR_BYTES
        said = read_error_message(answer.body) if is_short else ""
        if not said.startswith("E"):  # errors are EGeneral, EAPI, EQuery, ...; W is a warning
            return answer.status
        return next((code for words, code in MEANINGS.items() if said.startswith(words)), 400)

    def build_query(self, market: Market, interval: Interval, page: Window) -> tuple[str, Params]:
        """Return path and query of the candles from a page's start to now."""
        return "/0/public/OHLC", {
            "pair": market.provider_market_id,
            "interval": int(interval.duration.total_seconds()) // 60,
            "since": int(page.start.timestamp()) - 1,
        }

    def parse_bars(
        self, body: object, market: Market, interval: Interval, now: datetime
    ) -> pd.DataFrame:
        """Return the bar frame of candles; an error with HTTP 200 or another pair is refused."""
        rows = read_rows(body, market)
        seconds, *cells, trades = parse_rows(NAME, "OHLC", rows, 2 + len(COLUMNS))
        columns = {
            name: parse_decimals(NAME, name, values)
            for name, values in zip(COLUMNS, cells, strict=True)
            if name != "vwap"
        }
        columns["trades"] = parse_numbers(NAME, "count", trades)
        opens = parse_numbers(NAME, "OHLC", seconds)
        about = (NAME, self.publication_lag, interval)
        return build_candle_frame(*about, opens, columns, now)

    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return last prices, 50 markets in one request, as of the moment before it."""
        del now  # what is asked for is the price of the moment
        return ask_together(markets, SNAPSHOTS_PER_CALL, self._fetch_tickers)

    def _fetch_tickers(self, markets: Sequence[Market]) -> list[PriceSnapshot]:
        observed_at = self.client.clocks.utc()
        pairs = ",".join(market.provider_market_id for market in markets)
        body = self.fetch_body("/0/public/Ticker", {"pair": pairs}, markets[0])
        return parse_tickers(body, markets, observed_at)


def open_result(body: object) -> dict[str, object]:
    """Return what an answer holds; one that reports an error is refused."""
    errors = read_field(NAME, body, "error")
    if errors:
        raise PermanentProviderError(NAME, f"answered an error: {errors!s:.200}", 200)
    result = read_field(NAME, body, "result")
    if not isinstance(result, dict):
        raise PermanentProviderError(NAME, "answer has no result: did its shape change?")
    return result


def read_rows(body: object, market: Market) -> object:
    """Return the candles of an answer, which is what it holds beside ``last``, and of one pair."""
    result = {key: node for key, node in open_result(body).items() if key != "last"}
    found = next(iter(result), "")
    if len(result) != 1 or not is_named(market, found):
        raise PermanentProviderError(
            NAME, f"asked for {market.provider_market_id}, answered was {list(result)!s:.60}"
        )
    return result[found]


def is_named(market: Market, key: str) -> bool:
    """Tell whether a key of a result is a market's: ``XXBTZUSD`` and ``XBTUSD`` are the same."""
    quote = KrakenProvider.spellings.get(market.quote, market.quote)
    base = market.provider_market_id.removesuffix(quote)
    return key in {f"{b}{q}" for b in (base, f"X{base}") for q in (quote, f"Z{quote}", f"X{quote}")}


def parse_tickers(
    body: object, markets: Sequence[Market], observed_at: datetime
) -> list[PriceSnapshot]:
    """Return the last price of each market that an answer names; none says when it was true."""
    result = open_result(body)
    found = {market: key for market in markets for key in result if is_named(market, key)}
    return [
        _parse_ticker(read_field(NAME, result, key), market, observed_at)
        for market, key in found.items()
    ]


def _parse_ticker(node: object, market: Market, observed_at: datetime) -> PriceSnapshot:
    """Return a price, and the rolling day's volume in the quote currency: coins times vwap."""
    places = (("c", 0), ("v", 1), ("p", 1))
    price, coins, vwap = parse_decimals(
        NAME, "Ticker", [read_field(NAME, node, *place) for place in places]
    )
    return PriceSnapshot(market, observed_at, float(price), volume_24h=float(coins * vwap))
