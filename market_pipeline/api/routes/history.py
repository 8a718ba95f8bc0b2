"""Bars, statistics and comparisons of a market, as of now, a time, or a dataset version."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from market_pipeline.api.media import (
    MAX_ROWS,
    Origin,
    answer_table,
    answer_unchanged,
    choose_format,
    describe_table,
    make_etag,
)
from market_pipeline.api.models import BarTable, ComparisonTable, RoiTable
from market_pipeline.api.params import (
    AsOf,
    End,
    Format,
    Horizon,
    ProviderName,
    Require,
    Start,
    Symbol,
    Version,
    find_market,
)
from market_pipeline.api.problems import ProblemError, describe_problems
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window
from market_pipeline.readers.aggregates import Basis, check_question, demand_bars
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.paging import MAX_CURSOR_CHARACTERS, BarQuery, read_page
from market_pipeline.readers.resolve import (
    check_version,
    parse_moment,
    parse_past_moment,
    parse_window,
)
from market_pipeline.readers.statistics import read_comparisons, read_roi_statistics
from market_pipeline.readers.why import Explanation, explain_statistic
from market_pipeline.storage.bars.history import BarSpan
from market_pipeline.storage.latest.market_versions import read_version_pair

router = APIRouter(prefix="/api/markets/{symbol}", tags=["read"])
_SPANS = {
    Interval.HOUR: timedelta(days=7),
    Interval.DAY: timedelta(days=365),
    Interval.WEEK: timedelta(days=1826),
}
_LONGEST_DAYS = 40_000
_PAGE_ROWS = 1_000
_EVERY_ROW = 2_000_000  # There are fewer hours in the longest window.
Limit = Annotated[
    int | None,
    Query(
        ge=1,
        le=MAX_ROWS,
        description=f"Most rows of one answer; default {_PAGE_ROWS:,} in JSON, and in a file all",
    ),
]
Cursor = Annotated[
    str | None,
    Query(max_length=MAX_CURSOR_CHARACTERS, description="`next_cursor` of the previous page"),
]


@router.get(
    "/aggregates",
    response_model=BarTable,
    responses=describe_table(404, 409, is_tagged=True, is_paged=True),
    summary="Bars, page by page",
)
def list_aggregates(
    request: Request,
    services: ServicesNeeded,
    symbol: Symbol,
    interval: Annotated[Interval, Query(description="1h, 1d or 1w")] = Interval.DAY,
    start: Start = None,
    end: End = None,
    as_of: AsOf = None,
    version: Version = None,
    limit: Limit = None,
    cursor: Cursor = None,
    provider: ProviderName = None,
    kind: Format = None,
    require: Require = None,
    basis: Annotated[
        Basis,
        Query(
            description="`assumed`, with `as_of`: bars that were loaded later count as known from "
            "when they were due"
        ),
    ] = "strict",
    provisional: Annotated[
        bool, Query(description="Also bars that may still change, with `is_final`")
    ] = False,
) -> Response:
    """List final bars by open_time: the newest values, those known at a time, or of a version.

    Without `start` a week of hours, a year of days or five years of weeks. A cursor pins the
    dataset version, so that pages belong together whatever is written meanwhile. `require` is
    checked with the first page, for the whole span. CSV, Parquet and Arrow hold the whole span
    unless there is a `limit`.
    """
    chosen, window = choose_format(request, kind), choose_window(interval, start, end)
    moment = None if as_of is None else parse_past_moment("as_of", as_of)
    check_question(moment, version, basis, provisional)
    most = limit or (_PAGE_ROWS if chosen == "json" else _EVERY_ROW)
    question = BarQuery(interval, window, most, moment, version, basis, provisional)
    with open_snapshot(services.engine) as connection:
        key, market = find_market(connection, symbol, provider)
        origin, newest = _find_origin(connection, market, chosen, version)
        if require is not None and cursor is None:
            check_version(version or 0, newest)
            span = BarSpan((key,), interval, window)
            demand_bars(connection, {key: market}, span, moment, version, require, basis)
        unchanged = answer_unchanged(request, origin)
        if unchanged:
            return unchanged
        page = read_page(connection, key, market, question, cursor, newest)
    shown = Origin(dataset_version=page.version, etag=origin.etag)
    return answer_table(
        chosen, page.bars, shown, f"{market.symbol}-{interval}", page.next_cursor,
        symbol=market.symbol, provider=market.provider, interval=interval.value,
    )  # fmt: skip


@router.get(
    "/roi",
    response_model=RoiTable,
    responses=describe_table(404, 409, is_tagged=True),
    summary="Risk and return by horizon",
)
def list_roi(
    request: Request,
    services: ServicesNeeded,
    symbol: Symbol,
    horizon: Horizon = None,
    start: Start = None,
    end: End = None,
    as_of: AsOf = None,
    version: Version = None,
    provider: ProviderName = None,
    kind: Format = None,
    require: Require = None,
) -> Response:
    """List the newest statistic of each horizon, or with ``start`` and ``end`` all of a span."""
    chosen = choose_format(request, kind)
    with open_snapshot(services.engine) as connection:
        _, market = find_market(connection, symbol, provider)
        origin, _ = _find_origin(connection, market, chosen, version)
        unchanged = answer_unchanged(request, origin)
        if unchanged and require is None:
            return unchanged
        span = (horizon, start, end, as_of, version)
        rows = read_roi_statistics(_name_market(market), *span, engine=connection, require=require)
    names = {"symbol": market.symbol, "provider": market.provider}
    return answer_table(chosen, rows, origin, f"{market.symbol}-roi", **names)


@router.get(
    "/comparisons",
    response_model=ComparisonTable,
    responses=describe_table(404, is_tagged=True),
    summary="Comparisons of a market with others",
)
def list_comparisons(
    request: Request,
    services: ServicesNeeded,
    symbol: Symbol,
    against: Annotated[str | None, Query(max_length=80, description="The other market")] = None,
    horizon: Horizon = None,
    start: Start = None,
    end: End = None,
    as_of: AsOf = None,
    version: Version = None,
    provider: ProviderName = None,
    kind: Format = None,
) -> Response:
    """List the newest comparison of each pair and horizon, or with a span all of it.

    Pairs that are not stored are computed from final bars, unless there are more than 1,225.
    """
    chosen = choose_format(request, kind)
    with open_snapshot(services.engine) as connection:
        _, market = find_market(connection, symbol, provider)
        origin, newest = _find_origin(connection, market, chosen, version)
        stamp, _ = read_version_pair(connection, _name_market(market))
        rows = read_comparisons(
            _name_market(market), against, horizon, start, end, as_of, version, engine=connection
        )
    # What is computed when read depends on the other market as well, which has stamps of its own.
    tag = make_etag(stamp, f"{newest}-{chosen}") if rows["is_stored"].all() else None
    origin = replace(origin, etag=tag)
    names = {"symbol": market.symbol, "provider": market.provider}
    return answer_unchanged(request, origin) or answer_table(
        chosen, rows, origin, f"{market.symbol}-comparisons", **names,
        pairs_left_out=rows.attrs["pairs_left_out"],
    )  # fmt: skip


@router.get("/why", responses=describe_problems(404, 503), summary="The data behind a statistic")
def explain(
    services: ServicesNeeded,
    symbol: Symbol,
    statistic: Annotated[str, Query(max_length=40, examples=["sharpe"])] = "sharpe",
    horizon: Horizon = "30d",
    at: Version = None,
    provider: ProviderName = None,
) -> Explanation:
    """Trace the newest statistic to its method, bars, revisions, runs and requests.

    With ``at`` it is compared with the same statistic from the bars of that dataset version.
    """
    with open_snapshot(services.engine) as connection:
        _, market = find_market(connection, symbol, provider)
        return explain_statistic(_name_market(market), statistic, horizon or "30d", at, connection)


def _name_market(market: Market) -> str:
    return f"{market.provider}:{market.symbol}"


def _find_origin(
    connection: Connection, market: Market, kind: str, version: int | None
) -> tuple[Origin, int]:
    """Return where the snapshot's values come from, and its newest dataset version."""
    stamp, newest = read_version_pair(connection, _name_market(market))
    shown = (newest or None) if version is None else version
    return Origin(dataset_version=shown, etag=make_etag(stamp, kind)), newest


def choose_window(interval: Interval, start: datetime | None, end: datetime | None) -> Window:
    """Return the window asked for; without a start it is as long as suits the interval."""
    until = datetime.now(UTC) if end is None else parse_moment("end", end)
    window = parse_window(until - _SPANS[interval] if start is None else start, until)
    if (window.end - window.start).days > _LONGEST_DAYS:
        detail = f"start and end may be {_LONGEST_DAYS:,} days apart at most"
        raise ProblemError(400, "Invalid Request", detail)
    return window
