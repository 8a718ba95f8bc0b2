"""Finding providers, and deciding which of them serves which market."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from market_pipeline.domain.errors import MarketNotServedError, SettingError
from market_pipeline.providers.base import Provider
from market_pipeline.providers.registry import list_provider_names, load_provider, route_markets
from market_pipeline_tests.commands import COMMAND_SECONDS, run_command
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.replay import ReplayServer, answer_with

BUILT_IN = ("binance", "coinbase", "coingecko", "file", "fred", "kraken", "mock", "yahoo")
ROOT = Path(__file__).resolve().parents[2]


def test_the_built_in_providers_are_found_by_entry_point() -> None:
    """By name, without loading any."""
    assert set(BUILT_IN) <= set(list_provider_names())


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_provider_keeps_the_contract(name: str) -> None:
    """It constructs with an empty environment, names itself, and lists markets it serves."""
    provider = load_provider(name, {})
    assert isinstance(provider, Provider)
    assert (provider.name, bool(provider.summary)) == (name, True)
    assert provider.homepage.startswith("https://")
    for symbol in provider.list_symbols():
        market = provider.find_market(symbol)
        assert market is not None
        assert (market.provider, market.symbol) == (name, symbol)
        assert market.provider_market_id


@pytest.mark.parametrize(
    "name", ["COINGECKO_BASE_URL", "YAHOO_BASE_URL", "MOCK_SEED", "COINGECKO_PLAN", "COINGECKO_IDS"]
)
def test_an_empty_variable_means_unset(name: str) -> None:
    """What an .env file leaves blank is not set."""
    for provider in BUILT_IN:
        load_provider(provider, {name: ""})


def test_an_unknown_provider_is_named_with_the_known_ones() -> None:
    """A typing error is found before anything is asked."""
    with pytest.raises(
        SettingError, match=r"'gecko' is unknown: expected one of .*coinbase, coingecko"
    ):
        load_provider("gecko", {})


def test_markets_go_to_the_first_provider_that_has_them() -> None:
    """CoinGecko has no indices, so SPX falls to Yahoo; the order of the symbols is kept."""
    routes = route_markets(["SPX", "BTC-USD"], ["coingecko", "yahoo"], {})
    assert [(p.name, m.symbol) for p, m in routes] == [("yahoo", "SPX"), ("coingecko", "BTC-USD")]
    swapped = route_markets(["SPX", "BTC-USD"], ["yahoo", "coingecko"], {})
    assert [p.name for p, _ in swapped] == ["yahoo", "yahoo"]


def test_an_outage_does_not_change_the_route(server: ReplayServer) -> None:
    """Routing asks nobody, so a provider that is down keeps its markets."""
    server.misbehave(answer_with(status=503), times=50)
    routes = route_markets(["BTC-USD"], ["coingecko", "yahoo"], server.environ)
    assert [provider.name for provider, _ in routes] == ["coingecko"]
    assert server.requests == []


def test_a_symbol_nobody_serves_is_told_with_everyone_asked() -> None:
    """Each provider's reason is given: not in its catalogue, or what to set."""
    with pytest.raises(MarketNotServedError) as failure:
        route_markets(["BTC-USD", "FOO-USD"], ["file", "coingecko", "yahoo"], {})
    message = str(failure.value)
    assert "FOO-USD" in message
    assert "BTC-USD" not in message
    assert "file: not ready, set FILE_PROVIDER_PATH" in message
    assert "coingecko: not in its catalogue" in message
    assert "yahoo: not in its catalogue" in message


def test_a_provider_that_lacks_a_setting_serves_nothing() -> None:
    """Its markets go to the next in the list."""
    environ = {"COINGECKO_PLAN": "pro"}
    routes = route_markets(["BTC-USD"], ["coingecko", "yahoo"], environ)
    assert [provider.name for provider, _ in routes] == ["yahoo"]


