"""Fixtures of the providers' tests: the misbehaving local server, and clocks that never wait."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from market_pipeline.providers.http import Clocks, HttpClient, Limits
from market_pipeline_tests.replay import ReplayServer

UTC_NOW = datetime(2024, 1, 15, 9, 0, tzinfo=UTC)
QUICK = Limits(request_seconds=2.0, total_seconds=60.0, retry_after_seconds=30.0, attempts=4)


@dataclass
class FakeTime:
    """A clock whose sleeps take no time but are counted."""

    slept: list[float] = field(default_factory=list)
    utc_now: datetime = UTC_NOW

    def sleep(self, seconds: float) -> None:
        """Move on by so many seconds at once."""
        self.slept.append(seconds)

    @property
    def clocks(self) -> Clocks:
        """The clocks to give to a client."""
        return Clocks(
            monotonic=lambda: time.monotonic() + sum(self.slept),
            sleep=self.sleep,
            utc=lambda: self.utc_now,
            jitter=lambda: 1.0,
        )


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

    def make(limits: Limits = QUICK, **headers: str) -> HttpClient:
        base_url = f"{server.address}/coingecko"
        return HttpClient("coingecko", base_url, headers, limits, fake_time.clocks)

    return make
