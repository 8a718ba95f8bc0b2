"""Times and markets as tests write them."""

from datetime import UTC, datetime

from market_pipeline.domain.records import Market, Window
from market_pipeline.providers.base import Provider

LATER = datetime(2026, 1, 1, tzinfo=UTC)


def at(text: str) -> datetime:
    """Return a UTC time."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def between(start: str, end: str) -> Window:
    """Return a span of UTC time."""
    return Window(at(start), at(end))


def find(provider: Provider, symbol: str = "BTC-USD") -> Market:
    """Return a market that must be there."""
    market = provider.find_market(symbol)
    assert market is not None
    return market
