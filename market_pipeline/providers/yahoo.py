"""Yahoo's chart API, version 8: indices, shares and crypto pairs; unofficial and without a key.

Here: which symbols it serves and under which of its names, the query, and the parser of a chart.
Not here: sockets and retries (``http.py``).

Wire facts: a bar is stamped with its session's open in UTC, which for Sydney or currencies is the
date before, so the session date is read in the exchange's time zone of that day. While a session
runs, a last row stamped with the clock repeats its date. Null rows are holidays. ``range=max``
answers with coarser bars. An answer without bars has no ``timestamp``. The prices of charts are
float32 numbers printed as doubles; the live price in ``meta`` is a double.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import ClassVar
from urllib.parse import quote
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from market_pipeline.domain.arrays import FloatArray
from market_pipeline.domain.errors import PermanentProviderError
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
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
from market_pipeline.providers.http import CallLimits, Clocks, open_client
from market_pipeline.providers.listings import INDICES, LISTINGS
from market_pipeline.providers.payloads import parse_numbers, parse_stamps, read_field
from market_pipeline.providers.session_closes import find_session_closes
from market_pipeline.providers.snapshots import ask_each
from market_pipeline.settings import read_fetch_workers

NAME = "yahoo"
BASE_URL = "https://query2.finance.yahoo.com"
HOURLY_HISTORY = timedelta(days=730)
HOURLY_REACH = HOURLY_HISTORY - timedelta(days=1)  # planned today, perhaps asked tomorrow
NOISE_RATIO = 1e-6  # Prices are float32: the last digit may come out otherwise.
HOURLY_PAGE = timedelta(days=200)
DAILY_PAGE = timedelta(days=5000)
MARGIN = timedelta(days=1)
SESSION_LAG = timedelta(minutes=30)
ALWAYS_OPEN_LAG = timedelta(minutes=10)
PARSING = 2  # 1 rounded prices to seven digits
PRICES = ("open", "high", "low", "close")
GRANULARITIES = {Interval.HOUR: ("1h", "60m"), Interval.DAY: ("1d",)}

# what Yahoo calls a hundredth of a currency, and that currency
MINOR_UNITS: Mapping[str, str] = {"GBp": "GBP", "GBX": "GBP", "ZAc": "ZAR", "ILA": "ILS"}
# fmt: off
COINS = (
    "BTC", "ETH", "SOL", "XRP", "BNB", "ADA", "DOGE", "TRX", "LTC", "BCH",
    "LINK", "DOT", "AVAX", "XLM", "ATOM", "ETC", "XMR", "FIL", "ALGO", "AAVE",
    "SHIB", "NEAR", "HBAR", "VET", "ICP", "MKR", "XTZ", "USDT", "USDC", "DAI",
)
# fmt: on
_US_TICKER = re.compile(r"[A-Z][A-Z0-9]{0,6}([.-][A-Z]{1,2})?")
_LISTED_TICKER = re.compile(r"(?P<ticker>[A-Z0-9][A-Z0-9-]{0,9})\.(?P<suffix>[A-Z]{1,2})")


class YahooProvider:
    """Serves indices, shares by their ticker, and crypto pairs in US dollars.

    The limit of hourly history follows the wall clock.
    """

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "Indices, shares and crypto pairs; unofficial, needs no key"
    homepage: ClassVar[str] = "https://finance.yahoo.com"
    calls_per_minute: ClassVar[float | None] = 60.0  # polite: the real limit is unpublished
    calls_per_month: ClassVar[int | None] = None

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        clocks: Clocks | None = None,
        limits: CallLimits | None = None,
    ) -> None:
        self._workers = read_fetch_workers(environ)
        self._clocks = clocks or Clocks()
        self._client = open_client(NAME, BASE_URL, environ, limits, self._clocks)

    def explain_missing_settings(self) -> str | None:
        """Return None: nothing has to be set."""
        return None

    def list_symbols(self) -> tuple[str, ...]:
        """Return indices, pairs and examples of shares; any ticker is served."""
        return (*INDICES, *(f"{coin}-USD" for coin in COINS), "AAPL", "MSFT", "BRK-B", "SAP.DE")

    def find_market(self, symbol: str) -> Market | None:
        """Return the market of an index, a listed pair, or anything shaped like a ticker."""
        base, _, currency = symbol.partition("-")
        if symbol in INDICES:
            return _make_market(symbol, *INDICES[symbol])
        if base in COINS and currency == "USD":
            return _make_market(symbol, symbol, symbol, "CCC", ALWAYS_OPEN, currency)
        return _find_share(symbol)

    def describe_history(self, market: Market, interval: Interval) -> HistoryTerms:
        """Return pages of some 5,000 bars at most; hours reach back two years."""
        lag = find_publication_lag(market)
        if interval is Interval.DAY:
            return HistoryTerms(DAILY_PAGE, lag, None, NOISE_RATIO, PARSING)
        page = HOURLY_PAGE if market.calendar == ALWAYS_OPEN else HOURLY_REACH
        return HistoryTerms(page, lag, HOURLY_REACH, NOISE_RATIO, PARSING)

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> pd.DataFrame:
        """Return the bars of a window; null rows are left out, the running session is provisional.

        Hourly bars reach back 730 days; an older window is answered by no bars. An answer of
        another symbol, currency or interval is a ``PermanentProviderError``.
        """
        if interval not in market.intervals:
            raise PermanentProviderError(NAME, f"{market.symbol} has no bars of {interval}")
        asked = self._plan_request(interval, window)
        if asked.start >= asked.end:
            return build_empty_bar_frame()
        path, params = build_chart_query(market, interval, asked)
        try:
            body = self._client.fetch_json(path, params)
        except PermanentProviderError as error:
            if error.status == 400 and "Data doesn't exist" in error.message:
                return build_empty_bar_frame()  # before the first or after the last bar of all
            raise
        bars = parse_bars(body, market, interval, now)
        first, end = max(window.start, asked.start), min(window.end, now)
        is_wanted = bars["open_time"].between(first, end, inclusive="left")
        return bars[is_wanted].reset_index(drop=True)

    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return prices, one request a market; a market that fails has none.

        Where every market failed, the last failure is raised, with the reason of each.
        """
        del now  # the answer says when each price was true
        fetch, last_day = self._client.fetch_json, {"interval": "1d", "range": "1d"}
        return ask_each(
            markets,
            lambda market: parse_snapshot(fetch(build_path(market), last_day), market),
            self._workers,
        )

    def _plan_request(self, interval: Interval, window: Window) -> Window:
        """Return the span to ask for: a day more on both sides, as stamps are not session dates."""
        start, end = window.start - MARGIN, window.end + MARGIN
        if interval is Interval.HOUR:
            start = max(start, self._clocks.utc() - HOURLY_HISTORY + timedelta(hours=1))
        return Window(start, end)


