"""The request budget: processes together keep within a provider's limits, also over restarts."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection

import pytest
from sqlalchemy import Engine, text

from market_pipeline.domain.budgets import BudgetLimit
from market_pipeline.domain.errors import SettingError, TransientProviderError
from market_pipeline.providers.coingecko import CoinGeckoProvider
from market_pipeline.providers.file import FileProvider
from market_pipeline.providers.http import CallLimits, HttpClient
from market_pipeline.providers.rate_limiter import use_limiter
from market_pipeline.storage.runs.budget import (
    DatabaseRateLimiter,
    count_verifications_left,
    note_verifications,
    read_account,
    read_budget_limits,
)
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline_tests.children import start_child
from market_pipeline_tests.replay import ReplayServer, Reply, throttle

PERIOD = timedelta(seconds=2)
RATE = BudgetLimit(calls_per_minute=20)
IMPATIENT = timedelta()
ROWS = text("SELECT count(*) FROM market_data.provider_budget")


def call_often(pipe: Connection, url: str, server: str, times: int) -> None:
    """Call the server through the shared limiter, as fast as it lets this process."""
    engine = open_engine(DatabaseAddress(url, is_embedded=False))
    client = HttpClient("coingecko", server)
    pipe.send("ready")
    pipe.recv()
    with use_limiter(DatabaseRateLimiter(engine, {"coingecko": RATE}, period=PERIOD)):
        for _ in range(times):
            client.fetch_json("/ping")
    pipe.send("done")
    pipe.recv()


def call_once(pipe: Connection, url: str, server: str) -> None:
    """Make one call that is refused, and say so."""
    engine = open_engine(DatabaseAddress(url, is_embedded=False))
    client = HttpClient("coingecko", server, limits=CallLimits(attempts=1))
    with use_limiter(DatabaseRateLimiter(engine, {"coingecko": RATE})):
        try:
            client.fetch_json("/ping")
        except TransientProviderError as error:
            pipe.send(error.status)
    pipe.recv()


@dataclass
class Stage:
    """A limiter on the test's database, made anew as a new process would."""

    engine: Engine

    def admit(self, limit: BudgetLimit, patience: timedelta = IMPATIENT) -> None:
        """Make one call to a provider of this limit."""
        DatabaseRateLimiter(self.engine, {"coingecko": limit}, patience).admit("coingecko")

    def edit(self, changes: str) -> None:
        """Change the stored account."""
        with self.engine.begin() as connection:
            connection.execute(text(f"UPDATE market_data.provider_budget SET {changes}"))


@pytest.fixture
def stage(engine: Engine) -> Stage:
    """A database without any account."""
    return Stage(engine)


def test_three_processes_together_never_exceed_the_limit(engine: Engine, database_url: str) -> None:
    """A server counts what arrives; a minute lasts two seconds here.

    A tenth of the span is left to the network, which here is not small against the span.
    """
    arrived: list[float] = []

    def note(handler: object, reply: Reply) -> None:
        arrived.append(time.monotonic())
        handler.send(reply)  # type: ignore[attr-defined]

    with ReplayServer() as server, ExitStack() as stack:
        server.misbehave(note, times=45)
        address = f"{server.address}/coingecko"
        children = [
            stack.enter_context(start_child(call_often, database_url, address, 15))
            for _ in range(3)
        ]
        assert [child.hear() for child in children] == ["ready"] * 3
        for child in children:
            child.tell()
        assert [child.hear() for child in children] == ["done"] * 3
    span = 0.9 * PERIOD.total_seconds()
    busiest = max(sum(start <= call < start + span for call in arrived) for start in arrived)
    assert len(arrived) == 45
    assert busiest <= 20 + 3  # Each process may have noted one call later than it was allowed.
    assert read_account(engine, "coingecko", RATE).calls_this_month == 45


def test_a_retry_after_of_one_process_holds_the_others_back(
    stage: Stage, database_url: str
) -> None:
    """Nobody asks before it is over; who is not patient learns until when."""
    with ReplayServer() as server:
        server.misbehave(throttle("3"))
        with start_child(call_once, database_url, f"{server.address}/coingecko") as child:
            assert child.hear() == 429
            with pytest.raises(TransientProviderError, match=r"left alone until 2\d{3}-.* UTC"):
                stage.admit(RATE)
    stage.admit(RATE, patience=timedelta(seconds=5))
    account = read_account(stage.engine, "coingecko", RATE)
    assert account.blocked_until is not None
    assert account.refilled_at >= account.blocked_until


def test_a_shorter_block_does_not_end_a_longer_one_and_nonsense_is_bounded(stage: Stage) -> None:
    """The longest counts, up to a day."""
    limiter = DatabaseRateLimiter(stage.engine, {"coingecko": RATE})
    for seconds in (float("inf"), 1.0, -5.0):
        limiter.report_throttled("coingecko", seconds)
    account = read_account(stage.engine, "coingecko", RATE)
    assert account.blocked_until is not None
    assert timedelta(hours=23) < account.blocked_until - account.refilled_at <= timedelta(days=1)


