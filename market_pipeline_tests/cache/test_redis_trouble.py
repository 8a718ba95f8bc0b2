"""What readers see while a real server is killed, hangs, refuses, forgets or lies."""

import asyncio
import json
import pickle
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from market_pipeline.cache import redis_store
from market_pipeline.cache.fallback import RedisCache
from market_pipeline.cache.memory import MemoryCache
from market_pipeline.cache.redis_store import MAX_VALUE_BYTES, RedisStore, StoreTroubleError
from market_pipeline_tests.cache.conftest import PRODUCTION_SECONDS, WAIT_SECONDS, Open, wait_until
from market_pipeline_tests.cache.tls import TlsFront
from market_pipeline_tests.cache.valkey import Valkey
from market_pipeline_tests.ports import choose_port

KEY = "market:mock:BTC-USD:latest"
# With the library's ten retries it would be more than ten waits for the server.
FEW_WAITS_SECONDS = 6 * WAIT_SECONDS


def time_get(cache: RedisCache) -> float:
    """Return the seconds that one read takes."""
    began = time.perf_counter()
    cache.get(KEY)
    return time.perf_counter() - began


def count_questions(cache: RedisCache, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that grows whenever a reader asks the server, and so may have to wait."""
    asked: list[object] = []
    ask = cache._store.get_many
    monkeypatch.setattr(cache._store, "get_many", lambda keys: (asked.append(keys), ask(keys))[1])
    return asked


def count_probes(cache: RedisCache, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that grows whenever the breaker tries the server."""
    probed: list[object] = []
    probe = cache._store.probe
    monkeypatch.setattr(cache._store, "probe", lambda: (probed.append(1), probe()))
    return probed


def test_one_wait_for_the_server_is_short_in_production() -> None:
    """The tests give it longer: a busy machine is no trouble of the server."""
    assert PRODUCTION_SECONDS <= 0.2


def test_c1_a_killed_server_is_replaced_by_memory_and_comes_back(
    frail_valkey: Valkey, open_redis: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory begins empty, keeps what is written meanwhile, and ends when the server is back."""
    cache = open_redis(frail_valkey)
    cache.put(KEY, 1, "in redis")
    frail_valkey.kill()
    asked = count_questions(cache, monkeypatch)
    assert time_get(cache) < FEW_WAITS_SECONDS
    assert cache.get(KEY) is None
    assert len(asked) == 1
    assert (cache.store_name, cache.trouble) == ("memory", "connection")
    assert cache.put(KEY, 2, "in memory")
    assert cache.get(KEY).value == "in memory"
    frail_valkey.start()
    wait_until(lambda: cache.trouble is None)
    assert cache.get(KEY) is None
    assert cache.put(KEY, 3, "in redis again")
    assert frail_valkey.client.exists(KEY)


def test_a_certificate_that_nobody_vouches_for_is_refused(
    tls_front: TlsFront, shared_valkey: Valkey, tmp_path: Path
) -> None:
    """Neither an unknown authority nor another one's certificate is spoken to; memory serves."""
    other = TlsFront(shared_valkey.port, tmp_path, name="cache.example")
    for url in (tls_front.url_of_strangers, other.url):
        cache = RedisCache(RedisStore(url, ttl_seconds=60), MemoryCache(60), first_try_seconds=60)
        assert cache.put(KEY, 1, "kept")
        assert (cache.store_name, cache.trouble) == ("memory", "connection")
        cache.close()
    other.close()


def test_c2_a_server_that_hangs_costs_one_short_wait(
    frail_valkey: Valkey, open_redis: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first read waits once; all later ones ask memory alone, until it is as before."""
    cache = open_redis(frail_valkey)
    cache.put(KEY, 1, "kept")
    frail_valkey.freeze()
    asked, probed = count_questions(cache, monkeypatch), count_probes(cache, monkeypatch)
    assert time_get(cache) < FEW_WAITS_SECONDS
    wait_until(lambda: cache.get(KEY) is None and len(probed) >= 3)
    assert len(asked) == 1  # probes fail meanwhile, and no reader waits for one
    assert cache.trouble == "timeout"
    frail_valkey.thaw()
    wait_until(lambda: cache.trouble is None)
    assert cache.get(KEY).value == "kept"


def test_a_server_that_was_never_there_costs_one_short_wait() -> None:
    """Opening asks nobody."""
    url = f"redis://127.0.0.1:{choose_port()}"
    cache = RedisCache(RedisStore(url, 60), MemoryCache(60))
    assert time_get(cache) < FEW_WAITS_SECONDS
    assert cache.put(KEY, 1, "in memory")
    assert cache.get(KEY).value == "in memory"
    cache.close()


def test_a_host_that_swallows_packets_costs_one_short_wait() -> None:
    """A full backlog neither accepts nor refuses."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        full = [socket.socket() for _ in range(3)]
        for one in full:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        cache = RedisCache(RedisStore(f"redis://127.0.0.1:{port}", 60), MemoryCache(60))
        assert time_get(cache) < FEW_WAITS_SECONDS
        assert cache.trouble == "timeout"
        cache.close()
        for one in full:
            one.close()


def make_replica(server: Valkey) -> None:
    """Make it a replica of nobody: it refuses writes."""
    server.client.replicaof("127.0.0.1", str(choose_port()))


def fill_memory(server: Valkey) -> None:
    """Leave no room, and forbid eviction."""
    server.client.config_set("maxmemory-policy", "noeviction")
    server.client.config_set("maxmemory", "1")


def demand_password(server: Valkey) -> None:
    """Ask for a password that clients do not have."""
    server.client.config_set("requirepass", "secret")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (make_replica, "read_only"),
        (fill_memory, "out_of_memory"),
        (demand_password, "authentication"),
    ],
)
def test_c3_a_server_that_refuses_is_named_and_replaced(
    frail_valkey: Valkey, open_redis: Open, harm: Callable[[Valkey], None], reason: str
) -> None:
    """A refusal is told in one word; writes and reads go to memory."""
    harm(frail_valkey)
    cache = open_redis(frail_valkey)
    assert cache.put(KEY, 1, "in memory")
    assert cache.trouble == reason
    assert cache.get(KEY).value == "in memory"


def test_c3_too_many_clients_are_no_crash(frail_valkey: Valkey, open_redis: Open) -> None:
    """The server's own limit."""
    with frail_valkey.client.client() as held:
        held.config_set("maxclients", "1")
        cache = open_redis(frail_valkey)
        assert cache.get(KEY) is None
        assert cache.trouble in {"max_clients", "connection"}  # it may hang up before it says so


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "loading"),
        (b"-MISCONF Redis is configured to save RDB snapshots, but cannot\r\n", "misconf"),
        (b"-NOPERM this user has no permissions\r\n", "authentication"),
        (b"-ERR unknown command\r\n", "refused"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "refused"),
    ],
)
def test_whatever_a_server_says_has_one_word(said: bytes, reason: str) -> None:
    """Those that a real server does not say on demand, said by one that says nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_say, args=(listening, said), daemon=True)
        thread.start()
        store = RedisStore(f"redis://127.0.0.1:{listening.getsockname()[1]}", 60)
        with pytest.raises(StoreTroubleError) as caught:
            store.get_many([KEY])
        assert caught.value.reason == reason
        store.close()
    thread.join()


def _say(listening: socket.socket, said: bytes) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(4_096)
        connection.sendall(said)
        connection.recv(4_096)


def write_ours(key: str, **changes: object) -> bytes:
    """Return the bytes of an entry as the store writes it, with some parts changed."""
    parts = {"format": 1, "version": 3, "stored_at": time.time(), "key": key, "value": "planted"}
    text = json.dumps({**parts, **changes}, separators=(",", ":"))
    return text.encode()


POISON = {
    "pickle": pickle.dumps({"price": 1}),
    "not JSON": b'{"format":1,"version":3,"stored_at":1',
    "another format": write_ours(KEY, format=2),
    "another key": write_ours("market:mock:ETH-USD:latest"),
    "NaN": write_ours(KEY, value=float("nan")),
    "cut off": write_ours(KEY)[:-3] + b"}",
    "another end": write_ours(KEY)[:-1] + b"x",
    "50 MB of spaces": write_ours(KEY)[:-1] + b" " * 50_000_000 + b"}",
    "50 MB": write_ours(KEY, value="x" * 50_000_000),
    "an unending version": write_ours(KEY, version=10**17),
    "of long ago": write_ours(KEY, stored_at=1.000001),
    "empty": b"",
}


@pytest.mark.parametrize("name", POISON)
def test_c12_a_poisoned_value_is_a_miss_and_is_overwritten(
    valkey: Valkey, open_redis: Open, name: str
) -> None:
    """Nothing that we did not write is ever served, whatever wrote it."""
    cache = open_redis(valkey)
    valkey.client.set(KEY, POISON[name])
    entry = cache.get(KEY)
    assert entry is None or entry.version == 10**17  # well-formed: the guard refuses it
    assert cache.trouble is None
    assert cache.put(KEY, 1, "ours")
    assert cache.get(KEY).value == "ours"


def test_c4_a_key_of_another_type_is_a_miss_and_is_overwritten(
    valkey: Valkey, open_redis: Open
) -> None:
    """Among keys that are well, which are served."""
    cache = open_redis(valkey)
    other = "market:mock:ETH-USD:latest"
    cache.put(other, 1, "well")
    valkey.client.rpush(KEY, "a", "list")
    assert list(cache.get_many([KEY, other])) == [other]
    assert cache.put(KEY, 1, "ours")
    assert cache.get(KEY).value == "ours"
    assert cache.trouble is None


def test_what_was_written_is_what_poison_imitates(valkey: Valkey, open_redis: Open) -> None:
    """The imitation above is served when nothing is changed, so each change is what counts."""
    valkey.client.set(KEY, write_ours(KEY))
    assert open_redis(valkey).get(KEY).value == "planted"
    assert MAX_VALUE_BYTES < 50_000_000


def test_c6_forgetting_everything_is_only_a_miss(valkey: Valkey, open_redis: Open) -> None:
    """FLUSHALL and restarts need no other care, scripts included."""
    cache = open_redis(valkey)
    cache.put(KEY, 1, "gone")
    valkey.client.flushall()
    valkey.client.script_flush()
    assert cache.get(KEY) is None
    assert cache.put(KEY, 1, "back")
    assert cache.get(KEY).value == "back"


def test_c5_eviction_leaves_whole_entries_or_none(frail_valkey: Valkey, open_redis: Open) -> None:
    """One key holds a market's whole set, so no reader sees half of it."""
    frail_valkey.client.config_set("maxmemory-policy", "allkeys-lru")
    frail_valkey.client.config_set("maxmemory", str(4 * 2**20))
    cache = open_redis(frail_valkey)
    keys = [f"market:mock:M{number}:latest" for number in range(1_000)]
    for key in keys:
        cache.put(key, 1, {"key": key, "rows": ["x" * 100] * 100})
    found = cache.get_many(keys)
    assert cache.trouble is None
    assert 0 < len(found) < len(keys)
    assert all(
        entry.value == {"key": key, "rows": ["x" * 100] * 100} for key, entry in found.items()
    )