def find_publication_lag(market: Market) -> timedelta:
    """Return how long after its close a bar is settled."""
    return ALWAYS_OPEN_LAG if market.calendar == ALWAYS_OPEN else SESSION_LAG


def _find_share(symbol: str) -> Market | None:
    """Return a share's market: ``AAPL``, ``BRK-B`` (or ``BRK.B``), ``SAP.DE``, ``7203.T``."""
    if describe_symbol(symbol).calendar == ALWAYS_OPEN:
        return None  # a pair that is not in the list is no share
    listed = _LISTED_TICKER.fullmatch(symbol)
    if listed and listed["suffix"] in LISTINGS:
        calendar, currency = LISTINGS[listed["suffix"]]
        return _make_market(symbol, symbol, symbol, calendar, calendar, currency)
    if not _US_TICKER.fullmatch(symbol) or (listed and len(listed["suffix"]) > 1):
        return None
    return _make_market(symbol, symbol.replace(".", "-"), symbol, "US", "XNYS", "USD")


def _make_market(
    symbol: str, yahoo_symbol: str, name: str, venue: str, calendar: str, currency: str
) -> Market:
    return Market(
        provider=NAME,
        symbol=symbol,
        provider_market_id=yahoo_symbol,
        name=name,
        base=symbol.partition("-")[0] if calendar == ALWAYS_OPEN else symbol,
        quote=currency,
        venue=venue,
        calendar=calendar,
        intervals=(Interval.HOUR, Interval.DAY),
        price_basis="split_adjusted",
    )


def build_path(market: Market) -> str:
    """Return the path of a market's chart; ``^`` and all else outside letters is encoded."""
    return f"/v8/finance/chart/{quote(market.provider_market_id, safe='')}"


