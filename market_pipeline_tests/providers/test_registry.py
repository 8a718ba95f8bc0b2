"""Finding providers, and deciding which of them serves which market."""

import os
import re
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from market_pipeline.domain.errors import MarketNotServedError, SettingError
from market_pipeline.providers.base import Provider
from market_pipeline.providers.registry import list_provider_names, load_provider, route_markets
from market_pipeline.testing import WireReply, WireRequest, World
from market_pipeline.testing.source import LocalSource
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


BLOCKS = re.findall(
    r"^ *```python\n(.*?)^ *```$",
    (ROOT / "CONTRIBUTING.md").read_text().partition("## Add a provider")[2],
    re.DOTALL | re.MULTILINE,
)
PLUGIN, PLUGIN_TEST = (textwrap.dedent(block) for block in BLOCKS[:2])
SETUP = """
from setuptools import setup
setup(name="market-pipeline-acme", version="1.2", py_modules=["acme"], entry_points={
    "market_pipeline.providers": [
        "acme=acme:AcmeProvider",
        "broken=acme_that_is_not_there:Provider",
        "nameless=acme:AcmeProvider",
        "mock=acme:AcmeProvider",
    ]})
"""
USE = """
from market_pipeline.domain.errors import SettingError
from market_pipeline.providers.registry import list_provider_names, load_provider, route_markets

assert {"acme", "broken", "coingecko"} <= set(list_provider_names())
for provider, market in route_markets(["BTC-USD", "AAPL"], ["acme", "yahoo"], {}):
    print(provider.name, market.symbol)
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
    """A folder with the recipe's provider, built as a wheel and installed from it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    (source / "acme.py").write_text(PLUGIN)
    (source / "setup.py").write_text(SETUP)
    pip = ["-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    run_python([*pip, "wheel", "-q", *offline, "-w", "dist", "."], source)
    (wheel,) = (source / "dist").glob("*.whl")
    assert zipfile.is_zipfile(wheel)
    run_python([*pip, "install", "-q", *offline, "--target", str(target), str(wheel)], source)
    return target


def test_the_recipe_is_short() -> None:
    """A complete file of at most 60 lines."""
    assert len(PLUGIN.splitlines()) <= 60


def test_a_third_party_adds_a_provider_by_installing_a_package(
    plugin_folder: Path, tmp_path: Path
) -> None:
    """It is found and routed to; broken ones are told only when asked for."""
    lines = run_python(
        ["-c", USE], tmp_path, PYTHONPATH=os.pathsep.join([str(plugin_folder), str(ROOT)])
    ).splitlines()
    assert lines[:2] == ["acme BTC-USD", "yahoo AAPL"]
    source = "acme_that_is_not_there:Provider (package market-pipeline-acme)"
    assert lines[2].startswith(f"provider 'broken' from {source} cannot be loaded")
    assert "is not a provider of that name" in lines[3]
    assert "'mock' is offered more than once" in lines[4]


def test_the_recipe_passes_the_conformance_suite(plugin_folder: Path, tmp_path: Path) -> None:
    """As a third party runs it: its own test file, and one import."""
    (tmp_path / "test_acme.py").write_text(PLUGIN_TEST)
    path = os.pathsep.join([str(plugin_folder), str(ROOT)])
    said = run_python(["-m", "pytest", "-q", "-p", "no:cacheprovider"], tmp_path, PYTHONPATH=path)
    assert re.search(r"^2\d passed", said, re.MULTILINE), said


FINAL_DAYS = """
    SELECT to_char(open_time, 'YYYY-MM-DD') FROM market_data.market_aggregate
    WHERE interval = '1d' AND is_final ORDER BY open_time"""


def answer_as_acme(world: World) -> Callable[[WireRequest], WireReply]:
    """Return what Acme answers, by the recipe's own test."""
    names: dict[str, Any] = {}
    exec(PLUGIN_TEST.replace("from acme import AcmeProvider\n", ""), names)  # noqa: S102
    return lambda request: names["TestAcme"]().answer(request, world)


def test_the_recipe_feeds_whole_ingestions(
    plugin_folder: Path, tmp_path: Path, project_environment: dict[str, str]
) -> None:
    """Its terms are kept: a day is final two hours after its close."""
    world = World(datetime(2024, 3, 15, 2, tzinfo=UTC), begins_at=datetime(2023, 1, 1, tzinfo=UTC))
    arguments = ["--provider", "acme", "--symbols", "BTC-USD", "--lookback-days", "90"]
    database = project_environment["DATABASE_URL"]
    with LocalSource(answer_as_acme(world)) as source:
        environment = {
            **project_environment,
            "PYTHONPATH": str(plugin_folder),
            "ACME_BASE_URL": source.address,
        }
        for hour, newest in [(1, "2024-03-13"), (2, "2024-03-14")]:
            world.now = world.now.replace(hour=hour)
            ran = run_command(
                "market-pipeline", "ingest", *arguments,
                "--window-end", f"{world.now:%Y-%m-%dT%H:%M}",
                environment=environment, folder=tmp_path,
            )  # fmt: skip
            assert ran.returncode == 0, ran.stdout + ran.stderr
            stored = [str(day) for day in read_column(database, FINAL_DAYS)]
            days = pd.date_range(stored[0], newest, freq="D").strftime("%Y-%m-%d").tolist()
            assert len(days) >= 89
            assert stored == days
    price = read_column(database, "SELECT price FROM market_data.market_snapshot")[-1]
    assert price == world.price_at(world.now)
    assert read_column(database, "SELECT provider FROM market_data.market") == ["acme"]
