"""Fixtures of the cache's tests: a real server for all, and one that may be harmed."""

import time
from collections.abc import Callable, Iterator

import pytest

from market_pipeline.cache import redis_store
from market_pipeline.cache.fallback import RedisCache
from market_pipeline.cache.memory import MemoryCache
from market_pipeline.cache.redis_store import RedisStore
from market_pipeline_tests.cache.tls import TlsFront
from market_pipeline_tests.cache.valkey import Valkey

DEADLINE_SECONDS = 300.0
PRODUCTION_SECONDS = redis_store.TIMEOUT_SECONDS
# Less than in other rooms: these tests harm servers, and wait for each that hangs.
WAIT_SECONDS = 1.0
Open = Callable[[Valkey | TlsFront], RedisCache]


@pytest.fixture(autouse=True)
def wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take only a server that is in trouble for one."""
    monkeypatch.setattr(redis_store, "TIMEOUT_SECONDS", WAIT_SECONDS)


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[Valkey]:
    """A server that nobody harms, for the whole session."""
    server = Valkey().start()
    yield server
    server.close()


@pytest.fixture
def valkey(shared_valkey: Valkey) -> Valkey:
    """The shared server, empty."""
    shared_valkey.client.flushall()
    return shared_valkey


@pytest.fixture(scope="session")
def tls_front(
    shared_valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TlsFront]:
    """The same server behind TLS."""
    front = TlsFront(shared_valkey.port, tmp_path_factory.mktemp("tls"))
    yield front
    front.close()


@pytest.fixture
def frail_valkey() -> Iterator[Valkey]:
    """A server for one test, which may kill or stop it."""
    server = Valkey().start()
    yield server
    server.close()


@pytest.fixture
def open_redis() -> Iterator[Open]:
    """Opens caches in a server; trouble is tried again soon, so that tests are quick."""
    opened = []

    def open_one(server: Valkey | TlsFront) -> RedisCache:
        store = RedisStore(server.url, ttl_seconds=60)
        opened.append(RedisCache(store, MemoryCache(60), first_try_seconds=0.05))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that must come to be."""
    ends = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < ends, "it did not come to be"
        time.sleep(0.005)
