"""Floor 1: values that were read from the database, kept for the next reader.

Here: the stores (Redis, in process), the fallback when Redis fails, and the form of entries.
Not here: what is cached (``readers``), which version is the newest
(``storage.latest.market_versions``).
"""

from market_pipeline.cache.opening import invalidate_cache_keys as invalidate_cache_keys
