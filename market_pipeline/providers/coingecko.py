"""CoinGecko v3: crypto prices averaged over many venues.

Here: the explicit map from symbols to coin ids (tickers are not unique: ``spx`` is a meme coin),
queries, and parsers that build bars from price points.
Not here: sockets and retries (``http.py``).

Wire facts: the stamps of a daily chart are 00:00 UTC and close the day before; the last point is
"now". A finished day appears up to 35 minutes after midnight. Hourly points are the price at a full
hour, stamped a little later: up to 4 minutes in recordings; in reports 3 in the median, and up to
10 for nine in ten. Two of them are never less than 57 minutes apart.
``total_volumes`` is a rolling 24 h figure in the quote currency. The keyless and Demo plans answer
for the past 365 days only. Daily candles (``/ohlc/range``) exist on paid plans alone and are not
used, so that all bars of a series come from one kind of source.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from threading import Lock
from typing import ClassVar
from urllib.parse import quote

import numpy as np
import pandas as pd

from market_pipeline.domain.errors import PermanentProviderError, SettingError
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.records import (
    HistoryTerms,
    Market,
    PriceSnapshot,
    Window,
    build_bar_frame,
    build_empty_bar_frame,
)
from market_pipeline.domain.symbols import describe_symbol, parse_symbol
from market_pipeline.providers.http import CallLimits, Clocks, HttpClient, Params, parse_base_url
from market_pipeline.providers.payloads import parse_numbers, parse_stamps, parse_time, read_field
from market_pipeline.settings import read_choice, read_variable, split_list

NAME = "coingecko"
PUBLIC_URL = "https://api.coingecko.com/api/v3"
PRO_URL = "https://pro-api.coingecko.com/api/v3"
PLANS = ("keyless", "demo", "pro")
KEY_HEADERS = {"demo": "x-cg-demo-api-key", "pro": "x-cg-pro-api-key"}
# plan: (calls a minute, calls a month); the keyless limit is unpublished, the pro one the smallest
CALLS: Mapping[str, tuple[float | None, int | None]] = {
    "keyless": (25.0, None),
    "demo": (100.0, 10_000),
    "pro": (250.0, 100_000),
}
FREE_HISTORY = timedelta(days=365)
FREE_REACH = FREE_HISTORY - timedelta(days=1)  # planned today, perhaps asked tomorrow
DAILY_PAGE = timedelta(days=5000)
HOURLY_PAGE = timedelta(days=89)
TOLERANCES: Mapping[Interval, timedelta] = {
    Interval.HOUR: timedelta(minutes=20),
    Interval.DAY: timedelta(0),
}
"""How far from a boundary a point may be stamped and be the price there."""
CHUNK = HOURLY_PAGE + timedelta(hours=3)  # a page, widened to whole hours and their tolerance
SHORTEST_HOURLY_SPAN = timedelta(days=2)
PUBLICATION_LAG = timedelta(minutes=35)
NOISE_RATIO = 1e-9  # Averages over exchanges, sent with all digits of a float64.
PARSING = 2  # 1 took an hour's close from the point inside it
COINS_PER_PAGE = 250
EARLIEST_STAMP_SECONDS = 1_230_768_000.0  # 2009: seconds read as milliseconds land in 1970
_COIN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")

COIN_IDS: Mapping[str, str] = {
    "BTC-USD": "bitcoin",
    "ETH-USD": "ethereum",
    "USDT-USD": "tether",
    "BNB-USD": "binancecoin",
    "SOL-USD": "solana",
    "XRP-USD": "ripple",
    "USDC-USD": "usd-coin",
    "ADA-USD": "cardano",
    "AVAX-USD": "avalanche-2",
    "DOGE-USD": "dogecoin",
    "TRX-USD": "tron",
    "DOT-USD": "polkadot",
    "LINK-USD": "chainlink",
    "TON-USD": "the-open-network",
    "SHIB-USD": "shiba-inu",
    "LTC-USD": "litecoin",
    "DAI-USD": "dai",
    "BCH-USD": "bitcoin-cash",
    "UNI-USD": "uniswap",
    "ETC-USD": "ethereum-classic",
    "ATOM-USD": "cosmos",
    "LEO-USD": "leo-token",
    "APT-USD": "aptos",
    "NEAR-USD": "near",
    "XLM-USD": "stellar",
    "OP-USD": "optimism",
    "INJ-USD": "injective-protocol",
    "FIL-USD": "filecoin",
    "XMR-USD": "monero",
    "ARB-USD": "arbitrum",
    "HBAR-USD": "hedera-hashgraph",
    "VET-USD": "vechain",
    "ICP-USD": "internet-computer",
    "AAVE-USD": "aave",
    "ALGO-USD": "algorand",
    "SUI-USD": "sui",
    "MKR-USD": "maker",
    "PEPE-USD": "pepe",
    "XTZ-USD": "tezos",
}


class CoinGeckoProvider:
    """Serves well-known coins in US dollars, and whatever ``COINGECKO_IDS`` adds.

    The free plans' history limit follows the wall clock.
    """

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "Crypto prices averaged over venues; free, or with a key"
    homepage: ClassVar[str] = "https://www.coingecko.com"
    calls_per_minute: float | None = CALLS["keyless"][0]
    calls_per_month: int | None = CALLS["keyless"][1]

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        clocks: Clocks | None = None,
        limits: CallLimits | None = None,
    ) -> None:
        self._key = read_variable("COINGECKO_API_KEY", environ)
        self._plan = read_choice("COINGECKO_PLAN", ("", *PLANS), environ)
        self._coin_ids = {**COIN_IDS, **parse_coin_ids(read_variable("COINGECKO_IDS", environ))}
        address = read_variable("COINGECKO_BASE_URL", environ)
        self._base_url = parse_base_url("COINGECKO_BASE_URL", address) if address else ""
        self._clocks = clocks or Clocks()
        self._limits = limits or CallLimits()
        self._client: HttpClient | None = None
        self._lock = Lock()
        self._keep_to(self._plan or ("demo" if self._key else "keyless"))

    def explain_missing_settings(self) -> str | None:
        """Return that a key is missing where the chosen plan needs one."""
        if self._plan in KEY_HEADERS and not (self._key or self._base_url):
            return f"set COINGECKO_API_KEY, or COINGECKO_PLAN=keyless (now {self._plan})"
        return None

    def list_symbols(self) -> tuple[str, ...]:
        """Return the symbols that have a coin id."""
        return tuple(self._coin_ids)

    def find_market(self, symbol: str) -> Market | None:
        """Return the market of a symbol in the map."""
        coin_id = self._coin_ids.get(symbol)
        if coin_id is None:
            return None
        description = describe_symbol(symbol)
        return Market(
            provider=self.name,
            symbol=symbol,
            provider_market_id=coin_id,
            name=coin_id.replace("-", " ").title(),
            base=description.base,
            quote=description.quote,
            venue="aggregate",
            calendar=ALWAYS_OPEN,
            intervals=(Interval.HOUR, Interval.DAY),
        )

    def describe_history(self, market: Market, interval: Interval) -> HistoryTerms:
        """Return how far the plan reaches back; no limit is known of a key not used yet."""
        del market  # all are served alike
        page = HOURLY_PAGE if interval is Interval.HOUR else DAILY_PAGE
        if self._plan == "pro" or (self._key and not self._plan):
            return HistoryTerms(page, PUBLICATION_LAG, None, NOISE_RATIO, PARSING)
        page = min(page, FREE_REACH)
        return HistoryTerms(page, PUBLICATION_LAG, FREE_REACH, NOISE_RATIO, PARSING)

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> pd.DataFrame:
        """Return bars built from price points; those without a point at each end are absent.

        A bar whose price at one end came in two versions comes in two rows, which contradict each
        other. A window that is older than the plan's history is a ``PermanentProviderError``.
        """
        if interval not in market.intervals:
            raise PermanentProviderError(self.name, f"{market.symbol} has no bars of {interval}")
        client = self._connect()
        asked = self._clip(_widen(window, interval, now))
        if asked.start >= asked.end:
            return build_empty_bar_frame()
        chunks = [asked] if interval is Interval.DAY else map(self._clip, split_hourly(asked))
        points = [
            parse_points(client.fetch_json(*build_chart_query(market, interval, chunk)), chunk)
            for chunk in chunks
        ]
        bars = build_bars(pd.concat(points), interval, now)
        first = max(window.start, asked.start)
        is_wanted = bars["open_time"].between(first, window.end, inclusive="left")
        return bars[is_wanted].reset_index(drop=True)

    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return prices, 250 coins in one request; a coin the answer leaves out has none."""
        del now  # the answer says when each price was true
        client = self._connect() if markets else None
        snapshots: list[PriceSnapshot] = []
        for batch in _split_by_quote(markets):
            path, params = build_snapshot_query(batch)
            snapshots += parse_snapshots(client.fetch_json(path, params), batch) if client else []
        return snapshots

    def _clip(self, window: Window) -> Window:
        """Cut off what the plan has no history for, and raise if nothing is left."""
        if self._plan == "pro":
            return window
        earliest = self._clocks.utc() - FREE_HISTORY + timedelta(minutes=5)
        if window.end <= earliest:
            raise PermanentProviderError(
                self.name,
                f"prices before {window.end:%Y-%m-%d} need a paid plan (the {self._plan} plan "
                "answers for the past 365 days): set COINGECKO_API_KEY and COINGECKO_PLAN=pro",
            )
        return Window(max(window.start, earliest), window.end)

    def _connect(self) -> HttpClient:
        with self._lock:
            if self._client is None:
                self._plan = self._plan or self._detect_plan()
                self._keep_to(self._plan)
                self._client = self._make_client(self._plan)
            return self._client

    def _keep_to(self, plan: str) -> None:
        self.calls_per_minute, self.calls_per_month = CALLS[plan]

    def _detect_plan(self) -> str:
        """Return the plan of the key: only the pro host knows pro keys."""
        if not self._key:
            return "keyless"
        try:
            self._make_client("pro").fetch_json("/key")
        except PermanentProviderError as error:
            if error.status not in (400, 401, 403):
                raise
            return "demo"
        return "pro"

    def _make_client(self, plan: str) -> HttpClient:
        headers = {KEY_HEADERS[plan]: self._key} if plan in KEY_HEADERS and self._key else {}
        base_url = self._base_url or (PRO_URL if plan == "pro" else PUBLIC_URL)
        return HttpClient(self.name, base_url, headers, self._limits, self._clocks)


