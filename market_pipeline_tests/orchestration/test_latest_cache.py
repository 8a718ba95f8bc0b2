"""The cache at the end of the graph: what a run puts there, and that its trouble stops no run."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from market_pipeline.cache import redis_store
from market_pipeline.definitions import build_definitions
from market_pipeline.domain.errors import SettingError
from market_pipeline.readers import fetch_latest, open_serving_cache
from market_pipeline.readers.serving import ServingCache
from market_pipeline_tests.cache.conftest import WAIT_SECONDS
from market_pipeline_tests.cache.valkey import Valkey
from market_pipeline_tests.orchestration.conftest import Materialise
from market_pipeline_tests.orchestration.test_materialisation import (
    AN_HOUR_LATER,
    CACHE,
    MORNING,
    read_metadata,
)
from market_pipeline_tests.ports import choose_port

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A server for one test."""
    server = Valkey().start()
    yield server
    server.close()


def serve(engine: Engine, server: Valkey) -> ServingCache:
    """Open the cache as a serving process does."""
    return open_serving_cache(engine, {"REDIS_URL": server.url})


def test_a_run_puts_the_latest_values_where_every_process_finds_them(
    engine: Engine, valkey: Valkey, materialise: Materialise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that never asked before is served from Redis; a second run replaces what changed."""
    monkeypatch.setenv("REDIS_URL", valkey.url)
    valkey.client.set("market:mock:OLD:latest", "of an earlier run", ex=100)
    valkey.client.set("of:another:application", "kept")
    told = read_metadata(materialise(window_end=MORNING))[CACHE]
    assert (told["store"], told["outcome"], told["entries_written"]) == ("redis", "ok", 3)
    assert told["entries_dropped"] == 1
    assert valkey.client.get("of:another:application") == b"kept"
    cache = serve(engine, valkey)
    first = fetch_latest("mock:BTC-USD", engine, cache)[0]
    assert first.source == "cache"
    assert first.version <= told["newest_version"]
    assert first.body == fetch_latest("mock:BTC-USD", engine)[0].body
    told = read_metadata(materialise(window_end=AN_HOUR_LATER))[CACHE]
    assert (told["entries_written"], told["entries_dropped"]) == (3, 3)
    newest = fetch_latest("mock:BTC-USD", engine)[0]
    assert newest.version > first.version
    assert fetch_latest("mock:BTC-USD", engine, cache)[0].body == newest.body
    cache.close()


@pytest.mark.parametrize("trouble", ["connection", "out_of_memory", "timeout"])
def test_trouble_with_redis_fails_no_run_and_is_told(
    valkey: Valkey, materialise: Materialise, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """The outcome of the asset says so; all tables are written."""
    monkeypatch.setenv("REDIS_URL", valkey.url)
    materialise(window_end=MORNING)
    if trouble == "connection":
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{choose_port()}")
    elif trouble == "out_of_memory":
        valkey.client.config_set("maxmemory-policy", "noeviction")
        valkey.client.config_set("maxmemory", "1")
    else:
        monkeypatch.setattr(redis_store, "TIMEOUT_SECONDS", WAIT_SECONDS)
        valkey.freeze()
    result = materialise(CACHE, window_end=MORNING)
    assert result.success
    told = read_metadata(result)[CACHE]
    assert (told["outcome"], told["trouble"]) == ("cache_degraded", trouble)
    assert told["entries_written"] == 0


@pytest.mark.parametrize(
    ("name", "text"), [("REDIS_URL", "http://127.0.0.1"), ("CACHE_TTL_SECONDS", "0")]
)
def test_a_malformed_setting_is_refused_before_a_run_can_begin(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """By name, when Dagster loads the project."""
    monkeypatch.setenv(name, text)
    with pytest.raises(SettingError, match=f"^{name}"):
        build_definitions()
