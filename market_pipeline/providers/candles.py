"""The common part of exchanges that answer with candles: catalogue, pages, frame and errors.

Here: a base class, and how rows become a bar frame. Not here: an exchange's own queries and rows
(``coinbase.py``, ``kraken.py``, ``binance.py``), and sockets (``http.py``).

A candle has no mark that says it is closed. The running one is told by the clock alone: a bar is
final when its close and the exchange's publication lag are past.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import ClassVar

import pandas as pd

from market_pipeline.domain.arrays import FloatArray
from market_pipeline.domain.errors import PermanentProviderError, ProviderError, SettingError
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.records import (
    HistoryTerms,
    Market,
    PriceSnapshot,
    Window,
    build_bar_frame,
    build_empty_bar_frame,
)
from market_pipeline.domain.symbols import parse_symbol
from market_pipeline.providers.http import CallLimits, Clocks, HttpResponse, Params, open_client
from market_pipeline.providers.payloads import parse_stamps
from market_pipeline.settings import (
    name_errors,
    read_fetch_workers,
    read_variable,
    shorten,
    split_list,
)

INTERVALS = (Interval.HOUR, Interval.DAY)
REACH_MARGIN = timedelta(days=1)  # planned today, perhaps asked tomorrow
EARLIEST_STAMP_SECONDS = 1_230_768_000.0  # 2009: seconds read as milliseconds land in 1970
_MARKETS = "PROVIDER_MARKETS"


class CandleExchange(ABC):
    """An exchange whose candles are the bars; a subclass adds its queries and its parsers.

    Class attributes:
        base_url: Its address; the variable ``<NAME>_BASE_URL`` replaces it.
        symbols: The markets it is known to list; ``PROVIDER_MARKETS`` adds others.
        quotes: The currencies that its markets are quoted in.
        spellings: Its own name of a coin, by the common name.
        page_candles: The candles of one request.
        kept_candles: How many of the newest candles can be had at all; None: all.
        publication_lag: From a candle's close until it is taken as final.
        unlisted: Words by which it says that it has no such market.
    """

    name: ClassVar[str]
    calls_per_month: ClassVar[int | None] = None
    base_url: ClassVar[str]
    symbols: ClassVar[tuple[str, ...]]
    quotes: ClassVar[frozenset[str]]
    spellings: ClassVar[Mapping[str, str]] = {}
    page_candles: ClassVar[int]
    kept_candles: ClassVar[int | None] = None
    publication_lag: ClassVar[timedelta]
    unlisted: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        clocks: Clocks | None = None,
        limits: CallLimits | None = None,
    ) -> None:
        self._more = tuple(self._check_symbol(one) for one in read_more(self.name, environ))
        self.workers = read_fetch_workers(environ)
        about = (self.name, self.base_url, environ)
        self.client = open_client(*about, limits, clocks, self.read_status)

    @abstractmethod
    def spell(self, base: str, quote: str) -> str:
        """Return the exchange's id of a market, from its own names of both coins."""

    @abstractmethod
    def build_query(self, market: Market, interval: Interval, page: Window) -> tuple[str, Params]:
        """Return path and query of the candles that open within a page, which has whole bars."""

    @abstractmethod
    def parse_bars(
        self, body: object, market: Market, interval: Interval, now: datetime
    ) -> pd.DataFrame:
        """Return the bar frame of an answer; it may hold bars that nobody asked for.

        An error inside a good status, or another shape, is a ``PermanentProviderError``.
        """

    @abstractmethod
    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return the price of each market's last trade."""

    def read_status(self, answer: HttpResponse) -> int:
        """Return the status that an answer means, for an exchange that does not keep to HTTP."""
        return answer.status

    def explain_missing_settings(self) -> str | None:
        """Return None: nothing has to be set."""
        return None

    def list_symbols(self) -> tuple[str, ...]:
        """Return the markets known here; the exchange may list others."""
        return (*self.symbols, *self._more)

    def find_market(self, symbol: str) -> Market | None:
        """Return a market of the list; a pair in another currency is another market."""
        if symbol not in self.list_symbols():
            return None
        base, _, quote = symbol.rpartition("-")
        names = [self.spellings.get(coin, coin) for coin in (base, quote)]
        return Market(
            provider=self.name,
            symbol=symbol,
            provider_market_id=self.spell(*names),
            name=symbol,
            base=base,
            quote=quote,
            venue=self.name,
            calendar=ALWAYS_OPEN,
            intervals=INTERVALS,
        )

    def describe_history(self, market: Market, interval: Interval) -> HistoryTerms:
        """Return one request's candles as the page, and how far back the exchange answers."""
        del market  # all are served alike
        page = self.page_candles * interval.duration
        if self.kept_candles is None:
            return HistoryTerms(page, self.publication_lag)
        reach = self.kept_candles * interval.duration - REACH_MARGIN
        return HistoryTerms(min(page, reach), self.publication_lag, reach)

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> pd.DataFrame:
        """Return the candles of a window, one request a page; the running one is provisional.

        An interval or a market that the exchange lacks, and a window older than all that it keeps,
        are a ``PermanentProviderError``.
        """
        if interval not in market.intervals:
            raise PermanentProviderError(
                self.name, f"{market.symbol} has no bars of {interval}: expected 1h or 1d"
            )
        self._refuse_too_old(interval, window)
        pages = [
            self._fetch_page(market, interval, page, now)
            for page in split_pages(window, interval, now, self.page_candles)
        ]
        return pd.concat(pages, ignore_index=True) if pages else build_empty_bar_frame()

    def _fetch_page(
        self, market: Market, interval: Interval, page: Window, now: datetime
    ) -> pd.DataFrame:
        path, params = self.build_query(market, interval, page)
        body = self.fetch_body(path, params, market)
        bars = self.parse_bars(body, market, interval, now)
        return bars[bars["open_time"].between(page.start, page.end, inclusive="left")]

    def fetch_body(self, path: str, params: Params, market: Market) -> object:
        """Return the parsed answer to a question about a market; errors name what to do."""
        try:
            return self.client.fetch_json(path, params)
        except ProviderError as error:
            raise self._explain(error, market) from error

    def _explain(self, error: ProviderError, market: Market) -> ProviderError:
        """Return an error that also says what to do, where that is known."""
        if error.status == 451:
            cure = f"{self.name} does not serve this machine's location: name another provider"
        elif "HTTP 418" in error.message:
            cure = f"{self.name} has banned this address: wait, lower PROVIDER_CALLS_PER_MINUTE"
        elif any(words in error.message for words in self.unlisted):
            cure = f"{self.name} lists no {market.symbol}: name a provider that does before it"
        else:
            return error
        return type(error)(self.name, f"{error.message}. {cure}", error.status)

    def _refuse_too_old(self, interval: Interval, window: Window) -> None:
        """Refuse what no answer can hold; silence would look as if nothing had been traded."""
        if self.kept_candles is None:
            return
        earliest = self.client.clocks.utc() - self.kept_candles * interval.duration
        if window.end <= earliest:
            raise PermanentProviderError(
                self.name,
                f"only the newest {self.kept_candles} candles of {interval} can be had, nothing "
                f"before {earliest:%Y-%m-%d %H:%M}: name a provider with a longer history",
            )

    def _check_symbol(self, symbol: str) -> str:
        base, _, quote = symbol.rpartition("-")
        common = {own: coin for coin, own in self.spellings.items()}
        with name_errors(f"{_MARKETS} has {self.name}:{symbol}"):
            if not base.isalnum() or quote not in self.quotes:
                expected = ", ".join(sorted(self.quotes))
                raise SettingError(f"expected COIN-QUOTE, quoted in one of {expected}")
            if base in common and base not in self.spellings:
                raise SettingError(f"{base} is its name of {common[base]}: use the common name")
        return symbol


