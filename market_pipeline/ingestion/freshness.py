"""Which series are late: what their calendars and providers promise, against what is stored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from market_pipeline.domain.freshness import find_newest_due
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market
from market_pipeline.ingestion.request import Route

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
    """Yield the series that are late; a bar the provider is known not to have is not waited for.

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
            delay = _find_delay(route, interval, known.get((market_id, interval)), end, now)
            if delay is not None:
                yield delay


def _find_delay(
    route: Route,
    interval: Interval,
    known: Mapping[str, Any] | None,
    end: datetime,
    now: datetime,
) -> Delay | None:
    provider, market = route
    lag = provider.describe_history(market, interval).publication_lag
    due = find_newest_due(market.calendar, interval, end, now, lag)
    watermark = known["watermark"] if known else None
    if due is None or (watermark is not None and watermark >= due.end):
        return None
    explained = known["ends_at"] if known else None
    if known and explained is not None and known["starts_at"] <= due.start < explained:
        return None
    return Delay(market, interval, watermark, due.end)
