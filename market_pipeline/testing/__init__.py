"""A suite of tests for providers, one's own and others'; needs pytest.

A test module inherits from :class:`HttpProviderContract`, or from :class:`ProviderContract` where a
provider asks no server. CONTRIBUTING.md has a complete example.
"""

import pytest

from market_pipeline.domain.intervals import Interval

pytest.register_assert_rewrite("market_pipeline.testing.contract")

from market_pipeline.testing.contract import (  # noqa: E402 - asserts are rewritten first
    HttpProviderContract,
    ProviderContract,
)
from market_pipeline.testing.source import (  # noqa: E402
    Candle,
    WireReply,
    WireRequest,
    World,
    reply_json,
)

__all__ = [
    "Candle",
    "HttpProviderContract",
    "Interval",
    "ProviderContract",
    "WireReply",
    "WireRequest",
    "World",
    "reply_json",
]
