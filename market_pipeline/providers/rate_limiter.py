"""The rate limiter that every call to a provider's server passes: it may wait, count or refuse.

Here: what a limiter does, which one is in force, and one that counts. Not here: the budget behind
it, which is a table that all processes share (``storage/runs/budget.py``).

The limiter in force belongs to a context of ``contextvars``. A new thread starts with
``UnlimitedCalls``, whatever limiter the thread that made it uses, and must put its own in force.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol


class RateLimiter(Protocol):
    """Decides when a provider may be called."""

    def admit(self, provider: str) -> None:
        """Return when one call may be made, which is then counted; may wait.

        Raises:
            TransientProviderError: It would take longer than this limiter waits.
        """

    def report_throttled(self, provider: str, seconds: float) -> None:
        """Record that the provider refused a call and asked for a pause of so many seconds."""


class UnlimitedCalls:
    """Lets every call through and remembers none."""

    def admit(self, provider: str) -> None:
        """Do nothing."""

    def report_throttled(self, provider: str, seconds: float) -> None:
        """Do nothing."""


@dataclass
class CallCounter:
    """Counts the calls that pass to another limiter; safe to share between threads.

    Args:
        inner: The limiter that decides.

    Attributes:
        calls: Calls admitted, retries included.
        throttled: Calls that the provider refused as too many.
    """

    inner: RateLimiter
    calls: int = field(default=0, init=False)
    throttled: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def admit(self, provider: str) -> None:
        """Ask the inner limiter, then count the call."""
        self.inner.admit(provider)
        with self._lock:
            self.calls += 1

    def report_throttled(self, provider: str, seconds: float) -> None:
        """Count the refusal and pass it on."""
        with self._lock:
            self.throttled += 1
        self.inner.report_throttled(provider, seconds)


_current: ContextVar[RateLimiter] = ContextVar(
    "limiter",
    default=UnlimitedCalls(),  # noqa: B039 - has no state
)


def current_limiter() -> RateLimiter:
    """Return the limiter in force; without one, calls are unlimited."""
    return _current.get()


@contextmanager
def use_limiter(limiter: RateLimiter) -> Iterator[RateLimiter]:
    """Put a limiter in force until the block ends.

    Not around a ``yield``: the limiter would stay in force in the code between two steps.
    """
    token = _current.set(limiter)
    try:
        yield limiter
    finally:
        _current.reset(token)


def admit(provider: str) -> None:
    """Pass the limiter in force before one call to a provider's server.

    Raises:
        TransientProviderError: It would take longer than the limiter waits.
    """
    current_limiter().admit(provider)


def report_throttled(provider: str, seconds: float) -> None:
    """Tell the limiter in force that a provider refused a call as too many.

    Args:
        provider: The provider's name.
        seconds: The length of the pause that it asked for.
    """
    current_limiter().report_throttled(provider, seconds)
