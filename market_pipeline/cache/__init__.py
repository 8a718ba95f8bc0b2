"""Floor 1: values that were read from the database, kept for the next reader.

Here: the stores (Redis, in process), the fallback when Redis fails, and the form of entries.
Not here: what is cached (``readers``), which version is the newest
(``storage.latest.market_versions``).
"""

from collections.abc import Iterable


def invalidate_cache_keys(patterns: Iterable[str]) -> int:
    """Drop cached entries by key or pattern; see ``opening.invalidate_cache_keys``."""
    from market_pipeline.cache import opening

    return opening.invalidate_cache_keys(patterns)
