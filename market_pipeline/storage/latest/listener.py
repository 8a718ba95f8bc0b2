"""A thread that knows every stamp: it listens to NOTIFY, and asks when nothing came for a while.

Its knowledge is valid while its lease lasts: the database answered a query that was sent less than
a second ago. If the server is gone or hangs, the lease ends by itself. Not here: the use of stamps
(``cache.guard``).
"""

import logging
import os
import select
import threading
import time
from collections.abc import Mapping
from typing import Any

import psycopg2
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from market_pipeline.storage.latest.market_versions import CHANNEL, EVERYTHING

APPLICATION_NAME = "market-pipeline watch"
LEASE_SECONDS = 0.9
_ASK_EVERY_SECONDS = 0.3
_RECONNECT_SECONDS = 0.3
# The scopes that changed after a version; the thread asks the driver itself, which has ``%s``.
_CHANGED = "SELECT scope, version FROM market_data.market_stamp WHERE version > %s"
logger = logging.getLogger("market_pipeline.storage")


class StampWatch:
    """The stamps of a database, kept up to date by a thread with a connection of its own.

    The engine's pool gives one connection away for good.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stamps: Mapping[str, int] = {}
        self._asked_at = float("-inf")
        self._epoch = 0
        self._stopped = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        self._is_first = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stamp-watch", daemon=True)
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether what it knows is less than a second old."""
        return time.monotonic() - self._asked_at < LEASE_SECONDS

    @property
    def epoch(self) -> int:
        """How often it connected: what was known before a new connection counts as unknown."""
        return self._epoch

    def find_version(self, scope: str) -> int | None:
        """Return the version that values of ``provider:symbol``, or ``*``, have now.

        None while it cannot know.
        """
        if not self.is_healthy:
            return None
        stamps = self._stamps
        return max(stamps.get(scope, 0), stamps.get(EVERYTHING, 0))

    def wait_until_healthy(self, seconds: float) -> bool:
        """Wait for the first answer of the database; return whether it came."""
        return self._is_first.wait(seconds)

    def close(self) -> None:
        """End the thread and its connection."""
        self._stopped.set()
        os.write(self._wake_write, b"x")
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._follow()
            except (psycopg2.Error, SQLAlchemyError, OSError) as error:
                if self._asked_at > float("-inf"):
                    logger.warning("the watch on changes is interrupted: %s", type(error).__name__)
                self._asked_at = float("-inf")
                self._stopped.wait(_RECONNECT_SECONDS)

    def _follow(self) -> None:
        """Listen on a new connection until it breaks or the watch is closed."""
        pooled = self._engine.raw_connection()
        pooled.detach()  # It is this thread's alone now; the pool may open another.
        connection: Any = pooled.dbapi_connection
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"SET application_name = '{APPLICATION_NAME}'; LISTEN {CHANNEL}")
                self._read_all(cursor)
                while not self._stopped.is_set():
                    self._wait(connection)
                    self._read_newer(cursor)
        finally:
            connection.close()

    def _wait(self, connection: Any) -> None:
        ready = [connection.fileno(), self._wake_read]
        select.select(ready, [], [], _ASK_EVERY_SECONDS)
        connection.poll()
        connection.notifies.clear()

    def _read_all(self, cursor: Any) -> None:
        asked_at = time.monotonic()
        cursor.execute(_CHANGED, (-1,))
        self._stamps = dict(cursor.fetchall())
        self._epoch += 1
        self._asked_at = asked_at
        self._is_first.set()

    def _read_newer(self, cursor: Any) -> None:
        """Ask for what changed; the answer also proves that the server is there."""
        asked_at = time.monotonic()
        cursor.execute(_CHANGED, (max(self._stamps.values(), default=0),))
        changed = dict(cursor.fetchall())
        if changed:
            self._stamps = {**self._stamps, **changed}
        self._asked_at = asked_at
