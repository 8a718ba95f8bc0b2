"""The guard: an entry is served only while it is known to be of the newest version."""

import pytest

from market_pipeline.cache.guard import GuardedCache
from market_pipeline.cache.keys import make_latest_key
from market_pipeline.cache.memory import MemoryCache

KEY = make_latest_key("mock", "BTC-USD")


class Told:
    """Versions as somebody told them."""

    epoch = 1
    version: int | None = 1

    def find_version(self, scope: str) -> int | None:
        """Return the same for every market."""
        del scope
        return self.version


@pytest.mark.parametrize(("version", "is_served"), [(1, True), (2, False), (None, False)])
def test_an_entry_is_served_while_its_version_is_the_newest(
    version: int | None, is_served: bool
) -> None:
    """One by one and many at once; a version that cannot be known serves nothing."""
    told = Told()
    cache = GuardedCache(MemoryCache(60), told)
    assert cache.put(KEY, 1, "old")
    told.version = version
    assert (cache.get(KEY) is not None) is is_served
    assert (KEY in cache.get_many([KEY])) is is_served


def test_what_may_have_changed_while_nobody_listened_is_forgotten() -> None:
    """Whoever listens again may have missed a change."""
    told = Told()
    cache = GuardedCache(MemoryCache(60), told)
    cache.put(KEY, 1, "old")
    told.epoch = 2
    assert cache.get(KEY) is None


def test_a_late_fill_is_not_taken() -> None:
    """It was read before the market changed."""
    told = Told()
    cache = GuardedCache(MemoryCache(60), told)
    told.version = 2
    assert not cache.put(KEY, 1, "old")
    assert cache.put(KEY, 2, "new")
