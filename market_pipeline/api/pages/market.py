"""The page of a market, and the page that says why a statistic of it is what it is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from market_pipeline.api.pages.charts import VOLATILITY_DAYS, break_at_gaps, build_market_chart
from market_pipeline.api.pages.filling import find_missing, price_fill
from market_pipeline.api.pages.formats import describe_reason
from market_pipeline.api.pages.marks import find_fetched, read_marks
from market_pipeline.api.pages.pictures import Piece, draw_line, join_states
from market_pipeline.api.pages.rendering import answer_page
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.domain.coverage import Coverage
from market_pipeline.domain.coverage_map import EXPLAINED, HOLE, MISSING, cut_time, map_coverage
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.ingestion.estimate import ProviderEstimate
from market_pipeline.readers.agreement import compare_sources
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.resolve import build_unknown_error, find_market_called
from market_pipeline.readers.why import explain_statistic, pick_value
from market_pipeline.settings import read_statistics_settings
from market_pipeline.storage.bars.events import list_events
from market_pipeline.storage.bars.quarantine import list_quarantine
from market_pipeline.storage.bars.revisions import read_revised
from market_pipeline.storage.bars.stored import read_newest_bars
from market_pipeline.storage.coverage.ledger import read_coverage, read_flaws, read_never_asked
from market_pipeline.storage.latest.values import read_snapshot
from market_pipeline.storage.markets.lookup import StoredMarket
from market_pipeline.storage.runs.receipts import read_last_receipt
from market_pipeline.storage.statistics.series import read_newest_roi

router = APIRouter(include_in_schema=False)
MAX_ROWS = 50
MAX_BARS = 5_000
STRIP_CELLS = 240
_COMPARED = timedelta(days=365)
_STATES = {EXPLAINED: "explained", MISSING: "missing", HOLE: "hole"}
Range: TypeAlias = Literal["1w", "1m", "3m", "1y", "all"]
RANGES: Mapping[Range, tuple[str, timedelta]] = {
    "1w": ("1W", timedelta(days=7)),
    "1m": ("1M", timedelta(days=31)),
    "3m": ("3M", timedelta(days=92)),
    "1y": ("1Y", timedelta(days=366)),
    "all": ("All", timedelta(days=36_525)),
}
RATIOS = {"sharpe": "Sharpe", "sortino": "Sortino", "calmar": "Calmar"}
FRACTIONS = {
    "roi": "ROI",
    "annualised_return": "Annualised return",
    "annualised_volatility": "Volatility",
    "realised_volatility": "Realised volatility",
    "max_drawdown": "Max drawdown",
}
_UNSIGNED = frozenset({"annualised_volatility", "realised_volatility"})
MEANINGS = {
    "roi": "Gain or loss from the first close of the span to the last.",
    "annualised_return": "What the same gain would be over a whole year.",
    "annualised_volatility": "How far the price strays in a year, up or down.",
    "realised_volatility": "The same from log returns, as options are priced.",
    "max_drawdown": "The deepest fall from a high within the span.",
    "sharpe": "Return for each unit of volatility. Above 1 is good.",
    "sortino": "Like Sharpe, but only losses count as risk.",
    "calmar": "Annualised return for each unit of max drawdown.",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A statistic in the table: its value, or why there is none."""

    statistic: str
    title: str
    value: float | None
    reason: str | None
    is_fraction: bool

    @property
    def is_signed(self) -> bool:
        """Whether its sign says something."""
        return self.statistic not in _UNSIGNED

    @property
    def meaning(self) -> str:
        """What the number says, in a sentence."""
        return MEANINGS[self.statistic]


@dataclass(frozen=True, slots=True)
class Statistics:
    """The table of statistics: a column for each horizon, a row for each measure.

    ``reasons`` are sentences: which numbers are missing, and why.
    """

    spans: Sequence[Mapping[str, Any]]
    measures: Sequence[Sequence[Cell]]
    reasons: Sequence[str]


@dataclass(frozen=True, slots=True)
class Strip:
    """The coverage of an interval from its first span until now, as pieces of equal state."""

    interval: str
    start: datetime
    pieces: Sequence[Piece]
    coverage: Coverage
    missing: Window | None = None
    fill: ProviderEstimate | None = None


@router.get("/markets/{name:path}")
def show_market(
    request: Request,
    name: str,
    services: ServicesNeeded,
    interval: Interval = Interval.DAY,
    span: Annotated[Range, Query(alias="range")] = "1y",
) -> Response:
    """Show the market called ``provider:symbol``, or the primary one of a symbol."""
    with open_snapshot(services.engine) as connection:
        found = find_market_called(connection, name)
        if found is None:
            raise build_unknown_error(connection, [name[:60].upper()])
        shown = read_shown(connection, found, interval, span)
    choice = {"interval": interval.value, "range": span, "ranges": RANGES}
    return answer_page(request, "market.html", {**shown, **choice})


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
        "meaning": MEANINGS[statistic],
        "rows": MAX_ROWS,
        "row": {"provider": told.provider, "symbol": told.symbol},
    }
    return answer_page(request, "why.html", shown)


