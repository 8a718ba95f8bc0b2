"""The overview: open alerts, how the last run ended, every active market on pages of a hundred."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import Row

from market_pipeline.api.pages.charts import break_at_gaps
from market_pipeline.api.pages.formats import name_market
from market_pipeline.api.pages.freshness import Freshness, read_series, summarise_freshness
from market_pipeline.api.pages.pictures import draw_line
from market_pipeline.api.pages.rendering import answer_page
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.domain.intervals import Interval
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.settings import SEVERITIES
from market_pipeline.storage.alerts.outbox import read_alerts
from market_pipeline.storage.bars.history import read_newest_version
from market_pipeline.storage.bars.stored import read_sparks
from market_pipeline.storage.markets.listings import read_overview
from market_pipeline.storage.runs.receipts import read_run_totals

router = APIRouter(include_in_schema=False)
PAGE_ROWS = 100
SPARK_BARS = 30
ALERT_ROWS = 5
_ALERTS_READ = 1_000
Sort: TypeAlias = Literal["symbol", "price", "change", "freshness", "health"]
_HEALTH = {"failed": 0, "partial": 1, None: 2, "ok": 3}
_FRESHNESS = {"empty": 0, "behind": 1, "current": 2}


@dataclass(frozen=True, slots=True)
class MarketLine:
    """A market in the list: its row, the price shown and when that was true, and its freshness."""

    row: Mapping[str, Any]
    price: float | None
    price_at: datetime | None
    is_close: bool
    freshness: Freshness


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of the list: ``found`` markets of ``total`` match; counts are of all markets."""

    lines: Sequence[MarketLine]
    found: int
    total: int
    number: int
    pages: int
    fresh: Mapping[str, int]


@router.get("/")
def show_overview(
    request: Request,
    services: ServicesNeeded,
    q: Annotated[str, Query(max_length=60)] = "",
    sort: Sort = "symbol",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    """Show the markets that a text is found in."""
    with open_snapshot(services.engine) as connection:
        series = read_series(connection)
        rows = [{**row, "series": series[row["market_id"]]} for row in read_overview(connection)]
        listing = list_markets(rows, q, sort, page, datetime.now(UTC))
        ids = [line.row["market_id"] for line in listing.lines]
        drawn = read_sparks(connection, ids, SPARK_BARS)
        runs = read_run_totals(connection, 1)
        version = read_newest_version(connection)
        alerts = rank_alerts(read_alerts(connection, _ALERTS_READ, with_resolved=False))
    calendars = {line.row["market_id"]: line.row["calendar"] for line in listing.lines}
    sparks = {
        row["market_id"]: draw_line(
            # It breaks where a close is missing.
            break_at_gaps(row["opens"], row["closes"], [calendars[row["market_id"]]], Interval.DAY)
        )
        for row in drawn
    }
    shown = {
        "listing": listing, "sparks": sparks, "run": runs[0] if runs else None, "version": version,
        "alerts": alerts[:ALERT_ROWS], "more_alerts": len(alerts[ALERT_ROWS:]),
        "link_run": services.dagster.link_run, "q": q, "sort": sort,
    }  # fmt: skip
    return answer_page(request, "overview.html", shown)


def rank_alerts(alerts: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Return alerts: first those that last and that nobody acknowledged, then by severity."""
    return sorted(
        alerts,
        key=lambda alert: (
            alert.cleared_at is not None,
            alert.acknowledged_at is not None,
            -SEVERITIES.index(alert.severity),
        ),
    )


def list_markets(
    rows: Sequence[Mapping[str, Any]], wanted: str, sort: Sort, page: int, now: datetime
) -> Listing:
    """Return a page of the markets whose symbol, name or provider hold a text."""
    lines = [build_line(row, now) for row in rows]
    sought = wanted.strip().casefold()
    found = [
        line for line in lines if sought in f"{name_market(line.row)} {line.row['name']}".casefold()
    ]
    found.sort(key=lambda line: _rank(line, sort))
    pages = max(1, -(-len(found) // PAGE_ROWS))
    number = min(page, pages)
    shown = found[(number - 1) * PAGE_ROWS : number * PAGE_ROWS]
    fresh = Counter(line.freshness.state for line in lines)
    return Listing(shown, len(found), len(lines), number, pages, fresh)


def build_line(row: Mapping[str, Any], now: datetime) -> MarketLine:
    """Return what the list shows of a market: the live price, else the last close, and says so."""
    is_close = row["price"] is None
    price = row["close"] if is_close else row["price"]
    price_at = row["close_time"] if is_close else row["observed_at"]
    return MarketLine(row, price, price_at, is_close, summarise_freshness(row["series"], now))


def _rank(line: MarketLine, sort: Sort) -> tuple[Any, ...]:
    """Return what sorts a market: the dearest, the largest rise, or the worst first."""
    name = (line.row["symbol"], line.row["provider"])
    change = line.row["change_24h_ratio"]
    behind = line.freshness.behind
    return {
        "symbol": name,
        "price": (line.price is None, -(line.price or 0), *name),
        "change": (change is None, -(change or 0), *name),
        "freshness": (
            _FRESHNESS[line.freshness.state],
            -(behind.total_seconds() if behind else 0),
            *name,
        ),
        "health": (_HEALTH.get(line.row["outcome"], 2), *name),
    }[sort]