def build_chart_query(
    market: Market, interval: Interval, window: Window
) -> tuple[str, dict[str, str | int]]:
    """Return path and query of a span; ``period2`` is exclusive."""
    return build_path(market), {
        "interval": interval.value,
        "period1": math.floor(window.start.timestamp()),
        "period2": math.ceil(window.end.timestamp()),
        "events": "div,splits",
        "includePrePost": "false",
    }


@dataclass(frozen=True, slots=True)
class _Chart:
    """A chart that answers the market asked for; prices may be in hundredths of its currency."""

    meta: Mapping[str, object]
    result: object
    is_minor: bool


def _open_chart(body: object, market: Market) -> _Chart:
    """Return the chart inside an answer; it must be of the market's symbol and currency."""
    _refuse_error(body)
    result = read_field(NAME, body, "chart", "result", 0)
    meta = read_field(NAME, result, "meta")
    answered = read_field(NAME, meta, "symbol")
    if not isinstance(meta, dict) or str(answered).upper() != market.provider_market_id.upper():
        raise PermanentProviderError(
            NAME, f"asked for {market.provider_market_id}, the answer is for {str(answered)[:40]!r}"
        )
    given = str(meta.get("currency") or market.quote)
    if MINOR_UNITS.get(given, given) != market.quote:
        raise PermanentProviderError(
            NAME, f"{market.symbol} is quoted in {given[:10]!r}, expected {market.quote}"
        )
    return _Chart(meta, result, is_minor=given in MINOR_UNITS)


def _refuse_error(body: object) -> None:
    for envelope in ("chart", "finance"):
        part = body.get(envelope) if isinstance(body, dict) else None
        error = part.get("error") if isinstance(part, dict) else None
        if error is not None:
            said = error.get("description") if isinstance(error, dict) else error
            raise PermanentProviderError(NAME, f"answered an error: {str(said)[:200]}", 200)


def parse_bars(body: object, market: Market, interval: Interval, now: datetime) -> pd.DataFrame:
    """Return the bar frame of a chart, one row per open_time, ordered.

    An error envelope, another shape, symbol, currency or interval is a ``PermanentProviderError``.
    """
    chart = _open_chart(body, market)
    granularity = str(chart.meta.get("dataGranularity"))
    if granularity not in GRANULARITIES[interval]:
        raise PermanentProviderError(
            NAME, f"asked for bars of {interval}, answered were {granularity[:10]!r}"
        )
    rows = _parse_rows(chart)
    if rows.empty:
        return build_empty_bar_frame()
    place = _place_daily if interval is Interval.DAY else _place_hourly
    return _merge_rows(place(rows, market, chart), market, interval, chart, now)


def _parse_rows(chart: _Chart) -> pd.DataFrame:
    """Return stamp, prices and volume of the rows that have all four prices."""
    if isinstance(chart.result, dict) and chart.result.get("timestamp") is None:
        return pd.DataFrame()
    stamps = parse_numbers(NAME, "timestamp", read_field(NAME, chart.result, "timestamp"))
    columns = {name: _parse_column(chart, name, len(stamps)) for name in (*PRICES, "volume")}
    rows = pd.DataFrame({"stamp": parse_stamps(NAME, "timestamp", stamps), **columns})
    rows = rows[rows[list(PRICES)].notna().all(axis=1)].sort_values("stamp", kind="stable")
    for name in PRICES:
        rows[name] = clean_prices(rows[name].to_numpy(), is_minor=chart.is_minor)
    return rows


def _parse_column(chart: _Chart, name: str, length: int) -> FloatArray:
    node = read_field(NAME, chart.result, "indicators", "quote", 0, name)
    values = parse_numbers(NAME, name, node)
    if len(values) != length:
        raise PermanentProviderError(NAME, f"{name} has {len(values)} values for {length} stamps")
    return values


def clean_prices(prices: FloatArray, *, is_minor: bool = False) -> FloatArray:
    """Return prices by the digits that were meant.

    A number that is a float32 is the shortest decimal that reads back as that float32:
    3824.139892578125 means 3824.14. Any other one is taken as it is. Of hundredths of the currency
    (``is_minor``) the decimals are moved, nothing is divided.
    """
    with np.errstate(over="ignore"):
        short = prices.astype(np.float32)
    is_short = short.astype(np.float64) == prices
    meant = np.where(is_short, short.astype(str).astype(np.float64), prices)
    if is_minor:
        meant = np.array([float(Decimal(repr(price)).scaleb(-2)) for price in meant.tolist()])
    return meant.astype(np.float64)


