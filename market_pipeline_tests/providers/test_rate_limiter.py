"""The limiter: every try of every request passes it, and refusals are told to it."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest

from market_pipeline.domain.errors import TransientProviderError
from market_pipeline.providers.http import HttpClient
from market_pipeline.providers.rate_limiter import (
    CallCounter,
    UnlimitedCalls,
    admit,
    current_limiter,
    report_throttled,
    use_limiter,
)
from market_pipeline_tests.providers.clocks import QUICK, FakeTime
from market_pipeline_tests.replay import ReplayServer, answer_with, throttle

Client = Callable[..., HttpClient]
PING = {"gecko_says": "(V3) To the Moon!"}


@dataclass
class SlowLimiter:
    """Keeps each call waiting, and closes after a number of them."""

    clock: FakeTime
    wait_seconds: float = 0.0
    calls_left: int = 1000
    reported: list[tuple[str, float]] = field(default_factory=list)

    def admit(self, provider: str) -> None:
        """Let a call through after a wait."""
        if not self.calls_left:
            raise TransientProviderError(provider, "the budget is used up")
        self.calls_left -= 1
        self.clock.sleep(self.wait_seconds)

    def report_throttled(self, provider: str, seconds: float) -> None:
        """Keep what was said."""
        self.reported.append((provider, seconds))


def test_without_a_choice_the_limiter_is_open(make_client: Client) -> None:
    """A client works where nobody set a budget."""
    assert isinstance(current_limiter(), UnlimitedCalls)
    assert make_client().fetch_json("/ping") == PING


def test_each_try_passes_the_limiter(
    make_client: Client, server: ReplayServer, fake_time: FakeTime
) -> None:
    """Two failures and a success are three calls, as the provider counts them."""
    server.misbehave(answer_with(status=500), times=2)
    limiter = SlowLimiter(fake_time)
    with use_limiter(limiter):
        make_client().fetch_json("/ping")
    assert 1000 - limiter.calls_left == len(server.requests) == 3
    assert limiter.reported == []


@pytest.mark.parametrize(
    ("status", "retry_after", "seconds"), [(429, "7", 7.0), (503, "7", 7.0), (429, None, 0.5)]
)
def test_a_refusal_is_told_with_its_retry_after(
    make_client: Client,
    server: ReplayServer,
    fake_time: FakeTime,
    status: int,
    retry_after: str | None,
    seconds: float,
) -> None:
    """What the provider asked for, or the usual pause, for everybody behind the same limiter."""
    headers = {"Retry-After": retry_after} if retry_after else {}
    server.misbehave(answer_with(status=status, headers=headers))
    limiter = SlowLimiter(fake_time)
    with use_limiter(limiter):
        make_client().fetch_json("/ping")
    assert limiter.reported == [("coingecko", seconds)]


def test_a_refusal_is_told_also_when_the_client_gives_up(
    make_client: Client, server: ReplayServer, fake_time: FakeTime
) -> None:
    """The last try's Retry-After holds the others back too."""
    server.misbehave(throttle("25"))
    limiter = SlowLimiter(fake_time)
    with use_limiter(limiter), pytest.raises(TransientProviderError):
        make_client(replace(QUICK, attempts=1)).fetch_json("/ping")
    assert limiter.reported == [("coingecko", 25.0)]


def test_waiting_at_the_limiter_does_not_use_up_the_deadline(
    make_client: Client, server: ReplayServer, fake_time: FakeTime
) -> None:
    """Four tries, each kept waiting longer than the whole call may take, all get their time."""
    server.misbehave(answer_with(status=500), times=3)
    with use_limiter(SlowLimiter(fake_time, wait_seconds=100.0)):
        assert make_client(replace(QUICK, total_seconds=50.0)).fetch_json("/ping") == PING
    assert fake_time.slept == [100.0, 0.5, 100.0, 1.0, 100.0, 2.0, 100.0]


def test_a_closed_limiter_ends_the_call_before_it_is_made(
    make_client: Client, server: ReplayServer, fake_time: FakeTime
) -> None:
    """Nothing is asked beyond the budget, and a used-up budget is not tried again."""
    server.misbehave(answer_with(status=500), times=9)
    with (
        use_limiter(SlowLimiter(fake_time, calls_left=2)),
        pytest.raises(TransientProviderError, match="budget is used up"),
    ):
        make_client().fetch_json("/ping")
    assert len(server.requests) == 2


def test_limiters_are_nested_and_counts_add_up(fake_time: FakeTime) -> None:
    """A market's count is part of the run's; what the inner limiter refuses is not counted."""
    run = CallCounter(SlowLimiter(fake_time, calls_left=3))
    market = CallCounter(run)
    with use_limiter(run):
        admit("mock")
        with use_limiter(market):
            admit("mock")
            admit("mock")
            report_throttled("mock", 1.0)
            with pytest.raises(TransientProviderError):
                admit("mock")
        assert current_limiter() is run
    assert (run.calls, market.calls, run.throttled, market.throttled) == (3, 2, 1, 1)


def test_threads_share_a_limiter_that_each_puts_in_force_and_no_call_is_lost() -> None:
    """A new thread has the open limiter, whatever its maker uses; eight threads share one."""
    counter = CallCounter(UnlimitedCalls())
    begin = threading.Barrier(8)

    def call_often(times: int) -> None:
        begin.wait()
        for _ in range(times):
            admit("mock")
            report_throttled("mock", 0.0)

    def call_through_the_counter(times: int) -> None:
        with use_limiter(counter):
            call_often(times)

    with use_limiter(counter), ThreadPoolExecutor(8) as pool:
        list(pool.map(call_often, [500] * 8))
        assert counter.calls == 0
        list(pool.map(call_through_the_counter, [500] * 8))
    assert (counter.calls, counter.throttled) == (4000, 4000)