def parse_coin_ids(text: str) -> dict[str, str]:
    """Return the coin ids in ``FOO-USD=foo-id,BAR-USD=bar-id``; each symbol must be a pair."""
    found = {}
    for entry in split_list(text):
        symbol, _, coin_id = (part.strip() for part in entry.partition("="))
        symbol = parse_symbol(symbol)
        is_pair = describe_symbol(symbol).calendar == ALWAYS_OPEN
        if not (is_pair and _COIN_ID.fullmatch(coin_id)):
            raise SettingError(f"COINGECKO_IDS has {entry[:60]!r}: expected SYMBOL-USD=coin-id")
        found[symbol] = coin_id
    return found


def _widen(window: Window, interval: Interval, now: datetime) -> Window:
    """Return the span of points that the window's bars are made of, none of them after ``now``."""
    tolerance = TOLERANCES[interval]
    start = pd.Timestamp(window.start).floor(_FREQUENCIES[interval]) - tolerance
    end = pd.Timestamp(window.end).ceil(_FREQUENCIES[interval]) + tolerance
    return Window(start.to_pydatetime(), min(end.to_pydatetime(), now))


_FREQUENCIES = {Interval.HOUR: "h", Interval.DAY: "D"}


def split_hourly(window: Window) -> Iterator[Window]:
    """Cut a span into parts that CoinGecko answers hour by hour: 2 to 90 days long.

    A shorter part would come in 5-minute points and give other bars: its start is moved back.
    """
    start = window.start
    while start < window.end:
        end = min(start + CHUNK, window.end)
        yield Window(min(start, end - SHORTEST_HOURLY_SPAN), end)
        start = end


