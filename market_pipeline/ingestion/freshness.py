"""Late series: what calendars and providers promise, compared with what is stored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from market_pipeline.domain.freshness import TrackedSeries, find_delay
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window
from market_pipeline.ingestion.request import Route
from market_pipeline.providers.base import Provider

Known = Mapping[tuple[int, str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Delay:
    """A series that is late.

    Attributes:
        market: Whose. interval: Which.
        final_to: Close of its last final bar (UTC); None: there is none.
        expected_to: Close of the newest bar that should be final and stored (UTC).
    """

    market: Market
    interval: Interval
    final_to: datetime | None
    expected_to: datetime


def index_coverage(rows: Iterable[Mapping[Any, Any]]) -> Known:
    """Return rows of ``read_run_evidence``'s coverage by market and interval."""
    return {(int(row["market_id"]), str(row["interval"])): row for row in rows}


def find_delays(
    routes: Sequence[Route],
    ids: Mapping[tuple[str, str], int],
    known: Known,
    end: datetime,
    now: datetime,
) -> Iterator[Delay]:
    """Yield the series that are late.

    Args:
        routes: Providers and markets.
        ids: market_id by provider and symbol; markets without one are left out.
        known: The coverage of each series.
        end: Bars that open before it were asked for (UTC).
        now: The clock by which bars are due (UTC).
    """
    for route in routes:
        market_id = ids.get((route[1].provider, route[1].symbol))
        if market_id is None:
            continue
        for interval in route[1].intervals:
            series = describe_series(*route, interval, known.get((market_id, interval), {}))
            expected_to = find_delay(series, end, now)
            if expected_to is not None:
                yield Delay(route[1], interval, series.watermark, expected_to)


def describe_series(
    provider: Provider | None, market: Market, interval: Interval, known: Mapping[str, Any]
) -> TrackedSeries:
    """Return a series, given its row of ``read_coverage_rows``, if there is one.

    Without a provider, where it is not to be had, its bars are expected as soon as they close.
    """
    lag = provider.describe_history(market, interval).publication_lag if provider else timedelta(0)
    ends_at = known.get("ends_at")
    explained = None if ends_at is None else Window(known["starts_at"], ends_at)
    return TrackedSeries(market.calendar, interval, lag, known.get("watermark"), explained)
