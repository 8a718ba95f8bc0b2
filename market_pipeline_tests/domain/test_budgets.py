"""The arithmetic of budgets: no minute sees more calls than the limit, whatever the clock does."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from market_pipeline.domain.budgets import (
    Account,
    BudgetLimit,
    count_verifications,
    find_exhausted_quota,
    find_wait,
    parse_retry_after,
    refill,
    spend_call,
)

NOW = datetime(2024, 1, 31, 12, 0, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def make_calls(limit: BudgetLimit, pauses: list[float]) -> list[datetime]:
    """Make one call after each pause (seconds) as soon as the budget allows; return when."""
    now, account, made = NOW, Account.open(limit, NOW), []
    for pause in pauses:
        now += timedelta(seconds=pause)
        account = refill(account, limit, now, MINUTE)
        while wait := find_wait(account, limit, MINUTE):
            now += wait + timedelta(microseconds=1)
            account = refill(account, limit, now, MINUTE)
        account = spend_call(account)
        made.append(now)
    return made


def count_busiest_minute(made: list[datetime]) -> int:
    """Return the most calls in any sixty seconds, wherever they begin."""
    return max(sum(start <= call < start + MINUTE for call in made) for start in made)


@given(
    per_minute=st.floats(1, 40),
    pauses=st.lists(st.sampled_from([0.0, 0.0, 0.1, 2.5, 59.9, 300.0]), min_size=2, max_size=130),
)
@example(per_minute=1.0, pauses=[0.0] * 5)
@example(per_minute=1.99, pauses=[0.0] * 5)
@example(per_minute=2.0, pauses=[0.0] * 9)
@example(per_minute=25.0, pauses=[0.0] * 90)
@example(per_minute=25.0, pauses=[300.0, *[0.0] * 90])
def test_no_minute_sees_more_calls_than_the_limit(per_minute: float, pauses: list[float]) -> None:
    """Not only calendar minutes: any sixty seconds, after a long rest too."""
    made = make_calls(BudgetLimit(calls_per_minute=per_minute), pauses)
    assert count_busiest_minute(made) <= per_minute


def test_most_of_the_limit_is_used() -> None:
    """Being careful costs a tenth of the rate: 100 calls at 25 a minute take under 4.5 minutes."""
    made = make_calls(BudgetLimit(calls_per_minute=25), [0.0] * 100)
    assert timedelta(minutes=4) < made[-1] - made[0] < timedelta(minutes=4.5)


def test_a_clock_that_goes_back_adds_no_tokens_and_stops_nothing() -> None:
    """The account goes on from the new time; refilling begins there."""
    limit = BudgetLimit(calls_per_minute=10)
    empty = replace(Account.open(limit, NOW), tokens=0.0)
    back = refill(empty, limit, NOW - HOUR, MINUTE)
    assert (back.tokens, back.refilled_at) == (0.0, NOW - HOUR)
    assert find_wait(back, limit, MINUTE) == MINUTE / 9
    assert refill(back, limit, NOW, MINUTE).tokens == limit.burst


def test_a_clock_that_goes_back_brings_no_quota_back() -> None:
    """Yesterday and last month, seen again, still have today's counts."""
    limit = BudgetLimit(calls_per_day=1, calls_per_month=1)
    used = spend_call(Account.open(limit, datetime(2024, 2, 1, tzinfo=UTC)))
    back = refill(used, limit, NOW, MINUTE)
    assert find_exhausted_quota(back, limit) == (
        "1 calls a month",
        datetime(2024, 3, 1, tzinfo=UTC),
    )
    assert (back.day, back.calls_today) == (date(2024, 2, 1), 1)


def test_quotas_begin_anew_with_their_utc_day_and_month() -> None:
    """At midnight the day's; on the first the month's too."""
    limit = BudgetLimit(calls_per_day=2, calls_per_month=3)
    account = spend_call(spend_call(Account.open(limit, NOW)))
    assert find_exhausted_quota(account, limit) == (
        "2 calls a day",
        datetime(2024, 2, 1, tzinfo=UTC),
    )
    evening = refill(account, limit, datetime(2024, 1, 31, 23, 59, 59, tzinfo=UTC), MINUTE)
    assert (evening.calls_today, evening.calls_this_month) == (2, 2)
    anew = refill(account, limit, datetime(2024, 2, 1, tzinfo=UTC), MINUTE)
    assert (anew.calls_today, anew.calls_this_month) == (0, 0)
    assert find_exhausted_quota(anew, limit) is None


def test_calls_without_a_rate_leave_no_debt() -> None:
    """A rate that is set later does not have to pay for calls made before."""
    quota = BudgetLimit(calls_per_day=100)
    account = Account.open(quota, NOW)
    for _ in range(50):
        account = spend_call(account)
    assert find_wait(account, quota, MINUTE) == timedelta()
    assert find_wait(account, BudgetLimit(calls_per_minute=11), MINUTE) <= MINUTE / 5


@pytest.mark.parametrize(
    ("limit", "verifications"),
    [
        (BudgetLimit(calls_per_minute=25), 1800),  # 5 % of 36,000
        (BudgetLimit(calls_per_minute=25, calls_per_month=10_000), 17),  # 5 % of 10,000 / 28
        (BudgetLimit(calls_per_minute=25, calls_per_day=100, calls_per_month=10_000), 5),
    ],
)
def test_verification_gets_a_twentieth_of_the_tightest_day(
    limit: BudgetLimit, verifications: int
) -> None:
    """The limit that ends a day first counts; what was verified today is taken off."""
    account = Account.open(limit, NOW)
    assert count_verifications(account, limit) == verifications
    assert count_verifications(replace(account, verifications_today=4), limit) == verifications - 4
    assert count_verifications(replace(account, verifications_today=9_999), limit) == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        (" 12 ", 12.0),
        ("Mon, 15 Jan 2024 08:59:00 GMT", None),
        ("Mon, 15 Jan 2024 09:01:00 -0000", 60.0),
        ("1.5", None),
        ("١٢", 12.0),
        ("9" * 400, None),
        ("Mon, 99 Foo 2024", None),
    ],
)
def test_retry_after_is_read_in_both_forms(text: str, seconds: float | None) -> None:
    """Whole seconds or a date; anything else says nothing and never raises."""
    found = parse_retry_after(text, datetime(2024, 1, 15, 9, 0, tzinfo=UTC))
    assert found == seconds or (seconds is None and found == float("inf"))