def build_chart_query(
    market: Market, interval: Interval, window: Window
) -> tuple[str, dict[str, str | int]]:
    """Return path and query of a span's price points, both ends included."""
    params: dict[str, str | int] = {
        "vs_currency": market.quote.lower(),
        "from": int(window.start.timestamp()),
        "to": int(window.end.timestamp()),
    }
    if interval is Interval.DAY:
        params["interval"] = "daily"
    return f"/coins/{quote(market.provider_market_id, safe='')}/market_chart/range", params


def parse_points(body: object, window: Window) -> pd.DataFrame:
    """Return the price points of a chart in a window, ordered by time; equal ones count once.

    Columns are ``stamp`` (UTC), ``price`` and ``volume`` (rolling 24 h, NaN where not given).
    Points whose price is null are left out. Another shape, or points that all lie outside the
    window, are a ``PermanentProviderError``.
    """
    prices, volumes = _parse_pairs(body, "prices"), _parse_pairs(body, "total_volumes")
    volumes = volumes[~volumes.index.duplicated(keep="last")].reindex(prices.index)
    points = pd.DataFrame({"price": prices, "volume": volumes}).rename_axis("stamp").reset_index()
    points = _order_points(points)
    margin = timedelta(hours=1)
    is_inside = points["stamp"].between(window.start - margin, window.end + timedelta(minutes=1))
    if len(points) and not is_inside.any():
        asked = f"asked for {window.start:%Y-%m-%d} to {window.end:%Y-%m-%d}"
        raise PermanentProviderError(NAME, f"{asked}, all points lie outside")
    return points[is_inside & points["price"].notna()].reset_index(drop=True)


