"""No reader sees an old value: whoever commits, whatever is lost, whichever store answers."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from sqlalchemy import Engine, text

from market_pipeline.cache import redis_store
from market_pipeline.cache.keys import make_latest_key
from market_pipeline.cache.opening import open_cache
from market_pipeline.ingestion.commit import write_markets
from market_pipeline.readers import fetch_latest, open_serving_cache
from market_pipeline.readers.latest import make_fill
from market_pipeline.readers.serving import ServingCache
from market_pipeline.storage.latest import listener, market_versions
from market_pipeline.storage.latest.listener import APPLICATION_NAME, LEASE_SECONDS
from market_pipeline.storage.latest.market_versions import bump_market_versions
from market_pipeline.storage.latest.values import read_latest_rows
from market_pipeline_tests.cache.conftest import WAIT_SECONDS, wait_until
from market_pipeline_tests.cache.valkey import Valkey
from market_pipeline_tests.ingestion.test_next_run import LATER, NOON, Pipeline
from market_pipeline_tests.readers.writing import (
    find_market_id,
    make_run,
    write_price,
    write_statistics,
)

KEY = make_latest_key("mock", "BTC-USD")
SCOPE = "mock:BTC-USD"
Stores = list[ServingCache]


@pytest.fixture(params=["memory", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Valkey | None]:
    """None, and a Redis that processes share."""
    if request.param == "memory":
        yield None
        return
    with closing(Valkey().start()) as running:
        yield running


@contextmanager
def serve(engine: Engine, server: Valkey | None, count: int = 1) -> Iterator[Stores]:
    """Open caches as that many serving processes do."""
    environ = {"REDIS_URL": server.url} if server else {}
    with ExitStack() as stack:
        yield [
            stack.enter_context(closing(open_serving_cache(engine, environ))) for _ in range(count)
        ]


def read_price(engine: Engine, cache: ServingCache) -> float:
    """Return Bitcoin's price as a reader gets it."""
    price: float = fetch_latest("BTC-USD", engine, cache)[0].value["snapshot"]["price"]
    return price


def read_version(engine: Engine, scope: str = SCOPE) -> int:
    """Return a market's version, which is the same alone and among others."""
    with engine.connect() as connection:
        version, _ = market_versions.read_version_pair(connection, scope)
        found = market_versions.read_market_versions(connection, [scope, "mock:OTHER"])
        assert found[scope] == version
        return version


def test_after_a_commit_every_process_reads_the_new_value(
    stored: Engine, server: Valkey | None
) -> None:
    """Without a run's help and long before any entry's time is over."""
    with serve(stored, server, 3) as caches:
        for cache in caches:
            assert read_price(stored, cache) == 60_000
            assert fetch_latest("BTC-USD", stored, cache)[0].source == "cache"
        for price in (61_000, 62_000, 63_000):
            write_price(stored, price)
            for cache in caches:
                wait_until(lambda cache=cache, price=price: read_price(stored, cache) == price)
        assert all(read_price(stored, cache) == 63_000 for cache in caches)


def test_readers_never_go_back_while_a_writer_commits(
    stored: Engine, server: Valkey | None
) -> None:
    """Prices grow with each commit; four readers on two caches see them grow, and see the last."""
    is_over = threading.Event()
    seen: list[list[float]] = [[], [], [], []]

    def read(into: list[float], cache: ServingCache) -> None:
        while not is_over.is_set():
            into.append(read_price(stored, cache))

    with serve(stored, server, 2) as caches:
        readers = [
            threading.Thread(target=read, args=(into, caches[number % 2]))
            for number, into in enumerate(seen)
        ]
        for reader in readers:
            reader.start()
        for price in range(60_001, 60_041):
            write_price(stored, price)
        for cache in caches:
            wait_until(lambda cache=cache: read_price(stored, cache) == 60_040)
        is_over.set()
        for reader in readers:
            reader.join()
    assert all(prices for prices in seen)
    assert all(prices == sorted(prices) for prices in seen)


