"""Fixtures of the providers' tests: the misbehaving local server, and clocks that never wait."""

from collections.abc import Callable, Iterator

import pytest

from market_pipeline.providers.http import CallLimits, HttpClient
from market_pipeline_tests.providers.clocks import QUICK, FakeTime
from market_pipeline_tests.replay import ReplayServer


@pytest.fixture
def server() -> Iterator[ReplayServer]:
    """A local provider that serves recordings and misbehaves on command."""
    with ReplayServer() as running:
        yield running


@pytest.fixture
def fake_time() -> FakeTime:
    """A clock whose sleeps take no time."""
    return FakeTime()


@pytest.fixture
def make_client(server: ReplayServer, fake_time: FakeTime) -> Callable[..., HttpClient]:
    """Makes a client of the local server."""

    def make(limits: CallLimits = QUICK, **headers: str) -> HttpClient:
        base_url = f"{server.address}/coingecko"
        return HttpClient("coingecko", base_url, headers, limits, fake_time.clocks)

    return make
