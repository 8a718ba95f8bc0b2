"""Exchanges through ccxt, a library with connectors to a hundred of them; an extra of this package.

Here: which of its exchanges can be used, its candles and tickers as this project's, its errors.
Not here: ccxt's own HTTP, retries, paging and rate limiter. Each request that ccxt builds is sent
by ``http.py``, so budget, deadlines and caps are those of every other provider.

``INGESTION_PROVIDER=ccxt:bitstamp`` names an exchange. The stored name is ``ccxt-bitstamp``: a
colon ends a provider's name in ``ccxt-bitstamp:BTC-USD``. Importing ccxt takes seconds and 80 MB,
so it is imported when one of its exchanges is used, and never before.

Facts of the library: its ``paginate`` drops old data without a word. Its candles have no mark that
says they are closed. Some exchanges declare no page limit; a guess would lose bars, so they need
CCXT_PAGE_LIMIT. ``DDoSProtection`` means too many calls as ``RateLimitExceeded`` does.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pandas as pd

from market_pipeline.domain.errors import (
    PermanentProviderError,
    ProviderError,
    SettingError,
    TransientProviderError,
)
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.records import (
    HistoryTerms,
    Market,
    PriceSnapshot,
    Window,
    build_empty_bar_frame,
)
from market_pipeline.domain.symbols import describe_symbol
from market_pipeline.providers.candles import INTERVALS, build_candle_frame, split_pages
from market_pipeline.providers.http import CallLimits, Clocks, HttpClient, HttpResponse
from market_pipeline.providers.payloads import parse_columns, parse_json, parse_numbers
from market_pipeline.providers.snapshots import ask_each, ask_together
from market_pipeline.settings import read_page_limit

FAMILY = "ccxt"
COLUMNS = ("open", "high", "low", "close", "volume")
PUBLICATION_LAG = timedelta(minutes=5)  # unknown for most: a margin
SNAPSHOTS_PER_CALL = 50
INSTALL = "install it with: pip install 'market-pipeline[ccxt]'"
# What an error of ccxt means, by the names of its class and that class's bases; the first counts.
MEANINGS: Mapping[str, int] = {
    "DDoSProtection": 429,
    "RateLimitExceeded": 429,
    "RestrictedLocation": 451,
    "BadSymbol": 404,
    "AuthenticationError": 401,
    "ExchangeError": 400,
    "OperationFailed": 503,
}
UNKNOWN = 500
CURES: Mapping[int, str] = {
    404: "name a provider that lists it before this one",
    451: "the exchange does not serve this machine's location: name another provider",
}


class CcxtProvider:
    """Serves the spot markets of one exchange, by their symbols.

    Args:
        environ: CCXT_PAGE_LIMIT is read.
        exchange_id: What ccxt calls the exchange; empty: none, which serves nothing.
        clocks, limits: Of the requests.
    """

    summary: ClassVar[str] = "Traded bars of any of a hundred exchanges, as ccxt:bitstamp"
    homepage: ClassVar[str] = "https://docs.ccxt.com"
    calls_per_month: ClassVar[int | None] = None

    def __init__(
        self,
        environ: Mapping[str, str],
        exchange_id: str = "",
        *,
        clocks: Clocks | None = None,
        limits: CallLimits | None = None,
    ) -> None:
        self.exchange_id = exchange_id
        self.name = f"{FAMILY}-{exchange_id}" if exchange_id else FAMILY
        self._page_limit = read_page_limit(environ)
        self._clocks, self._limits = clocks or Clocks(), limits or CallLimits()
        self._clients: dict[str, HttpClient] = {}
        self._lock = RLock()  # an exchange of ccxt is not made for several threads

    @classmethod
    def make_member(cls, environ: Mapping[str, str], exchange_id: str) -> "CcxtProvider":
        """Return the provider of one exchange; ccxt, which must have it, is not imported."""
        known = list_exchange_ids()
        if not known:
            raise SettingError(f"provider {FAMILY}:{exchange_id} needs ccxt: {INSTALL}")
        if exchange_id not in known:
            near = get_close_matches(exchange_id, known) or known[:5]
            raise SettingError(
                f"ccxt has no exchange {exchange_id[:40]!r}: expected one of {len(known)}, such as "
                f"{', '.join(near)}"
            )
        return cls(environ, exchange_id)

    @property
    def calls_per_minute(self) -> float | None:
        """The rate that ccxt keeps to on this exchange."""
        return 60_000 / self.exchange.rateLimit if self.exchange_id else None

    @cached_property
    def exchange(self) -> Any:
        """Ccxt's exchange, which sends its requests through this provider."""
        import ccxt

        exchange = getattr(ccxt, self.exchange_id)({"enableRateLimit": False})
        exchange.fetch = self._send
        exchange.has["fetchCurrencies"] = False  # one call less, and nothing here needs them
        types = exchange.options.get("fetchMarkets")
        if isinstance(types, dict) and "types" in types:
            types["types"] = ["spot"]
        return exchange

    def explain_missing_settings(self) -> str | None:
        """Return why the exchange cannot be used, or None."""
        if not self.exchange_id:
            return "name an exchange, such as ccxt:bitstamp" if list_exchange_ids() else INSTALL
        if not self.exchange.has.get("fetchOHLCV"):
            return f"{self.exchange_id} has no candles: name another exchange"
        if not self._list_intervals():
            return f"{self.exchange_id} has candles of neither 1h nor 1d: name another exchange"
        if self._find_page_candles() is None:
            return (
                f"ccxt does not know how many candles {self.exchange_id} answers at once: set "
                "CCXT_PAGE_LIMIT to what its documentation says"
            )
        return None

    def list_symbols(self) -> tuple[str, ...]:
        """Return examples: any pair is asked for by its symbol."""
        return ("BTC-USD", "ETH-USD", "BTC-USDT", "ETH-USDT") if self.exchange_id else ()

    def find_market(self, symbol: str) -> Market | None:
        """Return the market of a pair; whether the exchange lists it, only a fetch can say."""
        pair = describe_symbol(symbol)
        if not self.exchange_id or pair.calendar != ALWAYS_OPEN:
            return None
        return Market(
            provider=self.name,
            symbol=symbol,
            provider_market_id=f"{pair.base}/{pair.quote}",
            name=symbol,
            base=pair.base,
            quote=pair.quote,
            venue=self.exchange_id,
            calendar=ALWAYS_OPEN,
            intervals=self._list_intervals(),
        )

    def describe_history(self, market: Market, interval: Interval) -> HistoryTerms:
        """Return the declared page; how far back the exchange keeps candles, ccxt does not say."""
        del market  # all are served alike
        return HistoryTerms((self._find_page_candles() or 1) * interval.duration, PUBLICATION_LAG)

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> pd.DataFrame:
        """Return the candles of a window, one request a page; the running one is provisional.

        The first fetch also reads the exchange's list of markets.
        """
        if interval not in market.intervals:
            raise PermanentProviderError(self.name, f"{market.symbol} has no bars of {interval}")
        if reason := self.explain_missing_settings():
            raise PermanentProviderError(self.name, reason)
        most = self._find_page_candles() or 1
        pages = [
            self._fetch_page(market, interval, page, now)
            for page in split_pages(window, interval, now, most)
        ]
        return pd.concat(pages, ignore_index=True) if pages else build_empty_bar_frame()

    def _fetch_page(
        self, market: Market, interval: Interval, page: Window, now: datetime
    ) -> pd.DataFrame:
        since = int(page.start.timestamp() * 1000)
        count = (page.end - page.start) // interval.duration
        rows = self._call(market, "fetch_ohlcv", interval.value, since, count)
        opens, *cells = parse_columns(self.name, "candles", rows, 1 + len(COLUMNS))
        columns = dict(zip(COLUMNS, cells, strict=True))
        about = (self.name, PUBLICATION_LAG, interval)
        bars = build_candle_frame(*about, opens / 1000, columns, now)
        return bars[bars["open_time"].between(page.start, page.end, inclusive="left")]

    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return last prices, many markets in one request where the exchange has that."""
        del now  # what is asked for is the price of the moment
        if self.exchange_id and self.exchange.has.get("fetchTickers"):
            return ask_together(markets, SNAPSHOTS_PER_CALL, self._fetch_tickers)
        return ask_each(markets, self._fetch_ticker)

    def _fetch_tickers(self, markets: Sequence[Market]) -> list[PriceSnapshot]:
        asked_at = self._clocks.utc()
        self._find_listed(markets)
        names = [market.provider_market_id for market in markets]
        found = self._run(lambda: self.exchange.fetch_tickers(names))
        snapshots = [self._parse(found.get(m.provider_market_id), m, asked_at) for m in markets]
        return [snapshot for snapshot in snapshots if snapshot is not None]

    def _fetch_ticker(self, market: Market) -> list[PriceSnapshot]:
        asked_at = self._clocks.utc()
        snapshot = self._parse(self._call(market, "fetch_ticker"), market, asked_at)
        return [] if snapshot is None else [snapshot]

    def _parse(self, ticker: object, market: Market, asked_at: datetime) -> PriceSnapshot | None:
        """Return the last price of a ticker, at the ticker's time or when it was asked for."""
        fields = ticker if isinstance(ticker, dict) else {}
        names = ("last", "timestamp", "quoteVolume", "percentage")
        numbers = parse_numbers(self.name, "ticker", [fields.get(name) for name in names])
        price, stamp, volume, change_pct = (
            None if math.isnan(number) else float(number) for number in numbers
        )
        if price is None:
            return None
        return PriceSnapshot(
            market,
            asked_at if stamp is None else datetime.fromtimestamp(stamp / 1000, UTC),
            price,
            volume_24h=volume,
            change_24h_ratio=None if change_pct is None else change_pct / 100,
        )

    def _list_intervals(self) -> tuple[Interval, ...]:
        return tuple(one for one in INTERVALS if one.value in (self.exchange.timeframes or {}))

    def _find_page_candles(self) -> int | None:
        """Return how many candles one answer holds: declared by ccxt, else set, else unknown."""
        spot = (self.exchange.features or {}).get("spot") or {}
        return (spot.get("fetchOHLCV") or {}).get("limit") or self._page_limit

    def _call(self, market: Market, name: str, *given: object) -> Any:
        """Return what a method of the exchange answers for a market that it lists."""
        self._find_listed([market])
        call = getattr(self.exchange, name)
        return self._run(lambda: call(market.provider_market_id, *given))

    def _find_listed(self, markets: Sequence[Market]) -> None:
        """Refuse markets that the exchange does not list, or lists as something else than spot."""
        listed = self._run(self.exchange.load_markets)
        for market in markets:
            found = listed.get(market.provider_market_id)
            if found is None or not found.get("spot", True):
                raise PermanentProviderError(
                    self.name, f"{self.exchange_id} lists no {market.symbol}: {CURES[404]}", 404
                )

    def _run(self, call: Callable[[], Any]) -> Any:
        """Return what ccxt answers; each of its errors becomes one of this project's."""
        with self._lock:
            try:
                return call()
            except ProviderError:
                raise
            except Exception as error:  # a connector may fail in any way on bytes it does not know
                raise self._translate(error) from error

    def _translate(self, error: Exception) -> ProviderError:
        status, said = read_meaning(error), " ".join(str(error).split())[:200]
        kind = TransientProviderError if status in (429, 503) else PermanentProviderError
        cure = f": {CURES[status]}" if status in CURES else ""
        message = f"{type(error).__name__} {said or 'without a word'}{cure}"
        return kind(self.name, message, status)

    def _send(
        self, url: str, method: str = "GET", headers: object = None, body: object = None
    ) -> Any:
        """Send a request that ccxt has built, in place of its own ``fetch``."""
        del headers, body  # public data needs neither
        if method != "GET":
            raise PermanentProviderError(
                self.name, f"{self.exchange_id} asks by {method}, only GET is sent: name another"
            )
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._clients:
            self._clients[origin] = HttpClient(
                self.name, origin, {}, self._limits, self._clocks, self._read_status
            )
        answer = self._clients[origin].fetch(url.removeprefix(origin))
        parse_json(self.name, answer.body)  # ccxt would take NaN, and a text that is no JSON
        return self.exchange.parse_json(answer.body.decode())

    def _read_status(self, answer: HttpResponse) -> int:
        """Return what an answer means: many exchanges report a limit inside another status."""
        text = answer.body.decode("utf-8", "replace")
        try:
            parsed = self.exchange.parse_json(text)
            about = (answer.status, "", "", "GET", dict(answer.headers), text)
            self.exchange.handle_errors(*about, parsed, {}, None)
        except Exception as error:  # noqa: BLE001 - as in _run; the status says what is left of it
            status = read_meaning(error)
            if status == 429 or (status != UNKNOWN and answer.status == 200):
                return status
        return 429 if answer.status == 418 else answer.status


def read_meaning(error: Exception) -> int:
    """Return the HTTP status that an error of ccxt amounts to; 500 for one of another kind."""
    names = [kind.__name__ for kind in type(error).__mro__]
    return next((MEANINGS[name] for name in names if name in MEANINGS), UNKNOWN)


def list_exchange_ids() -> list[str]:
    """Return the exchanges of the installed ccxt, which is not imported; none without it."""
    spec = find_spec(FAMILY)
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for place in places for file in Path(place, "abstract").glob("*.py")]
    return sorted(file.stem for file in files if re.fullmatch(r"[a-z0-9]+", file.stem))
