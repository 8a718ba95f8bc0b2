"""The cache in process: its bounds."""

from market_pipeline.cache.memory import MemoryCache


def test_the_least_recently_used_entry_goes_first() -> None:
    """Reading counts as use."""
    cache = MemoryCache(60, max_entries=2)
    cache.put("a", 1, "a")
    cache.put("b", 1, "b")
    cache.get("a")
    cache.put("c", 1, "c")
    assert set(cache.get_many(["a", "b", "c"])) == {"a", "c"}


def test_c11_memory_is_bounded_in_bytes() -> None:
    """However many entries fit by number."""
    cache = MemoryCache(60, max_bytes=1_000)
    for number in range(100):
        cache.put(str(number), 1, "x" * 300)
    assert list(cache.get_many([str(number) for number in range(100)])) == ["97", "98", "99"]


def test_an_entry_is_never_served_after_its_time() -> None:
    """Not even one tick of the clock."""
    now = 0.0
    cache = MemoryCache(10, clock=lambda: now)
    cache.put("a", 1, "a")
    now = 9.999
    assert cache.get("a") is not None
    now = 10.0
    assert cache.get("a") is None
