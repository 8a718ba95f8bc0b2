"""The terms on which providers answer: pages, reach, publication and call limits, kept as told."""

import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from market_pipeline.domain.columns import BarColumns
from market_pipeline.domain.grids import find_grid
from market_pipeline.domain.intervals import ALWAYS_OPEN, Interval
from market_pipeline.domain.records import HistoryTerms, Market, Window
from market_pipeline.providers.base import Provider
from market_pipeline.providers.coingecko import CoinGeckoProvider, build_bars
from market_pipeline.providers.file import FileProvider
from market_pipeline.providers.mock import MockProvider
from market_pipeline.providers.registry import load_provider
from market_pipeline.providers.yahoo import YahooProvider
from market_pipeline_tests.commands import ROOT
from market_pipeline_tests.providers.clocks import QUICK, FakeTime
from market_pipeline_tests.replay import ReplayServer, answer_with, read_recording

BUILT_IN = ("binance", "coinbase", "coingecko", "file", "fred", "kraken", "mock", "yahoo")
MOST_BARS = 5000
NOW = datetime(2024, 6, 3, 12, 20, tzinfo=UTC)
PLANS = [
    {"COINGECKO_PLAN": plan, "COINGECKO_API_KEY": key}
    for plan, key in [("", ""), ("", "k"), ("keyless", ""), ("demo", "k"), ("pro", "k")]
]
MINUTE = timedelta(minutes=1)


@pytest.fixture
def file_path(tmp_path: Path) -> Path:
    """A folder with a market of twelve years of days."""
    days = pd.date_range("2010-01-01", "2021-12-31", freq="D").strftime("%Y-%m-%d")
    lines = [f"{day},1,2,0.5,1.5,10" for day in days]
    text = "\n".join(["open_time,open,high,low,close,volume", *lines])
    (tmp_path / "BTC-USD.csv").write_text(text)
    return tmp_path


def find(provider: Provider, symbol: str = "BTC-USD") -> Market:
    """Return a market that must be there."""
    market = provider.find_market(symbol)
    assert market is not None
    return market


SOURCES = dict(
    re.findall(
        r"^\| `([a-z]+)\S*` \| (.*) \|$", (ROOT / "docs/sources.md").read_text(), re.MULTILINE
    )
)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "file"])
def test_the_page_of_sources_says_what_a_provider_keeps_to(name: str) -> None:
    """Its calls a minute, and how long after a close its bars are final."""
    provider = load_provider(name, {})
    cells = SOURCES[name].split(" | ")
    calls, final = cells[2], cells[5]
    assert calls.startswith(f"{provider.calls_per_minute or 0:g}" if "no" not in calls else "no")
    symbol = {"yahoo": "SPX", "fred": "SPX", "binance": "BTC-USDT"}.get(name, "BTC-USD")
    market = find(provider, symbol)
    lag = provider.describe_history(market, Interval.DAY).publication_lag
    unit = MINUTE if " min " in final else 60 * MINUTE
    assert final.startswith(f"{lag / unit:g} ")


def test_the_page_of_sources_names_every_provider() -> None:
    """No source is known to the settings alone."""
    assert set(SOURCES) == {*BUILT_IN, "ccxt"}


def list_terms(provider: Provider, *symbols: str) -> list[tuple[Market, Interval, HistoryTerms]]:
    """Return the terms of each market's intervals."""
    markets = [find(provider, symbol) for symbol in symbols]
    return [
        (market, interval, provider.describe_history(market, interval))
        for market in markets
        for interval in market.intervals
    ]


@pytest.mark.parametrize("environ", PLANS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_terms_are_consistent(name: str, environ: dict[str, str], file_path: Path) -> None:
    """Pages are positive and within reach, lags shorter than a bar, limits positive."""
    provider = load_provider(name, {**environ, "FILE_PROVIDER_PATH": str(file_path)})
    symbol = "BTC-USD" if name == "file" else provider.list_symbols()[0]
    for _, interval, terms in list_terms(provider, symbol):
        assert interval.duration <= terms.page
        assert terms.reaches_back is None or terms.page <= terms.reaches_back
        assert timedelta(0) <= terms.publication_lag < interval.duration
    assert provider.calls_per_minute is None or provider.calls_per_minute > 0
    assert provider.calls_per_month is None or provider.calls_per_month > 0


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "file"])
def test_a_page_holds_at_most_5000_bars(name: str) -> None:
    """So that a batch stays small."""
    provider = load_provider(name, {"COINGECKO_PLAN": "pro"})
    symbols = {"BTC-USD", "BTC-USDT", "SPX"} & set(provider.list_symbols())
    for market, interval, terms in list_terms(provider, *symbols):
        page = Window(NOW - terms.page, NOW)
        assert 200 < find_grid(market.calendar, interval, page).count(page) <= MOST_BARS


