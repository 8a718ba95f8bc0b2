"""The price of filling a span of a market's history, before anybody is asked."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection

from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.errors import SettingError
from market_pipeline.domain.records import Market, Window
from market_pipeline.ingestion.estimate import ProviderEstimate, estimate_request
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.registry import load_provider


def price_fill(connection: Connection, market: Market, window: Window) -> ProviderEstimate | None:
    """Return the requests that complete a span of a market; None if its provider is not to be had.

    The plan begins on the span's Monday, as a run's does.
    """
    start, end = window.start.isoformat(), window.end.isoformat()
    now = datetime.now(UTC)
    try:
        request = build_request(
            now, [market.symbol], market.provider, history_from=start, history_to=end
        )
        provider = load_provider(market.provider, os.environ)
        [found] = estimate_request(connection, [(provider, market)], request, os.environ)
    except SettingError:
        return None
    return found


def find_missing(coverage: Coverage, gaps: Sequence[Window]) -> Window | None:
    """Return the span from the first to the last bar that should be there; None: nothing misses."""
    spans = [*gaps, *(hole.window for hole in coverage.holes if not hole.is_explained)]
    if not spans:
        return None
    return Window(min(span.start for span in spans), max(span.end for span in spans))