def _read_zone(chart: _Chart) -> ZoneInfo:
    name = str(chart.meta.get("exchangeTimezoneName"))
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise PermanentProviderError(NAME, f"time zone {name[:40]!r} is unknown") from None


def _place_daily(rows: pd.DataFrame, market: Market, chart: _Chart) -> pd.DataFrame:
    """Add open_time (the session date) and close_time to daily rows.

    A row on a date the calendar does not know keeps the whole date: validating it is not done here.
    """
    local = rows["stamp"].dt.tz_convert(_read_zone(chart))
    dates = local.dt.tz_localize(None).dt.normalize().dt.tz_localize("UTC")
    return rows.assign(open_time=dates, close_time=find_session_closes(dates, market.calendar))


def _place_hourly(rows: pd.DataFrame, market: Market, _chart: _Chart) -> pd.DataFrame:
    """Add open_time and close_time on the hourly grid that begins with each session.

    Rows before an open are dropped; the row Yahoo stamps with the close belongs to the last hour.
    """
    first, last = rows["stamp"].min() - MARGIN, rows["stamp"].max() + MARGIN
    sessions = read_sessions(market.calendar, first.to_pydatetime(), last.to_pydatetime())
    rows = pd.merge_asof(rows, sessions, left_on="stamp", right_on="open_time")
    rows = rows[rows["stamp"] <= rows["close_time"]]
    inside = rows["stamp"].clip(upper=rows["close_time"] - pd.Timedelta(seconds=1))
    starts = rows["open_time"] + (inside - rows["open_time"]).dt.floor("h")
    ends = (starts + pd.Timedelta(hours=1)).clip(upper=rows["close_time"])
    return rows.assign(open_time=starts, close_time=ends)


def _merge_rows(
    rows: pd.DataFrame, market: Market, interval: Interval, chart: _Chart, now: datetime
) -> pd.DataFrame:
    """Return one bar per open_time: first open, extremes, last close, greatest volume.

    Yahoo repeats the running session as a second row, stamped with its last trade.
    """
    how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "max"}
    bars = rows.groupby("open_time").agg({**how, "close_time": "last", "stamp": "last"})
    closes = pd.DatetimeIndex(bars["close_time"])
    is_live = _find_live_rows(bars, chart)
    lag = find_publication_lag(market)
    return build_bar_frame(
        {
            "interval": interval.value,
            "open_time": pd.DatetimeIndex(bars.index),
            "close_time": closes,
            **{name: bars[name].to_numpy() for name in (*PRICES, "volume")},
            "volume_kind": "quote" if market.calendar == ALWAYS_OPEN else "shares",
            "is_final": (closes + lag <= pd.Timestamp(now)) & ~is_live,
        }
    )


def _find_live_rows(bars: pd.DataFrame, chart: _Chart) -> npt.NDArray[np.bool_]:
    """Mark the bar whose stamp is that of the last trade, when that is before its close."""
    seconds = chart.meta.get("regularMarketTime")
    if type(seconds) is not int or not 0 < seconds < 4_200_000_000:
        return np.zeros(len(bars), dtype=np.bool_)
    last_trade = pd.Timestamp(seconds, unit="s", tz="UTC")
    is_live = (bars["stamp"] == last_trade) & (bars["close_time"] > last_trade)
    return np.asarray(is_live, dtype=np.bool_)


def parse_snapshot(body: object, market: Market) -> list[PriceSnapshot]:
    """Return the price in a chart's meta object; none where Yahoo has none.

    An error envelope, another shape, symbol or currency is a ``PermanentProviderError``.
    """
    chart = _open_chart(body, market)
    names = ("regularMarketPrice", "regularMarketTime", "regularMarketVolume")
    values = parse_numbers(NAME, "meta", [chart.meta.get(name) for name in names])
    price, seconds, volume = (float(value) for value in values)
    if math.isnan(price) or math.isnan(seconds):
        return []
    observed_at = parse_stamps(NAME, names[1], values[1:2])[0].to_pydatetime().astimezone(UTC)
    is_rolling = market.calendar == ALWAYS_OPEN and not math.isnan(volume)
    price = float(clean_prices(values[:1], is_minor=chart.is_minor)[0])
    return [PriceSnapshot(market, observed_at, price, volume_24h=volume if is_rolling else None)]
