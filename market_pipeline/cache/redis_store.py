"""The cache in Redis, or a server that speaks its protocol: entries as versioned JSON.

A value that is not ours (another format, wrong type, too large, not JSON) is a miss, never an
error, and the next value overwrites it. A failure of the server is ``StoreTroubleError``, after
100 ms of silence. ``fallback`` decides what happens then. The library is imported when a store is
opened, so that processes without REDIS_URL do not import it.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from market_pipeline.cache.keys import compile_pattern
from market_pipeline.cache.protocol import Entry, Fill, parse_json
from market_pipeline.domain.errors import PipelineError, SettingError

TIMEOUT_SECONDS = 0.1
MAX_VALUE_BYTES = 2**20
MAX_CONNECTIONS = 32
PROBE_KEY = "market-pipeline:probe"
_AT_ONCE = 200
_SCAN_SECONDS = 5.0
_HEADER = re.compile(rb'\{"format":1,"version":(\d{1,18}),"stored_at":(\d{1,12}\.\d{1,9}),"key":')
# Ours always expire: a planted key with a huge version and no end would otherwise stay for good.
_PUT = """
local head = redis.pcall('GETRANGE', KEYS[1], 0, 63)
if type(head) == 'string' and redis.call('PTTL', KEYS[1]) > 0 then
  local version = string.match(head, '^{"format":1,"version":(%d+),')
  if version and tonumber(version) > tonumber(ARGV[1]) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
_REASONS = {
    "TimeoutError": "timeout",
    "AuthenticationError": "authentication",
    "AuthorizationError": "authentication",
    "NoPermissionError": "authentication",
    "BusyLoadingError": "loading",
    "OutOfMemoryError": "out_of_memory",
    "ReadOnlyError": "read_only",
    "MasterDownError": "read_only",
    "MaxConnectionsError": "max_clients",
}
_WORDS = {
    "MISCONF": "misconf",
    "LOADING": "loading",
    "NOAUTH": "authentication",
    "WRONGPASS": "authentication",
    "NOPERM": "authentication",
    "max number of clients": "max_clients",
    "No connection available": "busy",
}


class StoreTroubleError(PipelineError):
    """The server did not do what was asked.

    The reason is one word of a few: timeout, connection, authentication, read_only, out_of_memory,
    loading, misconf, max_clients, busy, refused.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the cache server is in trouble: {reason}")
        self.reason = reason


class RedisStore:
    """Entries in a Redis database; every method raises ``StoreTroubleError`` when it cannot.

    An address with unknown options is a ``SettingError``, which does not repeat it.
    """

    def __init__(self, url: str, ttl_seconds: float) -> None:
        self._ttl = ttl_seconds
        self._client = _open_client(url)

    def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries that there are, in as few questions as their number allows."""
        found: dict[str, Entry] = {}
        for part in _batch(keys):
            with _translate(), self._client.pipeline(transaction=False) as pipeline:
                for key in part:
                    pipeline.getrange(key, 0, MAX_VALUE_BYTES)
                answers = pipeline.execute(raise_on_error=False)
            for key, answer in zip(part, answers, strict=True):
                if (entry := self._decode(key, answer)) is not None:
                    found[key] = entry
        return found

    def put_many(self, fills: Iterable[Fill]) -> int:
        """Store values that are not too large, unless newer ones are there; count those stored."""
        stored = 0
        for part in _batch([fill for fill in fills if len(fill.body) < MAX_VALUE_BYTES - 1_000]):
            with _translate(), self._client.pipeline(transaction=False) as pipeline:
                for fill in part:
                    milliseconds = int(self._ttl * 1_000)
                    pipeline.eval(_PUT, 1, fill.key, fill.version, _encode(fill), milliseconds)
                stored += sum(pipeline.execute())
        return stored

    def invalidate(self, pattern: str) -> int:
        """Drop the entries whose keys match, a thousand keys looked at in one step."""
        dropped, ends = 0, time.monotonic() + _SCAN_SECONDS
        matches = compile_pattern(pattern).fullmatch
        escaped = re.sub(r"([?\[\]\\^])", r"\\\1", pattern)
        with _translate():
            cursor = 0
            while True:
                cursor, seen = self._client.scan(cursor, match=f"{escaped}*", count=1_000)
                keys = [key for key in seen if matches(key.decode(errors="replace"))]
                dropped += int(self._client.unlink(*keys)) if keys else 0
                if cursor == 0:
                    return dropped
                if time.monotonic() > ends:
                    raise StoreTroubleError("timeout")

    def probe(self) -> None:
        """Write and read something, as entries will be."""
        with _translate():
            self._client.set(PROBE_KEY, b"1", px=1_000)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
        self._client.connection_pool.disconnect()

    def _decode(self, key: str, answer: Any) -> Entry | None:
        """Return the entry; None for a value that this project did not write."""
        if isinstance(answer, Exception):
            if "WRONGTYPE" in str(answer):
                return None
            raise StoreTroubleError(find_reason(answer)) from answer
        head = _HEADER.match(answer)
        before = json.dumps(key).encode() + b',"value":'
        if head is None or len(answer) > MAX_VALUE_BYTES or not answer.endswith(b"}"):
            return None
        if not answer.startswith(before, head.end()):
            return None
        entry = Entry(int(head[1]), answer[head.end() + len(before) : -1], float(head[2]))
        try:
            parse_json(entry.body)
        except ValueError:
            return None
        return entry if entry.age_seconds <= self._ttl else None


def find_reason(error: Exception) -> str:
    """Return the one word for what a server or the library said."""
    text = str(error)
    worded = (reason for word, reason in _WORDS.items() if word in text)
    named = (_REASONS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _REASONS)
    is_lost = any(kind.__name__ in {"ConnectionError", "OSError"} for kind in type(error).__mro__)
    return next(worded, None) or next(named, None) or ("connection" if is_lost else "refused")


@contextmanager
def _translate() -> Iterator[None]:
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreTroubleError(find_reason(error)) from error


def _open_client(url: str) -> Any:
    from redis import BlockingConnectionPool, Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=TIMEOUT_SECONDS,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),  # the library's ten retries take seven seconds
        protocol=2,  # RESP3, and telling the library's name, cost two to four more round trips
        driver_info=None,
        health_check_interval=0,
    )
    try:
        pool.connection_class(**pool.connection_kwargs)  # checks the options; connects to nobody
    except (TypeError, ValueError):
        raise SettingError("REDIS_URL has an option that the client does not know") from None
    return Redis(connection_pool=pool)


def _encode(fill: Fill) -> bytes:
    head = f'{{"format":1,"version":{fill.version},"stored_at":{time.time():.6f},"key":'
    return b"".join((head.encode(), json.dumps(fill.key).encode(), b',"value":', fill.body, b"}"))


def _batch(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