def _parse_pairs(body: object, name: str) -> "pd.Series[float]":
    rows = read_field(NAME, body, name)
    if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 2 for r in rows):
        raise PermanentProviderError(NAME, f"{name} is not a list of pairs")
    stamps = parse_numbers(NAME, name, [row[0] for row in rows]) / 1000
    index = parse_stamps(NAME, name, stamps, EARLIEST_STAMP_SECONDS)
    values = parse_numbers(NAME, name, [row[1] for row in rows])
    return pd.Series(values, index=index, dtype="float64")


def _order_points(points: pd.DataFrame) -> pd.DataFrame:
    """Return points by time, equal ones once."""
    return points.drop_duplicates(["stamp", "price"], keep="last").sort_values(["stamp", "price"])


def build_bars(points: pd.DataFrame, interval: Interval, now: datetime) -> pd.DataFrame:
    """Return the bars that price points add up to, ordered by open_time.

    A point belongs to the boundary it is stamped near, closes the bar before it and opens the one
    after it. A bar is final when its closing point, and its close, lie the publication lag back;
    the last point of all is the running bar's close so far. A bar of which one price came in two
    versions is returned in both, for the rules to refuse.
    """
    if points.empty:
        return build_empty_bar_frame()
    points = _order_points(points)
    ends = _find_ends(points, interval, now)
    variants = [_build_variant(ends, name, points, interval, now) for name in ("least", "most")]
    bars = pd.concat(variants).drop_duplicates(["open_time", "open", "close"])
    return _build_frame(bars.sort_values("open_time", kind="stable"), interval)


def _find_ends(points: pd.DataFrame, interval: Interval, now: datetime) -> pd.DataFrame:
    """Return what the points say about each boundary of bars that they lie near.

    ``least`` and ``most`` differ where several prices came. ``is_settled``: the points are old
    enough not to be the price of the moment.
    """
    at = points["stamp"].dt.round(_FREQUENCIES[interval])
    distance = (points["stamp"] - at).abs()
    near = points.assign(at=at, distance=distance)[distance <= TOLERANCES[interval]]
    told_at = near[["stamp", "at"]].max(axis=1)
    near = near.assign(is_settled=told_at + PUBLICATION_LAG <= pd.Timestamp(now))
    settled = near[near["is_settled"]]
    # Of the others the nearest counts, and only while there is no better one: they may change.
    fresh = near[~near["is_settled"] & ~near["at"].isin(settled["at"])].sort_values("distance")
    groups = pd.concat([settled, fresh.drop_duplicates("at")]).groupby("at")
    return pd.DataFrame(
        {
            "least": groups["price"].min(),
            "most": groups["price"].max(),
            "volume": groups["volume"].last(),
            "is_settled": groups["is_settled"].all(),
        }
    )