PLUGIN = """
from datetime import timedelta
import pandas as pd
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import (
    HistoryTerms, Market, PriceSnapshot, build_bar_frame)


class HalvesProvider:
    name = "halves"
    summary = "Half a dollar, always"
    homepage = "https://example.org"
    calls_per_minute = 120
    calls_per_month = None

    def __init__(self, environ):
        self._price = float(environ.get("HALVES_PRICE") or 0.5)

    def explain_missing_settings(self):
        return None

    def list_symbols(self):
        return ("HALF-USD",)

    def find_market(self, symbol):
        if symbol != "HALF-USD":
            return None
        return Market("halves", symbol, "half", "Half", "HALF", "USD", "x", "24/7", (Interval.DAY,))

    def describe_history(self, market, interval):
        return HistoryTerms(page=timedelta(days=20), publication_lag=timedelta(hours=2))

    def fetch_bars(self, market, interval, window, now):
        assert window.end - window.start <= timedelta(days=20)
        last = min(window.end, now) - timedelta(microseconds=1)
        starts = pd.date_range(pd.Timestamp(window.start).ceil("D"), last, freq="D")
        closes = starts + timedelta(days=1)
        prices = dict.fromkeys(("open", "high", "low", "close"), self._price)
        return build_bar_frame({"interval": "1d", "open_time": starts, **prices,
            "close_time": closes, "is_final": closes + timedelta(hours=2) <= now})

    def fetch_snapshots(self, markets, now):
        return [PriceSnapshot(market, now, self._price) for market in markets]
"""
SETUP = """
from setuptools import setup
setup(name="market-pipeline-halves", version="1.2", py_modules=["halves_plugin"], entry_points={
    "market_pipeline.providers": [
        "halves=halves_plugin:HalvesProvider",
        "broken=halves_plugin_that_is_not_there:Provider",
        "nameless=halves_plugin:HalvesProvider",
        "mock=halves_plugin:HalvesProvider",
    ]})
"""
USE = """
from datetime import UTC, datetime
from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.records import Window
from market_pipeline.providers.registry import list_provider_names, load_provider, route_markets

assert {"halves", "broken", "coingecko"} <= set(list_provider_names())
window = Window(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 4, tzinfo=UTC))
for provider, market in route_markets(["HALF-USD", "BTC-USD"], ["yahoo", "halves"], {}):
    print(provider.name, market.symbol)
    if provider.name == "halves":
        bars = provider.fetch_bars(market, market.intervals[0], window, window.end)
        (snapshot,) = provider.fetch_snapshots([market], window.end)
        print(len(bars), bars["close"].sum(), snapshot.price)
for name in ("broken", "nameless", "mock"):
    try:
        load_provider(name, {})
    except SettingError as error:
        print(error)
"""


def run_python(arguments: list[str], folder: Path, **environ: str) -> str:
    """Run this interpreter, and return what it wrote."""
    command = [sys.executable, *arguments]
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a third party's package, built as a wheel and installed from it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    (source / "halves_plugin.py").write_text(PLUGIN)
    (source / "setup.py").write_text(SETUP)
    pip = ["-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    run_python([*pip, "wheel", "-q", *offline, "-w", "dist", "."], source)
    (wheel,) = (source / "dist").glob("*.whl")
    assert zipfile.is_zipfile(wheel)
    run_python([*pip, "install", "-q", *offline, "--target", str(target), str(wheel)], source)
    return target


def test_a_third_party_adds_a_provider_by_installing_a_package(
    plugin_folder: Path, tmp_path: Path
) -> None:
    """It is found, routed to and fetched from; broken ones are told only when asked for."""
    lines = run_python(
        ["-c", USE], tmp_path, PYTHONPATH=os.pathsep.join([str(plugin_folder), str(ROOT)])
    ).splitlines()
    assert lines[:3] == ["halves HALF-USD", "3 1.5 0.5", "yahoo BTC-USD"]
    source = "halves_plugin_that_is_not_there:Provider (package market-pipeline-halves)"
    assert lines[3].startswith(f"provider 'broken' from {source} cannot be loaded")
    assert "is not a provider of that name" in lines[4]
    assert "'mock' is offered more than once" in lines[5]


FINAL_DAYS = """
    SELECT to_char(open_time, 'YYYY-MM-DD') FROM market_data.market_aggregate
    WHERE interval = '1d' AND is_final AND close = 0.5 ORDER BY open_time"""


def test_a_third_partys_provider_feeds_whole_ingestions(
    plugin_folder: Path, tmp_path: Path, project_environment: dict[str, str]
) -> None:
    """Its terms are kept: pages of 20 days, and a day is final two hours after its close."""
    environment = {**project_environment, "PYTHONPATH": str(plugin_folder)}
    arguments = ["--provider", "halves", "--symbols", "HALF-USD", "--lookback-days", "90"]
    database = project_environment["DATABASE_URL"]
    for moment, newest in [("2024-03-15T01:00", "2024-03-13"), ("2024-03-15T02:00", "2024-03-14")]:
        ran = run_command(
            "market-pipeline", "ingest", *arguments, "--window-end", moment,
            environment=environment, folder=tmp_path,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        stored = [str(day) for day in read_column(database, FINAL_DAYS)]
        days = pd.date_range(stored[0], newest, freq="D").strftime("%Y-%m-%d").tolist()
        assert len(days) >= 89
        assert stored == days
    assert set(read_column(database, "SELECT price FROM market_data.market_snapshot")) == {0.5}
    assert read_column(database, "SELECT provider FROM market_data.market") == ["halves"]
