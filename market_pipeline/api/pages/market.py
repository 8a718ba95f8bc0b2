"""The page of a market, and the page that says why a statistic of it is what it is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from market_pipeline.api.pages.charts import break_at_gaps, build_market_chart
from market_pipeline.api.pages.pictures import Piece, draw_line, join_states
from market_pipeline.api.pages.rendering import answer_page
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.coverage_map import EXPLAINED, HOLE, MISSING, cut_time, map_coverage
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.readers.agreement import compare_sources
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.resolve import build_unknown_error, find_market_called
from market_pipeline.readers.why import explain_statistic, pick_value
from market_pipeline.settings import read_statistics_settings
from market_pipeline.storage.bars.quarantine import list_quarantine
from market_pipeline.storage.bars.revisions import read_revised
from market_pipeline.storage.bars.stored import read_newest_bars
from market_pipeline.storage.coverage.ledger import read_coverage, read_flaws
from market_pipeline.storage.latest.values import read_snapshot
from market_pipeline.storage.statistics.series import read_newest_roi

router = APIRouter(include_in_schema=False)
MAX_ROWS = 50
STRIP_CELLS = 240
_COMPARED = timedelta(days=365)
_LENGTH = attrgetter("duration")
_STATES = {EXPLAINED: "explained", MISSING: "missing", HOLE: "hole"}
RATIOS = {"sharpe": "Sharpe", "sortino": "Sortino", "calmar": "Calmar"}
FRACTIONS = {
    "roi": "ROI",
    "annualised_return": "Annualised return",
    "annualised_volatility": "Volatility",
    "realised_volatility": "Realised volatility",
    "max_drawdown": "Max drawdown",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A statistic in the table: its value, or why there is none."""

    statistic: str
    title: str
    value: float | None
    reason: str | None
    is_fraction: bool


@dataclass(frozen=True, slots=True)
class Strip:
    """The coverage of an interval from its first span until now, as pieces of equal state."""

    interval: str
    start: datetime
    pieces: Sequence[Piece]
    coverage: Coverage


@router.get("/markets/{name:path}")
def show_market(
    request: Request,
    name: str,
    services: ServicesNeeded,
    interval: Interval = Interval.DAY,
    bars: Annotated[int, Query(ge=30, le=2_000)] = 365,
) -> Response:
    """Show the market called ``provider:symbol``, or the primary one of a symbol."""
    with open_snapshot(services.engine) as connection:
        found = find_market_called(connection, name)
        if found is None:
            raise build_unknown_error(connection, [name[:60].upper()])
        market = {"market_id": found.market_id, **asdict(found.record)}
        shown = read_shown(connection, market, interval, bars)
    return answer_page(request, "market.html", {**shown, "interval": interval.value, "count": bars})


@router.get("/why")
def show_why(
    request: Request,
    services: ServicesNeeded,
    market: Annotated[str, Query(max_length=80)],
    statistic: Annotated[str, Query(max_length=40)] = "sharpe",
    horizon: Annotated[str, Query(pattern=r"^[0-9]{1,5}d$")] = "30d",
    at: Annotated[str, Query(pattern=r"^[0-9]{0,18}$")] = "",
) -> Response:
    """Show where a number comes from; ``at`` compares with the bars of another version."""
    version = int(at) if at else None
    told = explain_statistic(market, statistic, horizon, version, services.engine)
    shown = {
        "told": told,
        "at": at,
        "title": {**FRACTIONS, **RATIOS}[statistic],
        "is_fraction": statistic in FRACTIONS,
        "rows": MAX_ROWS,
        "row": {"provider": told.provider, "symbol": told.symbol},
        "link_run": services.dagster.link_run,
    }
    return answer_page(request, "why.html", shown)


def read_shown(
    connection: Connection, market: Mapping[str, Any], interval: Interval, count: int
) -> dict[str, Any]:
    """Return what the page shows of a market."""
    market_id = market["market_id"]
    bars = read_newest_bars(connection, market_id, interval.value, count)
    coverage = read_coverage(connection, [market_id])
    # Weeks are built from days, and miss what those miss.
    issues = read_flaws(connection, [market_id], min(interval, Interval.DAY, key=_LENGTH))
    least = read_statistics_settings().min_returns
    now = datetime.now(UTC)
    year, symbols = Window(now - _COMPARED, now), [market["symbol"]]
    opens, closes = ([bar[name] for bar in bars] for name in ("open_time", "close"))
    return {
        "market": market,
        "bars": bars,
        "snapshot": read_snapshot(connection, market_id),
        "chart": build_market_chart(bars, interval, market, issues, least),
        "line": draw_line(break_at_gaps(opens, closes, [market["calendar"]], interval), 1_000, 220),
        "statistics": [(row, build_cells(row)) for row in read_newest_roi(connection, market_id)],
        "strips": [
            strip
            for (_, of), known in sorted(coverage.items(), key=lambda item: item[0][1].value)
            if (strip := build_strip(of.value, known, now)) is not None
        ],
        "pairs": compare_sources(connection, Interval.DAY, year, symbols),
        "revisions": read_revised(connection, market_id, MAX_ROWS),
        "quarantined": list_quarantine(connection, MAX_ROWS, market_id=market_id),
    }


def build_cells(row: Mapping[str, Any]) -> list[Cell]:
    """Return the statistics of a horizon in the table's order."""
    return [
        Cell(name, title, *pick_value(name, row[name], row["reason"]), name in FRACTIONS)
        for name, title in {**FRACTIONS, **RATIOS}.items()
    ]


def build_strip(interval: str, coverage: Coverage, now: datetime) -> Strip | None:
    """Return the strip of an interval; None where nothing was ever asked."""
    if not coverage.settled and not coverage.holes:
        return None
    starts = [span.start for span in coverage.settled[:1]]
    start = min(starts + [hole.window.start for hole in coverage.holes])
    end = coverage.settled[-1].end if coverage.settled else now
    spans = cut_time(start, max(end, start), STRIP_CELLS)
    states = [_STATES.get(int(state), "settled") for state in map_coverage(coverage, spans)]
    return Strip(interval, start, join_states(states), coverage)