def test_every_kind_of_change_has_a_stamp_and_no_change_has_none(engine: Engine) -> None:
    """Bars, snapshots, statistics and the list of markets; writing the same again changes none."""
    pipeline = Pipeline(engine)
    pipeline.run(NOON)
    writes: list[Callable[[], object]] = [
        lambda: pipeline.run(LATER),
        lambda: write_price(engine, 1.0),
        lambda: write_statistics(engine),
    ]
    for write in writes:
        before = read_version(engine)
        write()
        after = read_version(engine)
        assert after > before
        write()
        assert read_version(engine) == after
    markets = [route[1] for route in list_routes()]
    before = read_version(engine, "mock:SOME-OTHER")
    write_markets(engine, make_run(), markets)
    after = read_version(engine, "mock:SOME-OTHER")
    assert after > before
    write_markets(engine, make_run(), markets)
    assert read_version(engine, "mock:SOME-OTHER") == after


def list_routes() -> list[tuple[object, object]]:
    """Return routes of which one market is new."""
    from market_pipeline.providers.mock import MockProvider

    provider = MockProvider({})
    return [(provider, provider.find_market(symbol)) for symbol in ("BTC-USD", "ETH-USD")]


def test_bars_stamp_with_their_dataset_version(engine: Engine) -> None:
    """So that one number names a commit of bars everywhere."""
    Pipeline(engine).run(NOON)
    with engine.connect() as connection:
        newest = connection.execute(text("SELECT max(version) FROM market_data.dataset_version"))
        assert read_version(engine) == newest.scalar_one()


def test_c9_a_rolled_back_write_is_never_seen(stored: Engine, server: Valkey | None) -> None:
    """The cache is never newer than the database, and what it has stays good."""
    with serve(stored, server) as (cache,):
        read_price(stored, cache)
        with stored.connect() as connection:
            connection.execute(text("UPDATE market_data.market_snapshot SET price = 1"))
            bump_market_versions(connection, [find_market_id(stored, "BTC-USD")])
            assert read_price(stored, cache) == 60_000
            connection.rollback()
        write_price(stored, 2.0, "ETH-USD")
        wait_until(
            lambda: cache.watch.find_version("mock:ETH-USD") == read_version(stored, "mock:ETH-USD")
        )
        latest = fetch_latest("BTC-USD", stored, cache)[0]
        assert (latest.source, latest.value["snapshot"]["price"]) == ("cache", 60_000)


def test_c7_a_fill_is_dropped_if_the_version_moved_during_its_read(
    stored: Engine, server: Valkey | None
) -> None:
    """A reader that read before the commit and puts after it stores nothing that is served."""
    with serve(stored, server, 2) as (slow, quick):
        with stored.connect() as connection:
            rows = read_latest_rows(connection, [("mock", "BTC-USD")])
        write_price(stored, 61_000)
        wait_until(lambda: read_price(stored, quick) == 61_000)
        wait_until(lambda: slow.watch.find_version(SCOPE) == read_version(stored))
        assert slow.put_many([make_fill(row) for row in rows]) == 0
        assert read_price(stored, slow) == read_price(stored, quick) == 61_000


def test_c8_what_a_crash_leaves_behind_is_never_served(stored: Engine) -> None:
    """A run that dies between commit and invalidation leaves old entries in Redis: misses."""
    with closing(Valkey().start()) as server:
        with serve(stored, server) as (cache,):
            read_price(stored, cache)
        assert server.client.exists(KEY)
        write_price(stored, 61_000)  # and nobody invalidates
        with serve(stored, server) as (restarted,):
            latest = fetch_latest("BTC-USD", stored, restarted)[0]
            assert (latest.source, latest.value["snapshot"]["price"]) == ("database", 61_000)
            assert fetch_latest("BTC-USD", stored, restarted)[0].source == "cache"