class SlowProxy:
    """Passes bytes on, answers 100 ms late: about when the client gives up."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for pair in ((client, server, 0.0), (server, client, 0.1)):
                threading.Thread(target=_pump, args=pair, daemon=True).start()

    def close(self) -> None:
        """Accept nobody any more."""
        self._listening.close()


def _pump(source: socket.socket, target: socket.socket, delay: float) -> None:
    try:
        while part := source.recv(65_536):
            time.sleep(delay)  # the fault itself: a slow network
            target.sendall(part)
    except OSError:
        return
    finally:
        source.close()
        target.close()


def test_c10_a_cancelled_or_late_answer_is_never_anothers(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 reads, a third of them cancelled in the middle: key A never gives the value of B."""
    keys = [f"market:mock:M{number}:latest" for number in range(20)]
    direct = RedisStore(valkey.url, 60)
    filler = RedisCache(direct, MemoryCache(60))
    for key in keys:
        filler.put(key, 1, key)
    proxy = SlowProxy(valkey.port)
    after = RedisStore(valkey.url, 60)
    # As long as the proxy takes: some answers come too late.
    monkeypatch.setattr(redis_store, "TIMEOUT_SECONDS", PRODUCTION_SECONDS)
    store = RedisStore(f"redis://127.0.0.1:{proxy.port}", 60)

    async def read(number: int) -> tuple[str, object] | None:
        key = keys[number % len(keys)]
        task = asyncio.create_task(asyncio.to_thread(store.get_many, [key]))
        done, _ = await asyncio.wait([task], timeout=0.05 if number % 3 == 0 else 5)
        if not done:
            task.cancel()
            return None
        if task.exception() is not None:
            return None
        found = task.result().get(key)
        return found and (key, found.value)

    async def read_all() -> list[tuple[str, object] | None]:
        answers: list[tuple[str, object] | None] = []
        for first in range(0, 200, 25):
            answers += await asyncio.gather(*(read(first + n) for n in range(25)))
        return answers

    answers = asyncio.run(read_all())
    store.close()
    assert all(answer is None or answer[0] == answer[1] for answer in answers)
    assert {key: entry.value for key, entry in after.get_many(keys).items()} == dict(
        zip(keys, keys, strict=True)
    )
    for one in (after, direct):
        one.close()
    proxy.close()