@pytest.mark.parametrize("minutes", [0, 20])
@pytest.mark.parametrize("interval", [Interval.HOUR, Interval.DAY])
def test_a_page_of_coingecko_is_one_request(
    server: ReplayServer, fake_time: FakeTime, interval: Interval, minutes: int
) -> None:
    """Wherever in the hour it begins; the answer comes in the interval asked for."""
    fake_time.utc_now = NOW
    environ = {**server.environ, "COINGECKO_PLAN": "keyless"}
    provider = CoinGeckoProvider(environ, clocks=fake_time.clocks, limits=QUICK)
    market = find(provider)
    end = datetime(2024, 6, 1, tzinfo=UTC) + minutes * MINUTE
    page = Window(end - provider.describe_history(market, interval).page, end)
    bars = provider.fetch_bars(market, interval, page, NOW)
    (seen,) = server.requests
    asked = timedelta(seconds=int(seen.query["to"]) - int(seen.query["from"]))
    assert interval is Interval.DAY or asked <= timedelta(days=90)
    assert bars["open_time"].between(page.start, page.end, inclusive="left").all()
    assert bars["interval"].unique().tolist() == [interval.value]


@pytest.mark.parametrize("symbol", ["BTC-USD", "SPX"])
@pytest.mark.parametrize("interval", [Interval.HOUR, Interval.DAY])
def test_a_page_of_yahoo_is_one_request(
    server: ReplayServer, fake_time: FakeTime, interval: Interval, symbol: str
) -> None:
    """Hours never begin before what Yahoo has, also at the far end of the reach."""
    fake_time.utc_now = NOW
    provider = YahooProvider(server.environ, clocks=fake_time.clocks, limits=QUICK)
    market = find(provider, symbol)
    terms = provider.describe_history(market, interval)
    start = NOW - (terms.reaches_back or terms.page)
    provider.fetch_bars(market, interval, Window(start, start + terms.page), NOW)
    (seen,) = server.requests
    first = datetime.fromtimestamp(int(seen.query["period1"]), UTC)
    assert first <= start
    assert interval is Interval.DAY or NOW - first < timedelta(days=730)


def test_a_page_at_the_far_end_of_the_reach_is_whole_at_coingecko(
    server: ReplayServer, fake_time: FakeTime
) -> None:
    """What is planned as within reach is not cut off, also when it is asked for hours later."""
    fake_time.utc_now = NOW + timedelta(hours=6)
    environ = {**server.environ, "COINGECKO_PLAN": "keyless"}
    provider = CoinGeckoProvider(environ, clocks=fake_time.clocks, limits=QUICK)
    market = find(provider)
    for interval in market.intervals:
        terms = provider.describe_history(market, interval)
        assert terms.reaches_back is not None
        start = NOW - terms.reaches_back
        provider.fetch_bars(market, interval, Window(start, start + timedelta(days=9)), NOW)
        assert int(server.requests[-1].query["from"]) <= math.floor(start.timestamp())


@pytest.mark.parametrize("interval", [Interval.HOUR, Interval.DAY])
@pytest.mark.parametrize("symbol", ["BTC-USD", "SPX"])
def test_a_page_of_the_mock_is_answered_whole(symbol: str, interval: Interval) -> None:
    """One bar for each that the calendar expects."""
    provider = MockProvider({})
    market = find(provider, symbol)
    end = datetime(2024, 6, 1, tzinfo=UTC)
    page = Window(end - provider.describe_history(market, interval).page, end)
    expected = find_grid(market.calendar, interval, page).count(page)
    assert len(provider.fetch_bars(market, interval, page, NOW)) == expected


