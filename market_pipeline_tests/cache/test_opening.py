"""Which cache settings give, and invalidation for those who have none open."""

import subprocess
import sys

import pytest

from market_pipeline.cache import invalidate_cache_keys
from market_pipeline.cache.opening import open_cache
from market_pipeline.domain.errors import SettingError
from market_pipeline_tests.cache.valkey import Valkey

KEY = "market:mock:BTC-USD:latest"


def test_without_an_address_the_cache_is_in_process() -> None:
    """Nothing has to be set."""
    cache = open_cache({})
    assert cache.store_name == "memory"
    assert cache.put(KEY, 1, "here")


def test_an_address_gives_redis(valkey: Valkey) -> None:
    """With the time that is set."""
    cache = open_cache({"REDIS_URL": valkey.url, "CACHE_TTL_SECONDS": "77"})
    assert cache.store_name == "redis"
    cache.put(KEY, 1, "there")
    assert 75 <= valkey.client.ttl(KEY) <= 77
    cache.close()


def test_an_unknown_option_of_an_address_is_refused_by_name() -> None:
    """When it is opened, not at the first read; the password in it is not shown."""
    with pytest.raises(SettingError, match=r"^REDIS_URL") as caught:
        open_cache({"REDIS_URL": "redis://:hunter2@127.0.0.1?no_such_option=1"})
    assert "hunter2" not in str(caught.value)


def test_keys_can_be_invalidated_by_anybody(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Redis for all, and in the caches that this process has in memory."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    in_memory = open_cache()
    monkeypatch.setenv("REDIS_URL", valkey.url)
    in_redis = open_cache()
    for cache in (in_memory, in_redis):
        cache.put(KEY, 1, "old")
        cache.put("market:mock:BTC-USD:aggregates:1d", 1, "old")
    assert invalidate_cache_keys(["market:*:latest", "market:*:aggregates"]) == 4
    assert in_memory.get(KEY) is in_redis.get(KEY) is None
    in_redis.close()


def test_the_package_loads_neither_redis_nor_pandas() -> None:
    """Who has no REDIS_URL does not wait for its library."""
    code = (
        "import sys; from market_pipeline.cache import invalidate_cache_keys; "
        "from market_pipeline.cache.opening import open_cache; open_cache({}); "
        "print([name for name in ('redis', 'pandas', 'sqlalchemy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
