"""The overview: what needs attention, how the last run ended, every active market on pages."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from market_pipeline.api.pages.attention import list_problems
from market_pipeline.api.pages.charts import break_at_gaps
from market_pipeline.api.pages.formats import name_market
from market_pipeline.api.pages.freshness import Freshness, read_series, summarise_freshness
from market_pipeline.api.pages.paging import ListPage, cut_page
from market_pipeline.api.pages.pictures import draw_line
from market_pipeline.api.pages.rendering import answer_page
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.domain.intervals import Interval
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.storage.bars.stored import read_sparks
from market_pipeline.storage.markets.listings import read_overview
from market_pipeline.storage.runs.receipts import read_run_totals

router = APIRouter(include_in_schema=False)
PAGE_ROWS = 100
SPARK_BARS = 30
PROBLEM_ROWS = 8
COLUMNS = {
    "symbol": "Market",
    "price": "Price",
    "change": "24 h",
    "volume": "Volume 24 h",
    "volatility": "Volatility 30 d",
    "sharpe": "Sharpe 30 d",
    "freshness": "Final bars to",
    "health": "Last run",
}
_SORT = f"^-?({'|'.join(COLUMNS)})$"
_NUMBERS = {
    "change": "change_24h_ratio",
    "volume": "volume_24h",
    "volatility": "realised_volatility",
    "sharpe": "sharpe",
}
_UNKNOWN: tuple[float, ...] = ()
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


@router.get("/")
def show_overview(
    request: Request,
    services: ServicesNeeded,
    q: Annotated[str, Query(max_length=60)] = "",
    sort: Annotated[str, Query(pattern=_SORT)] = "symbol",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    """Show what needs attention, and the markets that a text is found in."""
    now = datetime.now(UTC)
    with open_snapshot(services.engine) as connection:
        series = read_series(connection)
        rows = [{**row, "series": series[row["market_id"]]} for row in read_overview(connection)]
        lines = [build_line(row, now) for row in rows]
        listing = list_markets(lines, q, sort, page)
        ids = [line.row["market_id"] for line in listing.items]
        drawn = read_sparks(connection, ids, SPARK_BARS)
        runs = read_run_totals(connection, 1)
        known = [(line.row, line.freshness) for line in lines]
        problems = list_problems(connection, services, known, now)
    calendars = {line.row["market_id"]: line.row["calendar"] for line in listing.items}
    sparks = {
        row["market_id"]: draw_line(
            # It breaks where a close is missing.
            break_at_gaps(row["opens"], row["closes"], [calendars[row["market_id"]]], Interval.DAY)
        )
        for row in drawn
    }
    shown = {
        "listing": listing, "total": len(lines), "sparks": sparks, "run": runs[0] if runs else None,
        "states": Counter(line.freshness.state for line in lines),
        "outcomes": Counter(line.row["outcome"] for line in lines),
        "problems": problems[:PROBLEM_ROWS], "n_problems": len(problems),
        "columns": COLUMNS, "q": q, "sort": sort,
    }  # fmt: skip
    return answer_page(request, "overview.html", shown)


def list_markets(
    lines: Sequence[MarketLine], wanted: str, sort: str, page: int
) -> ListPage[MarketLine]:
    """Return a page of the markets whose symbol, name or provider hold a text.

    Sorted by a column: the dearest, the largest or the worst first; with ``-`` the other way round.
    What is unknown comes last.
    """
    sought = wanted.strip().casefold()
    found = [
        line for line in lines if sought in f"{name_market(line.row)} {line.row['name']}".casefold()
    ]
    column, is_turned = sort.removeprefix("-"), sort.startswith("-")
    found.sort(key=lambda line: (line.row["symbol"], line.row["provider"]), reverse=is_turned)
    found.sort(key=lambda line: _rank(line, column), reverse=is_turned)
    found.sort(key=lambda line: _rank(line, column) == _UNKNOWN)
    return cut_page(found, page, PAGE_ROWS)


def build_line(row: Mapping[str, Any], now: datetime) -> MarketLine:
    """Return what the list shows of a market: the live price, else the last close, and says so."""
    is_close = row["price"] is None
    price = row["close"] if is_close else row["price"]
    price_at = row["close_time"] if is_close else row["observed_at"]
    return MarketLine(row, price, price_at, is_close, summarise_freshness(row["series"], now))


def _rank(line: MarketLine, column: str) -> tuple[float, ...]:
    """Return what sorts a market by a column; ``_UNKNOWN`` too where the name alone sorts."""
    behind = line.freshness.behind
    if column == "freshness":
        return _FRESHNESS[line.freshness.state], -(behind.total_seconds() if behind else 0)
    if column == "health":
        return (_HEALTH.get(line.row["outcome"], 2),)
    number = line.price if column == "price" else line.row.get(_NUMBERS.get(column, ""))
    return _UNKNOWN if number is None else (-number,)