def test_a_file_is_one_page(file_path: Path) -> None:
    """It is read whole, however long."""
    provider = FileProvider({"FILE_PROVIDER_PATH": str(file_path)})
    market = find(provider)
    page = Window(NOW - provider.describe_history(market, Interval.DAY).page, NOW)
    assert len(provider.fetch_bars(market, Interval.DAY, page, NOW)) == 4383  # 12 years


@pytest.mark.parametrize(("minute", "is_final"), [(34, False), (36, True)])
@pytest.mark.parametrize("interval", [Interval.HOUR, Interval.DAY])
def test_coingeckos_bars_are_final_when_its_terms_say_so(
    interval: Interval, minute: int, is_final: bool
) -> None:
    """Provisional at 00:34 UTC, final at 00:36, by its rule and by its publication lag alike."""
    midnight = datetime(2024, 6, 3, tzinfo=UTC)
    stamps = pd.date_range(midnight - timedelta(days=2), midnight, freq="h")
    points = pd.DataFrame({"stamp": stamps.as_unit("us"), "price": 1.0, "volume": 2.0})
    now = midnight + minute * MINUTE
    bars = build_bars(points, interval, now).set_index("close_time")
    provider = CoinGeckoProvider({})
    lag = provider.describe_history(find(provider), interval).publication_lag
    assert bool(bars["is_final"].loc[pd.Timestamp(midnight)]) is is_final
    assert (midnight + lag <= now) is is_final


@pytest.mark.parametrize("seconds", [-1, 0])
@pytest.mark.parametrize("symbol", ["BTC-USD", "SPX"])
@pytest.mark.parametrize("name", ["mock", "yahoo"])
def test_other_bars_are_final_when_their_terms_say_so(
    server: ReplayServer, fake_time: FakeTime, name: str, symbol: str, seconds: int
) -> None:
    """A second before close and lag a bar is provisional, then it is final."""
    provider: Provider = MockProvider({})
    if name == "yahoo":
        provider = YahooProvider(server.environ, clocks=fake_time.clocks, limits=QUICK)
    market = find(provider, symbol)
    lag = provider.describe_history(market, Interval.DAY).publication_lag
    day = datetime(2014, 12, 30, tzinfo=UTC)
    close = day + timedelta(days=1) if market.calendar == ALWAYS_OPEN else day.replace(hour=21)
    now = close + lag + timedelta(seconds=seconds)
    server.now = now
    answer = provider.fetch_bars(market, Interval.DAY, Window(day, day + timedelta(days=1)), now)
    bars = answer.to_frame() if isinstance(answer, BarColumns) else answer
    assert bars["close_time"].tolist() == [pd.Timestamp(close)]
    assert bars["is_final"].tolist() == [seconds == 0]


def test_a_plan_decides_calls_and_reach() -> None:
    """The free plans answer for a year; a key not used yet may be of any plan."""
    grants = {}
    for environ in PLANS:
        provider = CoinGeckoProvider(environ)
        terms = provider.describe_history(find(provider), Interval.DAY)
        days = None if terms.reaches_back is None else terms.reaches_back.days
        grants[tuple(environ.values())] = (
            provider.calls_per_minute, provider.calls_per_month, days,
        )  # fmt: skip
    assert grants == {
        ("", ""): (25, None, 364),
        ("", "k"): (100, 10_000, None),
        ("keyless", ""): (25, None, 364),
        ("demo", "k"): (100, 10_000, 364),
        ("pro", "k"): (250, 100_000, None),
    }


@pytest.mark.parametrize(("status", "grants"), [(200, (250, None)), (401, (100, 364))])
def test_the_plan_of_a_key_is_known_after_its_first_use(
    server: ReplayServer, fake_time: FakeTime, status: int, grants: tuple[int, int | None]
) -> None:
    """Limits and reach follow what the key turned out to be."""
    if status != 200:
        body = read_recording("coingecko/ping_demo_bad_key_401.json")
        server.misbehave(answer_with(body, status), path="/coingecko/key")
    environ = {**server.environ, "COINGECKO_PLAN": "", "COINGECKO_API_KEY": "CG-1"}
    provider = CoinGeckoProvider(environ, clocks=fake_time.clocks, limits=QUICK)
    market = find(provider)
    provider.fetch_snapshots([market], NOW)
    reach = provider.describe_history(market, Interval.DAY).reaches_back
    assert (provider.calls_per_minute, reach and reach.days) == grants