def read_shown(
    connection: Connection, found: StoredMarket, interval: Interval, span: Range
) -> dict[str, Any]:
    """Return what the page shows of a market."""
    market = {"market_id": found.market_id, **asdict(found.record)}
    market_id, now = found.market_id, datetime.now(UTC)
    year, symbols = Window(now - _COMPARED, now), [market["symbol"]]
    return {
        "market": market,
        "snapshot": read_snapshot(connection, market_id),
        "last_run": read_last_receipt(connection, market_id),
        "statistics": build_statistics(read_newest_roi(connection, market_id)),
        "strips": read_strips(connection, found, now),
        "events": list_events(connection, [market_id], is_open=True),
        "pairs": compare_sources(connection, Interval.DAY, year, symbols),
        "revisions": read_revised(connection, market_id, MAX_ROWS),
        "quarantined": list_quarantine(connection, MAX_ROWS, market_id=market_id),
        **read_chart(connection, market, interval, span),
    }


def read_chart(
    connection: Connection, market: Mapping[str, Any], interval: Interval, span: Range
) -> dict[str, Any]:
    """Return a market's chart of a range, its bars and their marks."""
    market_id, fetched = market["market_id"], find_fetched(interval)
    length = RANGES[span][1]
    before = timedelta(days=2 * VOLATILITY_DAYS[interval])
    read = read_newest_bars(connection, market_id, interval.value, length + before, MAX_BARS + 1)
    start = read[-1]["open_time"] - length if read else None
    bars = [bar for bar in read if bar["open_time"] > start][-MAX_BARS:]
    earlier = read[: len(read) - len(bars)]
    coverage = read_coverage(connection, [market_id]).get((market_id, fetched), Coverage())
    marks = read_marks(connection, market_id, interval, bars, coverage)
    issues = read_flaws(connection, [market_id], fetched)
    least = read_statistics_settings().min_returns
    opens, closes = ([bar[name] for bar in bars] for name in ("open_time", "close"))
    return {
        "bars": bars,
        "is_cut": len(read) > MAX_BARS,
        "marks": marks,
        "chart": build_market_chart(bars, interval, market, issues, least, earlier, marks),
        "line": draw_line(break_at_gaps(opens, closes, [market["calendar"]], interval), 1_000, 220),
    }


def read_strips(connection: Connection, found: StoredMarket, now: datetime) -> list[Strip]:
    """Return a strip for each interval that was asked for, with the price of what is missing."""
    never = read_never_asked(connection, [found.market_id])
    known = read_coverage(connection, [found.market_id])
    strips = []
    for key in sorted(known, key=lambda key: key[1].duration):
        strip = build_strip(
            key[1].value, known[key], _find_span(known[key], now), never.get(key, [])
        )
        if strip is not None:
            fill = price_fill(connection, found.record, strip.missing) if strip.missing else None
            strips.append(replace(strip, fill=fill))
    return strips


def _find_span(coverage: Coverage, now: datetime) -> Window:
    """Return the span from the first bar that was asked for to the last settled one."""
    spans = [*coverage.settled[:1], *(hole.window for hole in coverage.holes)]
    start = min((span.start for span in spans), default=now)
    return Window(start, max(coverage.settled[-1].end if coverage.settled else now, start))


def build_statistics(rows: Sequence[Mapping[str, Any]]) -> Statistics:
    """Return the table of a market's newest statistics, the shortest horizon first."""
    columns = [build_cells(row) for row in rows]
    return Statistics(rows, list(zip(*columns, strict=True)), list_reasons(rows, columns))


def list_reasons(rows: Sequence[Mapping[str, Any]], columns: Sequence[Sequence[Cell]]) -> list[str]:
    """Return a sentence for each reason that numbers are missing for."""
    told: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row, cells in zip(rows, columns, strict=True):
        missing: dict[str, list[str]] = {}
        for cell in cells:
            if cell.value is None:
                missing.setdefault(describe_reason(cell.reason), []).append(cell.title)
        for reason, titles in missing.items():
            of = () if len(titles) == len(cells) else tuple(titles)
            told.setdefault((reason, of), []).append(row["horizon"])
    return [
        f"{' and '.join(horizons)}{_enclose(of)}: {reason}."
        for (reason, of), horizons in told.items()
    ]


def _enclose(titles: Sequence[str]) -> str:
    return f" ({', '.join(titles)})" if titles else ""


def build_cells(row: Mapping[str, Any]) -> list[Cell]:
    """Return the statistics of a horizon in the table's order."""
    return [
        Cell(name, title, *pick_value(name, row[name], row["reason"]), name in FRACTIONS)
        for name, title in {**FRACTIONS, **RATIOS}.items()
    ]


def build_strip(
    interval: str, coverage: Coverage, span: Window, gaps: Sequence[Window] = ()
) -> Strip | None:
    """Return the strip of an interval over a span; None where nothing was ever asked."""
    if not coverage.settled and not coverage.holes:
        return None
    cells = cut_time(span.start, span.end, STRIP_CELLS)
    states = [_STATES.get(int(state), "settled") for state in map_coverage(coverage, cells)]
    missing = find_missing(coverage, gaps)
    return Strip(interval, span.start, join_states(states), coverage, missing)