def test_falling_back_and_coming_back_serve_no_old_value(
    stored: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis dies, a commit follows, Redis wakes up with what it had: each read is of its time."""
    monkeypatch.setattr(redis_store, "TIMEOUT_SECONDS", WAIT_SECONDS)
    with closing(Valkey().start()) as server, serve(stored, server) as (cache,):
        read_price(stored, cache)
        server.freeze()
        assert read_price(stored, cache) == 60_000
        assert cache.store_name == "memory"
        assert fetch_latest("BTC-USD", stored, cache)[0].source == "cache"
        write_price(stored, 61_000)
        wait_until(lambda: read_price(stored, cache) == 61_000)
        server.thaw()
        wait_until(lambda: cache.trouble is None)
        with closing(open_cache({"REDIS_URL": server.url})) as unguarded:
            assert b"60000" in unguarded.get(KEY).body
        assert read_price(stored, cache) == 61_000


def find_watch(engine: Engine) -> int:
    """Return the process of the server that the watch talks to."""
    query = """SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = :name"""
    with engine.connect() as connection:
        return int(connection.execute(text(query), {"name": APPLICATION_NAME}).scalar_one())


@pytest.mark.owner
def test_while_the_listener_is_cut_off_nothing_is_served_and_a_reconnect_flushes(
    stored: Engine,
) -> None:
    """The database answers meanwhile; then the cache is filled anew."""
    with serve(stored, None) as (cache,):
        read_price(stored, cache)
        epoch = cache.watch.epoch
        with stored.begin() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(:pid)"), {"pid": find_watch(stored)}
            )
        wait_until(lambda: cache.watch.epoch > epoch)
        latest = fetch_latest("BTC-USD", stored, cache)[0]
        assert latest.source == "database"  # nothing had changed: it was flushed
        assert fetch_latest("BTC-USD", stored, cache)[0].source == "cache"


def test_a_listener_that_hangs_ends_its_lease_by_itself(
    stored: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's process stops in the middle: no error comes, and nothing is served or filled."""
    assert LEASE_SECONDS < 1
    monkeypatch.setattr(listener, "LEASE_SECONDS", LEASE_SECONDS)
    with serve(stored, None) as (cache,):
        read_price(stored, cache)
        backend = find_watch(stored)
        os.kill(backend, signal.SIGSTOP)
        try:
            wait_until(lambda: not cache.watch.is_healthy)
            write_price(stored, 61_000)
            latest = fetch_latest("BTC-USD", stored, cache)[0]
            assert (latest.source, latest.value["snapshot"]["price"]) == ("database", 61_000)
            assert cache.trouble == "unwatched"
            assert fetch_latest("BTC-USD", stored, cache)[0].source == "database"
        finally:
            os.kill(backend, signal.SIGCONT)
        wait_until(lambda: cache.trouble is None)
        assert read_price(stored, cache) == 61_000
        # The watch may still flush what it missed; then the next read fills the cache again.
        wait_until(lambda: fetch_latest("BTC-USD", stored, cache)[0].source == "cache")


def test_a_lost_notification_makes_a_value_late_not_wrong(stored: Engine) -> None:
    """The watch also asks: a stamp that nobody told of is found."""
    with serve(stored, None) as (cache,):
        read_price(stored, cache)
        with stored.begin() as connection:
            connection.execute(text("UPDATE market_data.market_snapshot SET price = 5"))
            connection.execute(
                text(
                    "UPDATE market_data.market_stamp SET version = version + 1000 "
                    "WHERE scope = :scope"
                ),
                {"scope": SCOPE},
            )
        wait_until(lambda: read_price(stored, cache) == 5)


def test_a_market_that_is_renamed_or_added_is_found_at_once(stored: Engine) -> None:
    """Names are cached like values: a change of the list of markets makes all of them old."""
    with serve(stored, None) as (cache,):
        assert len(fetch_latest(None, stored, cache)) == 2
        Pipeline(stored).run(NOON, symbol="SPX")
        wait_until(lambda: len(fetch_latest(None, stored, cache)) == 3)


@pytest.mark.owner
def test_a_watch_waits_for_a_database_that_is_not_there_yet(stored: Engine) -> None:
    """It serves nothing, harms nobody, and begins when it can."""
    table = "market_data.market_stamp"
    with stored.begin() as connection:
        connection.execute(text(f"ALTER TABLE {table} RENAME TO hidden"))
    with closing(open_serving_cache(stored, {}, wait_seconds=0.0)) as cache:
        assert cache.get(KEY) is None
        assert not cache.put(KEY, 1, "not filled")
        with stored.begin() as connection:
            connection.execute(text("ALTER TABLE market_data.hidden RENAME TO market_stamp"))
        wait_until(lambda: cache.trouble is None)
        assert read_price(stored, cache) == 60_000


def test_a_closed_cache_leaves_no_connection_and_no_thread(stored: Engine) -> None:
    """A process that ends serving gives everything back."""
    before = set(threading.enumerate())
    with serve(stored, None, 3):
        started = [thread.name for thread in set(threading.enumerate()) - before]
        assert started.count("stamp-watch") == 3
    wait_until(lambda: set(threading.enumerate()) <= before)
    count = """SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = :name"""

    def has_none() -> bool:
        with stored.connect() as connection:
            return connection.execute(text(count), {"name": APPLICATION_NAME}).scalar_one() == 0

    wait_until(has_none)