def _build_variant(
    ends: pd.DataFrame, name: str, points: pd.DataFrame, interval: Interval, now: datetime
) -> pd.DataFrame:
    """Return the bars between boundaries that have a price, and the running one."""
    opens = pd.DatetimeIndex(ends.index) - interval.duration
    closed = pd.DataFrame(
        {
            "open_time": opens,
            "open": ends[name].reindex(opens).to_numpy(),
            "close": ends[name].to_numpy(),
            "volume": ends["volume"].to_numpy(),
            "is_final": ends["is_settled"].to_numpy(),
        }
    )
    last = points.iloc[-1]
    began = last["stamp"].floor(_FREQUENCIES[interval])
    is_running = began + interval.duration + PUBLICATION_LAG > pd.Timestamp(now)
    nearest = last["stamp"].round(_FREQUENCIES[interval])
    is_apart = abs(last["stamp"] - nearest) > TOLERANCES[interval]
    bars = closed[closed["open"].notna()]
    if is_running and is_apart and began in ends.index:
        prices = {"open": ends.loc[began, name], "close": last["price"], "volume": last["volume"]}
        running = pd.DataFrame([{"open_time": began, **prices, "is_final": False}])
        bars = pd.concat([bars, running]) if len(bars) else running
    return bars


def _build_frame(bars: pd.DataFrame, interval: Interval) -> pd.DataFrame:
    opens = pd.DatetimeIndex(bars["open_time"])
    return build_bar_frame(
        {
            "interval": interval.value,
            "open_time": opens,
            "close_time": opens + interval.duration,
            "open": bars["open"].to_numpy(),
            "high": bars[["open", "close"]].max(axis=1).to_numpy(),
            "low": bars[["open", "close"]].min(axis=1).to_numpy(),
            "close": bars["close"].to_numpy(),
            "volume": bars["volume"].to_numpy(),
            "volume_kind": "rolling_24h",
            "source_kind": "points",
            "is_final": bars["is_final"].to_numpy(),
        }
    )


def _split_by_quote(markets: Sequence[Market]) -> Iterator[list[Market]]:
    """Yield batches of one quote currency and at most one page."""
    for currency in dict.fromkeys(market.quote for market in markets):
        same = [market for market in markets if market.quote == currency]
        for start in range(0, len(same), COINS_PER_PAGE):
            yield same[start : start + COINS_PER_PAGE]


def build_snapshot_query(markets: Sequence[Market]) -> tuple[str, Params]:
    """Return path and query of a page of prices; a blank in the ids would drop all but one."""
    ids = ",".join(dict.fromkeys(market.provider_market_id for market in markets))
    return "/coins/markets", {
        "vs_currency": markets[0].quote.lower(),
        "ids": ids,
        "per_page": COINS_PER_PAGE,
        "page": 1,
        "precision": "full",
    }


def parse_snapshots(body: object, markets: Sequence[Market]) -> list[PriceSnapshot]:
    """Return the prices of the markets asked for, in their order.

    Coins nobody asked for are ignored; a coin without a price or its time has no snapshot. Another
    shape, or not one of the coins, is a ``PermanentProviderError``.
    """
    if not isinstance(body, list):
        raise PermanentProviderError(NAME, "coins/markets did not answer with a list")
    rows = {str(row.get("id")): row for row in reversed(body) if isinstance(row, dict)}
    known = [market for market in markets if market.provider_market_id in rows]
    if not known:
        raise PermanentProviderError(
            NAME,
            f"coins/markets answered with none of the {len(markets)} coins asked",
        )
    snapshots = (_parse_snapshot(market, rows[market.provider_market_id]) for market in known)
    return [snapshot for snapshot in snapshots if snapshot is not None]


def _parse_snapshot(market: Market, row: Mapping[str, object]) -> PriceSnapshot | None:
    price, updated = _read_number(row, "current_price"), row.get("last_updated")
    if price is None or updated is None:
        return None
    observed_at = parse_time(NAME, "last_updated", updated)
    change_pct = _read_number(row, "price_change_percentage_24h")
    return PriceSnapshot(
        market,
        observed_at,
        price,
        volume_24h=_read_number(row, "total_volume"),
        change_24h_ratio=None if change_pct is None else change_pct / 100,
        market_cap=_read_number(row, "market_cap"),
    )


def _read_number(row: Mapping[str, object], name: str) -> float | None:
    """Return a number, or None for null; a missing field is an error."""
    number = parse_numbers(NAME, f"coins/markets {name}", [read_field(NAME, row, name)])[0]
    return None if np.isnan(number) else float(number)
