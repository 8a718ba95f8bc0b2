"""The turnstile that every call to a provider's server passes.

Here: what a gate does, which gate is in force, and a gate that counts. Not here: the budget behind
it, which is a table that all processes share (``storage/budget.py``).

The gate in force belongs to a context, as ``contextvars`` has it: a new thread starts with the open
gate, whatever its maker uses, and puts its own in force.
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
            TransientProviderError: It would take longer than this gate waits.
        """

    def report_throttled(self, provider: str, seconds: float) -> None:
        """Take note that the provider refused a call and wants to be left alone for so long."""


class UnlimitedCalls:
    """Lets every call through and remembers none."""

    def admit(self, provider: str) -> None:
        """Do nothing."""

    def report_throttled(self, provider: str, seconds: float) -> None:
        """Do nothing."""


@dataclass
class CallCounter:
    """Counts the calls that pass to another gate; safe to share between threads.

    Args:
        inner: The gate that decides.

    Attributes:
        calls: Calls admitted, retries included.
        throttled: Calls that the provider refused as too many.
    """

    inner: RateLimiter
    calls: int = field(default=0, init=False)
    throttled: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def admit(self, provider: str) -> None:
        """Ask the inner gate, then count the call."""
        self.inner.admit(provider)
        with self._lock:
            self.calls += 1

    def report_throttled(self, provider: str, seconds: float) -> None:
        """Count the refusal and pass it on."""
        with self._lock:
            self.throttled += 1
        self.inner.report_throttled(provider, seconds)


_current: ContextVar[RateLimiter] = ContextVar("gate", default=UnlimitedCalls())  # noqa: B039 - has no state


def current_gate() -> RateLimiter:
    """Return the gate in force; the open one where none was chosen."""
    return _current.get()


@contextmanager
def use_gate(gate: RateLimiter) -> Iterator[RateLimiter]:
    """Put a gate in force until the block ends.

    Not around a ``yield``: the gate would stay in force in the code between two steps.
    """
    token = _current.set(gate)
    try:
        yield gate
    finally:
        _current.reset(token)


def admit(provider: str) -> None:
    """Pass the gate in force before one call to a provider's server.

    Raises:
        TransientProviderError: It would take longer than the gate waits.
    """
    current_gate().admit(provider)


def report_throttled(provider: str, seconds: float) -> None:
    """Tell the gate in force that a provider refused a call as too many.

    Args:
        provider: The provider's name.
        seconds: How long it wants to be left alone.
    """
    current_gate().report_throttled(provider, seconds)
