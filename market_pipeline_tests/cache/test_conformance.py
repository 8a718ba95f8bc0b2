"""One suite for both stores: who uses a cache cannot tell which it is."""

import threading
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st

from market_pipeline.cache.memory import MemoryCache
from market_pipeline.cache.protocol import Cache
from market_pipeline.cache.redis_store import MAX_VALUE_BYTES
from market_pipeline_tests.cache.conftest import Open, wait_until
from market_pipeline_tests.cache.tls import TlsFront
from market_pipeline_tests.cache.valkey import Valkey

KEY = "market:mock:BTC-USD:latest"
VALUE = {"price": 0.1, "name": "Bitcoin ₿ \"'<", "bars": [1, None, True], "n": 2**60}


@pytest.fixture(params=["memory", "redis", "redis over TLS"])
def cache(
    request: pytest.FixtureRequest, valkey: Valkey, tls_front: TlsFront, open_redis: Open
) -> Cache:
    """Each store in turn."""
    if request.param == "memory":
        return MemoryCache(60)
    return open_redis(valkey if request.param == "redis" else tls_front)


def test_a_value_comes_back_as_it_was(cache: Cache) -> None:
    """JSON in, the same JSON out, with its version and age."""
    assert cache.get(KEY) is None
    assert cache.put(KEY, 7, VALUE)
    entry = cache.get(KEY)
    assert entry is not None
    assert (entry.version, entry.value) == (7, VALUE)
    assert 0 <= entry.age_seconds < 60


def test_many_keys_are_one_question(cache: Cache) -> None:
    """What is absent is left out; nothing asked gives nothing."""
    for number in range(450):
        cache.put(f"market:mock:M{number}:latest", 1, number)
    keys = [f"market:mock:M{number}:latest" for number in range(0, 900, 2)]
    found = cache.get_many(keys)
    assert {key: entry.value for key, entry in found.items()} == {
        f"market:mock:M{number}:latest": number for number in range(0, 450, 2)
    }
    assert cache.get_many([]) == {}


def test_an_older_version_never_replaces_a_newer_one(cache: Cache) -> None:
    """Equal and newer versions do."""
    assert cache.put(KEY, 9, "nine")
    assert not cache.put(KEY, 8, "eight")
    assert cache.get(KEY).value == "nine"
    assert cache.put(KEY, 9, "nine again")
    assert cache.put(KEY, 10, "ten")
    assert cache.get(KEY).value == "ten"


def test_of_many_writers_the_newest_version_stays(cache: Cache) -> None:
    """Whatever the order in which threads write."""
    barrier = threading.Barrier(8)

    def write(first: int) -> None:
        barrier.wait()
        for version in range(first, 200, 8):
            cache.put(KEY, version, version)

    writers = [threading.Thread(target=write, args=(first,)) for first in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    entry = cache.get(KEY)
    assert (entry.version, entry.value) == (199, 199)


def test_c7_a_late_fill_is_dropped(cache: Cache) -> None:
    """A reader that read version 1 and was slow does not hide version 2."""
    has_read, has_committed = threading.Event(), threading.Event()
    stored = []

    def fill_late() -> None:
        has_read.set()
        has_committed.wait()
        stored.append(cache.put(KEY, 1, "read before the commit"))

    reader = threading.Thread(target=fill_late)
    reader.start()
    has_read.wait()
    cache.put(KEY, 2, "committed")
    has_committed.set()
    reader.join()
    assert stored == [False]
    assert cache.get(KEY).value == "committed"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes"])
def test_only_json_can_be_stored(cache: Cache, value: object) -> None:
    """A value that has no form in JSON is the caller's fault, and changes nothing."""
    cache.put(KEY, 1, "before")
    with pytest.raises(ValueError, match="JSON"):
        cache.put(KEY, 2, value)
    assert cache.get(KEY).value == "before"


def test_a_value_that_is_too_large_is_not_stored(cache: Cache) -> None:
    """A megabyte is the most."""
    assert not cache.put(KEY, 1, "x" * MAX_VALUE_BYTES)
    assert cache.get(KEY) is None
    assert cache.put(KEY, 1, "x" * (MAX_VALUE_BYTES // 2))


def test_patterns_drop_what_they_name_and_what_is_below(cache: Cache) -> None:
    """``*`` is any text; every other sign stands for itself."""
    keys = [
        "market:mock:BTC-USD:latest", "market:yahoo:^GSPC:latest", "market:mock:A[B]?:latest",
        "market:mock:BTC-USD:aggregates", "market:mock:BTC-USD:aggregates:1d:x", "name:BTC-USD",
    ]  # fmt: skip
    for key in keys:
        cache.put(key, 1, key)
    assert cache.invalidate("market:mock:A[B]?:latest") == 1
    assert cache.invalidate("market:mock:???-USD:latest") == 0
    assert cache.invalidate("market:*:latest") == 2
    assert cache.invalidate("market:*:aggregates") == 2
    assert list(cache.get_many(keys)) == ["name:BTC-USD"]


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "drop"]), st.integers(0, 3), st.integers(0, 5)), max_size=30
)


@hypothesis.settings(max_examples=60)
@hypothesis.given(steps=STEPS)
def test_c13_both_stores_do_the_same(shared_valkey: Valkey, steps: list[Step]) -> None:
    """After any sequence of writes and invalidations both hold the same, and said the same."""
    from market_pipeline.cache.fallback import RedisCache
    from market_pipeline.cache.redis_store import RedisStore

    shared_valkey.client.flushall()
    redis = RedisCache(RedisStore(shared_valkey.url, 60), MemoryCache(60))
    assert _play(redis, steps) == _play(MemoryCache(60), steps)
    redis.close()


def _play(cache: Cache, steps: list[Step]) -> list[object]:
    said: list[object] = []
    for count, (act, market, version) in enumerate(steps):
        key = f"market:m:{market}:latest"
        said.append(cache.put(key, version, count) if act == "put" else cache.invalidate(key))
        entry = cache.get(key)
        said.append(entry and (entry.version, entry.value))
    return said


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_an_entry_goes_when_its_time_is_over(kind: str, valkey: Valkey) -> None:
    """Also without anybody who invalidates it; then an older version may come."""
    from market_pipeline.cache.fallback import RedisCache
    from market_pipeline.cache.redis_store import RedisStore

    make: dict[str, Callable[[], Cache]] = {
        "memory": lambda: MemoryCache(0.2),
        "redis": lambda: RedisCache(RedisStore(valkey.url, 0.2), MemoryCache(0.2)),
    }
    cache = make[kind]()
    assert cache.put(KEY, 5, "soon gone")
    wait_until(lambda: cache.get(KEY) is None)
    wait_until(lambda: cache.put(KEY, 4, "next"))
    cache.close()