def read_more(provider: str, environ: Mapping[str, str]) -> list[str]:
    """Return the symbols that ``PROVIDER_MARKETS`` adds to an exchange."""
    found, text = [], read_variable(_MARKETS, environ)
    with name_errors(f"{_MARKETS}={shorten(text)!r}"):
        for entry in split_list(text):
            name, colon, symbol = entry.rpartition(":")
            if not (colon and name.strip()):
                raise SettingError(f"{entry!r}: expected provider:SYMBOL, such as kraken:SOL-EUR")
            if name.strip().lower() == provider:
                found.append(parse_symbol(symbol))
    return found


def split_pages(window: Window, interval: Interval, now: datetime, most: int) -> Iterator[Window]:
    """Cut a window into pages of whole bars, none of which begins after ``now``."""
    step = pd.Timedelta(interval.duration)
    start = pd.Timestamp(window.start).ceil(step)
    end = min(pd.Timestamp(window.end).ceil(step), pd.Timestamp(now).floor(step) + step)
    while start < end:
        stop = min(start + most * step, end)
        yield Window(start.to_pydatetime(), stop.to_pydatetime())
        start = stop


def build_candle_frame(
    provider: str,
    publication_lag: timedelta,
    interval: Interval,
    open_seconds: FloatArray,
    columns: Mapping[str, object],
    now: datetime,
) -> pd.DataFrame:
    """Return the bar frame of an exchange's candles, oldest first.

    Args:
        provider: For messages.
        publication_lag: From a candle's close until it is final.
        interval: Of the candles.
        open_seconds: When each candle opens, in epoch seconds; another unit is refused.
        columns: Prices and volume (in the base currency), and trades where they are counted.
        now: The run's clock (UTC).
    """
    opens = parse_stamps(provider, "candles", open_seconds, EARLIEST_STAMP_SECONDS)
    closes = opens + interval.duration
    frame = build_bar_frame(
        {
            "interval": interval.value,
            "open_time": opens,
            "close_time": closes,
            **columns,
            "volume_kind": "base",
            "is_final": closes + publication_lag <= pd.Timestamp(now),
        }
    )
    return frame.sort_values("open_time", kind="stable", ignore_index=True)
