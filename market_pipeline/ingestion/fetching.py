"""One request to a provider and the validation of its answer: a page."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pandas as pd

from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.errors import ProviderError
from market_pipeline.domain.parsing import leave_older
from market_pipeline.domain.planning import FetchRequest
from market_pipeline.domain.records import Market, build_empty_bar_frame
from market_pipeline.domain.sessions import read_sessions_around
from market_pipeline.domain.validation import ValidatedBars, validate_bars
from market_pipeline.observability.logs import get_logger
from market_pipeline.observability.tracing import span
from market_pipeline.providers.base import Provider

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BarPage:
    """What came back for one request.

    Attributes:
        request: What was asked for. validated: Its bars, good and rejected. received: How many
            came.
        now: The run's clock (UTC).
        asked_at: When it was sent (UTC, wall clock). seconds: How long the answer took.
        error: What came instead of bars. status: The HTTP status of that, where there was one.
    """

    request: FetchRequest
    validated: ValidatedBars
    received: int
    now: datetime
    asked_at: datetime
    seconds: float
    error: str | None = None
    status: int | None = None


def fetch_page(provider: Provider, market: Market, request: FetchRequest, now: datetime) -> BarPage:
    """Ask and validate; an error of the provider becomes part of the page.

    Args:
        provider: The market's.
        market: Whose bars.
        request: Which.
        now: The run's clock (UTC).
    """
    asked_at, began = datetime.now(UTC), time.perf_counter()
    bars, error, status = build_empty_bar_frame(), None, None
    about = {"provider": provider.name, "market": market.symbol, "interval": request.interval.value}
    try:
        with span("fetch", **about, purpose=request.purpose) as handle:
            bars = provider.fetch_bars(market, request.interval, request.window, now)
            handle.set_attributes(bars=len(bars))
    except ProviderError as failure:
        error, status = str(failure), failure.status
        logger.warning("the provider failed", interval=request.interval.value, error=str(failure))
    seconds = time.perf_counter() - began
    # Whatever its provider says: half a bar is not final.
    bars = bars.assign(is_final=bars["is_final"] & (bars["close_time"] <= pd.Timestamp(now)))
    validated = validate_page(bars, market, now)
    return BarPage(request, validated, len(bars), now, asked_at, seconds, error, status)


def leave_older_bars(page: BarPage, known: Coverage | None) -> BarPage:
    """Return the page without bars that an older parser stored: no comparison, no overwriting."""
    good = leave_older(page.validated.good, known or Coverage())
    if good is page.validated.good:
        return page
    return replace(page, validated=replace(page.validated, good=good.reset_index(drop=True)))


def validate_page(bars: pd.DataFrame, market: Market, now: datetime) -> ValidatedBars:
    """Separate possible bars from impossible ones by the market's own sessions."""
    return validate_bars(bars, now, read_sessions_around(bars["open_time"], market.calendar))
