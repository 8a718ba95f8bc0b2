"""The breaker: after a failure, no reader asks the server until a test of it has succeeded.

Readers never wait for it. A thread of its own tests the server, at growing intervals.
"""

import logging
import threading
from collections.abc import Callable

from market_pipeline.cache.redis_store import StoreTroubleError

FIRST_TRY_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 15.0
logger = logging.getLogger("market_pipeline.cache")


class Breaker:
    """Whether a server may be asked; opened by trouble, closed by a probe that succeeds.

    Args:
        probe: Tries the server; raises ``StoreTroubleError``.
        first_try_seconds: How long to wait before the first probe; doubled up to 15 seconds.
    """

    def __init__(
        self, probe: Callable[[], None], first_try_seconds: float = FIRST_TRY_SECONDS
    ) -> None:
        self._probe, self._first_try = probe, first_try_seconds
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why the server is not asked, in one word; None: it is."""
        return self._trouble

    def open(self, reason: str) -> bool:
        """Stop asking; return whether it was closed before."""
        with self._lock:
            if self._trouble is not None or self._stopped.is_set():
                return False
            self._trouble = reason
        logger.warning("the cache server is in trouble (%s): serving without it", reason)
        threading.Thread(target=self._try_again, name="cache-probe", daemon=True).start()
        return True

    def close(self) -> None:
        """End the probing."""
        self._stopped.set()

    def _try_again(self) -> None:
        wait = self._first_try
        while not self._stopped.wait(wait):
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
            try:
                self._probe()
            except StoreTroubleError as error:
                self._trouble = error.reason
                continue
            self._trouble = None
            logger.info("the cache server works again")
            return
