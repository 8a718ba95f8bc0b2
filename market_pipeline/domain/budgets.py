"""The request limits of a provider: a token bucket and quotas, as arithmetic on one account.

The bucket holds a small burst and fills slowly, so that burst and refill together stay within the
limit in any minute, not only in calendar minutes.
"""

import calendar
import math
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from email.utils import parsedate_to_datetime
from typing import Self

BURST_SHARE = 0.1
VERIFICATION_SHARE = 0.05
MINUTES_A_DAY = 24 * 60
SHORTEST_MONTH_DAYS = 28


@dataclass(frozen=True, slots=True)
class BudgetLimit:
    """What a provider grants; None: no limit of that kind. Days and months are UTC."""

    calls_per_minute: float | None = None
    calls_per_day: int | None = None
    calls_per_month: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing is limited."""
        return (self.calls_per_minute, self.calls_per_day, self.calls_per_month) == (None,) * 3

    @property
    def burst(self) -> float:
        """Calls that may follow each other at once: a tenth of a minute's, at least one."""
        return max(1.0, (self.calls_per_minute or 0.0) * BURST_SHARE)

    @property
    def refill_per_minute(self) -> float:
        """Calls a minute on top of the burst: what the limit leaves; never less than half of it.

        Half of it is exact for limits below two: their burst of one puts any two calls more than a
        minute apart.
        """
        limit = self.calls_per_minute or 0.0
        return max(limit - self.burst, limit / 2)

    @property
    def calls_a_day(self) -> float:
        """Calls that a day can have under all limits; infinite without any."""
        spans = (
            (self.calls_per_day, 1.0),
            (self.calls_per_month, 1 / SHORTEST_MONTH_DAYS),
            (self.calls_per_minute, MINUTES_A_DAY),
        )
        return min((calls * share for calls, share in spans if calls is not None), default=math.inf)


@dataclass(frozen=True, slots=True)
class Account:
    """What a provider's budget has left, as of ``refilled_at``.

    Attributes:
        tokens: Calls that may be made at once.
        refilled_at: When tokens were counted (UTC).
        blocked_until: By the provider's ``Retry-After`` (UTC); None: not blocked.
        day: The UTC day of the daily counts.
        calls_today: Calls on that day.
        verifications_today: Of them, to read settled bars again.
        month: First day of the month of the monthly count.
        calls_this_month: Calls in that month.
    """

    tokens: float
    refilled_at: datetime
    blocked_until: datetime | None
    day: date
    calls_today: int
    verifications_today: int
    month: date
    calls_this_month: int

    @classmethod
    def open(cls, limit: BudgetLimit, now: datetime) -> Self:
        """Return the account of a provider that was never called."""
        today = now.astimezone(UTC).date()
        return cls(limit.burst, now, None, today, 0, 0, today.replace(day=1), 0)


def refill(account: Account, limit: BudgetLimit, now: datetime, period: timedelta) -> Account:
    """Return the account at another moment: tokens refilled, counts of past days at zero.

    A clock that went back adds no tokens and brings no old day back.

    Args:
        account: As it was stored.
        limit: What the provider grants.
        now: The clock that all processes share.
        period: How long the limit's minute lasts.
    """
    today = now.astimezone(UTC).date()
    minutes = max(now - account.refilled_at, timedelta()) / period
    tokens = min(account.tokens + minutes * limit.refill_per_minute, limit.burst)
    account = replace(account, tokens=tokens, refilled_at=now)
    if today > account.day:
        account = replace(account, day=today, calls_today=0, verifications_today=0)
    if (month := today.replace(day=1)) > account.month:
        account = replace(account, month=month, calls_this_month=0)
    return account


def spend_call(account: Account) -> Account:
    """Return the account after one call."""
    return replace(
        account,
        tokens=max(account.tokens - 1, 0.0),
        calls_today=account.calls_today + 1,
        calls_this_month=account.calls_this_month + 1,
    )


def find_exhausted_quota(account: Account, limit: BudgetLimit) -> tuple[str, datetime] | None:
    """Return the quota that is used up and when it starts again (UTC); of two, the later one."""
    quotas = (
        (limit.calls_per_day, account.calls_today, "day", _begin_next_day(account.day)),
        (limit.calls_per_month, account.calls_this_month, "month", _begin_next_month(account)),
    )
    used_up = [
        (f"{most} calls a {span}", resets_at)
        for most, calls, span, resets_at in quotas
        if most is not None and calls >= most
    ]
    return max(used_up, key=lambda quota: quota[1], default=None)


def find_wait(account: Account, limit: BudgetLimit, period: timedelta) -> timedelta:
    """Return how long after ``refilled_at`` the next call must wait, quotas apart; at least 0."""
    wait = (account.blocked_until or account.refilled_at) - account.refilled_at
    if limit.calls_per_minute is not None:
        missing = 1 - account.tokens
        wait = max(wait, missing / limit.refill_per_minute * period)
    return max(wait, timedelta())


def count_verifications(account: Account, limit: BudgetLimit) -> int:
    """Return how many more calls of the day may read settled bars again: 5 % of a day's calls.

    The limit must not be open.
    """
    return max(int(limit.calls_a_day * VERIFICATION_SHARE) - account.verifications_today, 0)


def _begin_next_day(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(), UTC)


def _begin_next_month(account: Account) -> datetime:
    days = calendar.monthrange(account.month.year, account.month.month)[1]
    return datetime.combine(account.month + timedelta(days=days), time(), UTC)


def parse_retry_after(text: str | None, utc_now: datetime) -> float | None:
    """Return the seconds a ``Retry-After`` header asks for; None where it says nothing usable.

    Seconds and HTTP dates are both in use; a negative number or a date in the past says nothing.
    """
    if text is None:
        return None
    try:
        seconds = float(text) if text.strip().isdigit() else _seconds_until(text, utc_now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return seconds if seconds >= 0 else None


def _seconds_until(text: str, utc_now: datetime) -> float:
    moment = parsedate_to_datetime(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - utc_now).total_seconds()
