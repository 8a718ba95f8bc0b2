"""The conformance suite goes red: each fault of a provider fails the test that is about it."""

import os
import re
import subprocess
import sys

import pytest

from market_pipeline_tests.commands import COMMAND_SECONDS, ROOT

MODULE = """
from datetime import timedelta
from market_pipeline.domain.errors import PermanentProviderError
from market_pipeline.domain.records import HistoryTerms, build_empty_bar_frame
from market_pipeline.providers.coinbase import CoinbaseProvider
from market_pipeline_tests.providers.test_conformance import TestCoinbase as _Coinbase


class Swapped(CoinbaseProvider):
    def parse_bars(self, *given):
        bars = super().parse_bars(*given)
        return bars.assign(open=bars["close"], close=bars["open"])


class Shifted(CoinbaseProvider):
    def parse_bars(self, *given):
        bars, step = super().parse_bars(*given), given[2].duration
        return bars.assign(open_time=bars["open_time"] + step, close_time=bars["close_time"] + step)


class Hasty(CoinbaseProvider):
    def parse_bars(self, *given):
        return super().parse_bars(*given).assign(is_final=True)


class Greedy(CoinbaseProvider):
    def describe_history(self, market, interval):
        return HistoryTerms(600 * interval.duration, self.publication_lag)


class Lossy(CoinbaseProvider):
    def _fetch_page(self, market, interval, page, now):
        return super()._fetch_page(market, interval, page, now).iloc[1:]


class Silent(CoinbaseProvider):
    def fetch_bars(self, *given):
        try:
            return super().fetch_bars(*given)
        except PermanentProviderError:
            return build_empty_bar_frame()


class Inventive(CoinbaseProvider):
    def fetch_bars(self, market, interval, window, now):
        bars = super().fetch_bars(market, interval, window, now)
        if bars.empty:
            raise PermanentProviderError(self.name, "nothing came")
        filled = bars.set_index("open_time").asfreq(interval.duration).ffill().reset_index()
        return filled.assign(close_time=filled["open_time"] + interval.duration)[bars.columns]


class Forgetful(CoinbaseProvider):
    kept = {}
    def fetch_bars(self, market, interval, window, now):
        key = (interval, window, now)
        if key not in self.kept:
            self.kept[key] = super().fetch_bars(market, interval, window, now)
        return self.kept[key]


class Ahead(CoinbaseProvider):
    def fetch_snapshots(self, markets, now):
        from dataclasses import replace
        found = super().fetch_snapshots(markets, now)
        return [replace(one, observed_at=one.observed_at + timedelta(hours=9)) for one in found]


class Fragile(CoinbaseProvider):
    def parse_bars(self, body, *given):
        len(body)
        return super().parse_bars(body, *given)


def make(broken):
    class Suite(_Coinbase):
        def connect(self, address, clocks):
            return broken({"COINBASE_BASE_URL": address}, clocks=clocks)
    return Suite


for broken in CoinbaseProvider.__subclasses__():
    globals()[f"Test{broken.__name__}"] = make(broken)
"""
SEEN_BY = {
    "Swapped": "test_bars_are_those_of_the_source",
    "Shifted": "test_bars_are_those_of_the_source",
    "Hasty": "test_the_given_clock_decides_what_is_final",
    "Greedy": "test_a_page_is_one_call_of_the_budget",
    "Lossy": "test_a_long_window_is_its_parts_joined",
    "Silent": "test_absence_is_an_error",
    "Inventive": "test_what_was_not_traded_is_not_made_up",
    "Forgetful": "test_a_restated_history_comes_as_it_is_now",
    "Ahead": "test_a_price_has_its_time",
    "Fragile": "test_bad_bytes_give_nothing_or_one_error",
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Suite and test of everything that went red, in one run over all broken providers."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "test_faults.py").write_text(MODULE)
    chosen = [f"test_faults.py::Test{fault}::{test}" for fault, test in SEEN_BY.items()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    return set(re.findall(r"^FAILED \S+::Test(\w+)::(\w+)", done.stdout, re.MULTILINE))


@pytest.mark.parametrize("fault", SEEN_BY)
def test_a_fault_fails_the_test_that_is_about_it(failed: set[tuple[str, str]], fault: str) -> None:
    """Swapped columns, lost bars, invented bars, a bar final too early, and others."""
    assert (fault, SEEN_BY[fault]) in failed