def test_a_used_up_rate_is_waited_for_or_explained(stage: Stage) -> None:
    """The burst goes at once; the next call waits for its token, or says how long it would."""
    limit, slept = BudgetLimit(calls_per_minute=0.5), []
    stage.admit(limit)
    with pytest.raises(TransientProviderError, match=r"0.5 calls a minute is used up until 2\d{3}"):
        stage.admit(limit)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        stage.edit("tokens = 1")

    patient = timedelta(minutes=5)
    DatabaseRateLimiter(stage.engine, {"coingecko": limit}, patient, sleep=sleep).admit("coingecko")
    assert [200 < seconds < 241 for seconds in slept] == [True]


@pytest.mark.parametrize("span", ["day", "month"])
def test_a_used_up_quota_ends_the_call_at_once_and_says_when_it_resets(
    stage: Stage, span: str
) -> None:
    """Counts are kept over restarts, and begin anew with the next day or month."""
    limit = BudgetLimit(**{f"calls_per_{span}": 2})
    stage.admit(limit)
    stage.admit(limit)
    expected = rf"budget of 2 calls a {span} is used up; it begins anew at 2.* 00:00:00 UTC"
    stage.engine.dispose()
    with pytest.raises(TransientProviderError, match=expected):
        stage.admit(limit, patience=timedelta(days=60))
    stage.edit("day = day - 40, month = (month - interval '40 days')::date")
    stage.admit(limit)
    account = read_account(stage.engine, "coingecko", limit)
    assert (account.calls_today, account.calls_this_month) == (1, 1)


def test_h1_a_clock_that_went_back_adds_no_tokens(stage: Stage) -> None:
    """An account from the future, empty, stays empty; it fills from now on."""
    limit = BudgetLimit(calls_per_minute=0.5)
    stage.admit(limit)
    stage.edit("refilled_at = refilled_at + interval '1 hour', tokens = 0")
    with pytest.raises(TransientProviderError, match="used up"):
        stage.admit(limit)
    account = read_account(stage.engine, "coingecko", limit)
    assert account.tokens == 0.0

    def sleep(_: float) -> None:
        stage.edit("refilled_at = refilled_at - interval '1 hour'")

    patient = timedelta(minutes=5)
    DatabaseRateLimiter(stage.engine, {"coingecko": limit}, patient, sleep=sleep).admit("coingecko")


def test_a_provider_without_limits_never_touches_the_database() -> None:
    """Files and made-up prices need no budget, nor a server to keep it."""
    nowhere = open_engine(
        DatabaseAddress("postgresql+psycopg2://me@127.0.0.1:1/no", is_embedded=False)
    )
    limiter = DatabaseRateLimiter(nowhere, {"mock": BudgetLimit()})
    limiter.admit("mock")
    limiter.admit("unheard-of")
    limiter.report_throttled("mock", 10.0)
    assert count_verifications_left(nowhere, "mock", BudgetLimit()) > 10**9


def test_verifications_are_counted_against_their_share(stage: Stage) -> None:
    """5 % of a day's calls, for all processes, and anew every day."""
    limit = BudgetLimit(calls_per_minute=100, calls_per_day=200)
    assert count_verifications_left(stage.engine, "coingecko", limit) == 10
    with stage.engine.connect() as connection:
        assert connection.execute(ROWS).scalar_one() == 0  # asking changes nothing
    stage.admit(limit)
    note_verifications(stage.engine, "coingecko", 7)
    assert count_verifications_left(stage.engine, "coingecko", limit) == 3
    stage.edit("day = day - 1")
    assert count_verifications_left(stage.engine, "coingecko", limit) == 10


def test_limits_are_the_providers_own_unless_the_setting_says_otherwise() -> None:
    """The plan decides for CoinGecko; files have no limit; a setting replaces the rate alone."""
    demo = CoinGeckoProvider({"COINGECKO_API_KEY": "CG-a", "COINGECKO_PLAN": "demo"})
    own = read_budget_limits([demo, FileProvider], {})
    chosen = read_budget_limits([demo], {"PROVIDER_CALLS_PER_MINUTE": " CoinGecko = 2.5 ,mock=1"})
    assert own["coingecko"].calls_per_minute == demo.calls_per_minute is not None
    assert own["file"] == BudgetLimit()
    assert own["file"].is_open
    assert chosen == {
        "coingecko": BudgetLimit(calls_per_minute=2.5, calls_per_month=demo.calls_per_month)
    }


@pytest.mark.parametrize(
    "text_", ["coingecko", "=5", "coingecko=", "a=0", "a=-1", "a=nan", "a=inf", "a=1,A=2", "a=1=2"]
)
def test_a_malformed_limit_is_refused_by_name(text_: str) -> None:
    """The message names the variable, and the part that is wrong."""
    with pytest.raises(SettingError, match=r"^PROVIDER_CALLS_PER_MINUTE='.*': '.*expected"):
        read_budget_limits([], {"PROVIDER_CALLS_PER_MINUTE": text_})
