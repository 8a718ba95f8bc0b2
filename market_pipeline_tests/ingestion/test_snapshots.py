"""Which live prices are stored: by the moment they were asked for, or the window's end."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any, cast

import pytest

from market_pipeline.domain.errors import TransientProviderError
from market_pipeline.domain.records import Market, PriceSnapshot
from market_pipeline.ingestion.request import Route, build_request
from market_pipeline.ingestion.snapshots import SnapshotBatch, collect_snapshots
from market_pipeline.providers.base import Provider
from market_pipeline.providers.mock import MockProvider
from market_pipeline.providers.rate_limiter import CallCounter, UnlimitedCalls, admit, use_limiter
from market_pipeline.providers.snapshots import ask_each

CREATED = datetime(2024, 3, 15, 12, tzinfo=UTC)
# The run waited in the queue for ten minutes.
ASKED = CREATED + timedelta(minutes=10)
ANSWERED = ASKED + timedelta(seconds=2)
MOCK = MockProvider({})


class Stamping:
    """A provider that stamps its price with the moment it is asked, by a clock that may be off."""

    name = "mock"

    def __init__(self, ahead: float = 0.0, price: float = 1.0) -> None:
        self.ahead, self.price = timedelta(seconds=ahead), price
        self.asked: list[datetime] = []

    def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[PriceSnapshot]:
        """Return a price of now for each."""
        self.asked.append(now)
        return [PriceSnapshot(market, ANSWERED + self.ahead, self.price) for market in markets]


def list_routes(provider: object, *symbols: str) -> list[Route]:
    """Return routes of a provider to mock's markets."""
    markets = [MOCK.find_market(symbol) for symbol in symbols]
    return [(cast("Provider", provider), market) for market in markets if market is not None]


def read_clock() -> Callable[[], datetime]:
    """Return a clock that is read when a provider is asked, and when it has answered."""
    moments = iter((ASKED, ANSWERED))
    return lambda: next(moments)


def collect(provider: object, window_end: str = "") -> SnapshotBatch:
    """Collect one market's price."""
    request = build_request(CREATED, ["BTC-USD"], "mock", 10, window_end)
    return collect_snapshots(list_routes(provider, "BTC-USD"), request, read_clock())


@pytest.mark.parametrize("ahead", [-600.0, 0.0, 5.0])
def test_a_price_of_the_moment_it_was_asked_for_is_kept(ahead: float) -> None:
    """However long the run had been queued; a clock may be five seconds ahead."""
    provider = Stamping(ahead)
    batch = collect(provider)
    assert batch.failures == {}
    (kept,) = batch.snapshots
    assert kept.observed_at == ANSWERED + timedelta(seconds=ahead)
    assert provider.asked == [ASKED]


def test_a_price_from_the_future_is_refused_by_name() -> None:
    """More than five seconds ahead; how far is said."""
    batch = collect(Stamping(ahead=10.0))
    assert batch.snapshots == []
    assert batch.failures == {
        "BTC-USD": "its price is from 10 s in the future: one of the clocks is wrong"
    }


def test_with_a_window_end_no_later_price_counts() -> None:
    """The provider is asked for the price of then."""
    provider = Stamping()
    batch = collect(provider, window_end="2024-03-15T11:00Z")
    assert batch.failures == {
        "BTC-USD": "its price is of 2024-03-15 12:10:02 UTC, after the window's end"
    }
    assert provider.asked == [datetime(2024, 3, 15, 11, tzinfo=UTC)]


@pytest.mark.parametrize("price", [0.0, -1.0, float("inf"), float("nan")])
def test_a_price_that_is_none_is_refused_by_name(price: float) -> None:
    """It is not taken for silence."""
    (reason,) = collect(Stamping(price=price)).failures.values()
    assert "is not a positive number" in reason


def test_each_market_fails_for_its_own_reason() -> None:
    """A provider that is asked market by market tells what each of them met."""

    class Failing:
        name = "mock"

        def fetch_snapshots(self, markets: Sequence[Market], now: datetime) -> list[Any]:
            del now
            return ask_each(markets, self._refuse)

        def _refuse(self, market: Market) -> list[PriceSnapshot]:
            raise TransientProviderError(self.name, f"{market.symbol} timed out")

    request = build_request(CREATED, ["BTC-USD", "SPX"], "mock", 10)
    routes = list_routes(Failing(), "BTC-USD", "SPX")
    assert collect_snapshots(routes, request, read_clock()).failures == {
        "BTC-USD": "mock: BTC-USD timed out",
        "SPX": "mock: SPX timed out",
    }


def test_requests_are_under_way_at_once() -> None:
    """Each waits until four are there; all pass the limiter in force, and come back in order."""
    markets = [market for _, market in list_routes(MOCK, *(f"M{n}-USD" for n in range(8)))]
    four, counter = Barrier(4), CallCounter(UnlimitedCalls())

    def ask(market: Market) -> list[PriceSnapshot]:
        admit(market.provider)
        four.wait(timeout=60)
        if market.symbol in ("M0-USD", "M5-USD"):
            raise TransientProviderError("mock", "timed out")
        return [PriceSnapshot(market, ANSWERED, 1.0)]

    with use_limiter(counter):
        found = ask_each(markets, ask, workers=4)
    assert [one.market.symbol for one in found] == [f"M{n}-USD" for n in (1, 2, 3, 4, 6, 7)]
    assert counter.calls == 8
