"""The request budget: one account per provider, shared by all processes and kept over restarts.

Here: the limiter that every call to a limited provider passes, and the reading of limits. Not here:
the arithmetic (``domain/budgets.py``), and the hook that passes the limiter
(``providers/rate_limiter.py``; this one fits it without knowing it). The database's clock
decides.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text, update
from sqlalchemy.dialects.postgresql import insert

from market_pipeline.domain.budgets import (
    Account,
    BudgetLimit,
    count_verifications,
    find_exhausted_quota,
    find_wait,
    refill,
    spend_call,
)
from market_pipeline.domain.errors import TransientProviderError
from market_pipeline.settings import read_provider_call_limits
from market_pipeline.storage.ledgers import provider_budget

PATIENCE = timedelta(minutes=5)
MINUTE = timedelta(minutes=1)
LONGEST_BLOCK_SECONDS = 24 * 3600.0
# More than a clock's and a timer's rounding, so that one sleep is enough.
_SLEEP_MARGIN = timedelta(milliseconds=2)
_COLUMNS = ", ".join(field.name for field in fields(Account))
# A process that is suspended under the lock loses its connection, and the others go on.
_LOCK = text("""
    SET LOCAL idle_in_transaction_session_timeout = '5s';
    SELECT FROM market_data.provider_budget WHERE provider = :provider FOR UPDATE
""")
_READ = text(f"""
    SELECT {_COLUMNS}, clock.now FROM (SELECT clock_timestamp() AS now) clock
    LEFT JOIN market_data.provider_budget ON provider = :provider
""")


@dataclass(frozen=True, slots=True)
class DatabaseRateLimiter:
    """Admits calls within each provider's limits, for all processes together.

    A provider without limits never touches the database. ``limits`` are by provider. A call waits
    for the rate, or for a block by ``Retry-After``, no longer than ``patience``. ``period`` is how
    long the limit's minute lasts.
    """

    engine: Engine
    limits: Mapping[str, BudgetLimit]
    patience: timedelta = PATIENCE
    period: timedelta = MINUTE
    sleep: Callable[[float], None] = time.sleep

    def admit(self, provider: str) -> None:
        """Wait until one call may be made, and count it.

        Raises:
            TransientProviderError: A quota is used up, or the wait is longer than the patience;
                the message says until when.
        """
        limit = self.limits.get(provider, BudgetLimit())
        if limit.is_open:
            return
        left = self.patience
        while wait := self._try_admit(provider, limit, left):
            left -= wait
            self.sleep(wait.total_seconds())

    def report_throttled(self, provider: str, seconds: float) -> None:
        """Keep every process from calling a limited provider for so long, at most a day."""
        limit = self.limits.get(provider, BudgetLimit())
        if limit.is_open:
            return
        block = timedelta(seconds=min(max(seconds, 0.0), LONGEST_BLOCK_SECONDS))
        with _open_account(self.engine, provider, limit, self.period) as (connection, account):
            until = account.refilled_at + block
            blocked_until = max(until, account.blocked_until or until)
            _store(connection, provider, {"blocked_until": blocked_until})

    def _try_admit(self, provider: str, limit: BudgetLimit, patience: timedelta) -> timedelta:
        """Count a call and return zero, or return how long to wait before trying again."""
        with _open_account(self.engine, provider, limit, self.period) as (connection, account):
            if used_up := find_exhausted_quota(account, limit):
                quota, resets_at = used_up
                said = f"the budget of {quota} is used up; it begins anew at {_show(resets_at)}"
                raise TransientProviderError(provider, said)
            if wait := find_wait(account, limit, self.period):
                if wait > patience:
                    raise TransientProviderError(provider, _explain_wait(account, limit, wait))
                _store(connection, provider, asdict(account))
                return wait + _SLEEP_MARGIN
            _store(connection, provider, asdict(spend_call(account)))
            return timedelta()


def note_verifications(engine: Engine, provider: str, calls: int) -> None:
    """Count calls, already admitted, as made to read settled bars again.

    Does nothing for a provider without limits.
    """
    counted = provider_budget.c.verifications_today + calls
    with engine.begin() as connection:
        _store(connection, provider, {"verifications_today": counted})


def count_verifications_left(engine: Engine, provider: str, limit: BudgetLimit) -> int:
    """Return how many calls may still read settled bars again today (UTC): 5 % of a day's calls.

    A day's calls are the least that the limits allow. Without limits, practically any number.
    """
    if limit.is_open:
        return sys.maxsize
    return count_verifications(read_account(engine, provider, limit), limit)


def read_account(engine: Engine, provider: str, limit: BudgetLimit) -> Account:
    """Return what a provider's budget has left now; changes nothing and waits for nobody."""
    with engine.connect() as connection:
        return _read(connection, provider, limit, MINUTE)


def read_budget_limits(
    providers: Iterable[Any], environ: Mapping[str, str] | None = None
) -> dict[str, BudgetLimit]:
    """Return what each provider grants, by name; PROVIDER_CALLS_PER_MINUTE goes before its own.

    Providers or their classes have a ``name`` and, where they are limited, ``calls_per_minute``,
    ``calls_per_day`` and ``calls_per_month``.
    """
    chosen = read_provider_call_limits(environ)
    return {
        (name := provider.name): BudgetLimit(
            calls_per_minute=chosen.get(name, getattr(provider, "calls_per_minute", None)),
            calls_per_day=getattr(provider, "calls_per_day", None),
            calls_per_month=getattr(provider, "calls_per_month", None),
        )
        for provider in providers
    }


@contextmanager
def _open_account(
    engine: Engine, provider: str, limit: BudgetLimit, period: timedelta
) -> Iterator[tuple[Connection, Account]]:
    """Lock a provider's account until the block ends, and give it as of now."""
    question = {"provider": provider}
    with engine.begin() as connection:
        if not connection.execute(_LOCK, question).rowcount:
            account = _read(connection, provider, limit, period)
            row = insert(provider_budget).values(provider=provider, **asdict(account))
            connection.execute(row.on_conflict_do_nothing())
            connection.execute(_LOCK, question)
        # A statement of its own: its clock is read when the lock is had.
        yield connection, _read(connection, provider, limit, period)


def _read(connection: Connection, provider: str, limit: BudgetLimit, period: timedelta) -> Account:
    row = connection.execute(_READ, {"provider": provider}).mappings().one()
    if row["day"] is None:
        return Account.open(limit, row["now"])
    stored = {name: row[name] for name in row if name != "now"}
    return refill(Account(**stored), limit, row["now"], period)


def _store(connection: Connection, provider: str, values: Mapping[str, object]) -> None:
    connection.execute(
        update(provider_budget).where(provider_budget.c.provider == provider).values(values)
    )


def _explain_wait(account: Account, limit: BudgetLimit, wait: timedelta) -> str:
    until = account.refilled_at + wait
    if until == account.blocked_until:
        return f"it asked to be left alone until {_show(until)} (Retry-After)"
    return (
        f"the budget of {limit.calls_per_minute:g} calls a minute is used up until {_show(until)}"
    )


def _show(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
