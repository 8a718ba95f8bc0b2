"""Markets and their latest values."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from market_pipeline.api.counting import LATEST
from market_pipeline.api.media import (
    OTHER_FORMATS,
    Origin,
    answer_table,
    answer_unchanged,
    choose_format,
    make_etag,
)
from market_pipeline.api.models import LatestValues, MarketTable
from market_pipeline.api.params import End, Format, ProviderName, Start, Symbol, name_market
from market_pipeline.api.problems import describe_problems
from market_pipeline.api.routes.history import choose_window
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.domain.intervals import Interval
from market_pipeline.readers.agreement import PairAgreement, read_agreement
from market_pipeline.readers.latest import fetch_latest
from market_pipeline.readers.latest_frame import build_latest_frame
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.storage.latest.market_versions import EVERYTHING, read_version_pair
from market_pipeline.storage.markets.listings import read_market_list

router = APIRouter(prefix="/api", tags=["read"])


@router.get(
    "/markets",
    response_model=MarketTable,
    responses={200: {"content": dict(OTHER_FORMATS)}, **describe_problems(400, 406, 503)},
    summary="All stored markets",
)
def list_markets(request: Request, services: ServicesNeeded, kind: Format = None) -> Response:
    """List markets by symbol and provider, also those that are no longer ingested."""
    chosen = choose_format(request, kind)
    with open_snapshot(services.engine) as connection:
        stamp, newest = read_version_pair(connection, EVERYTHING)
        version = newest or None
        origin = Origin(dataset_version=version, etag=make_etag(stamp, f"{version}-{chosen}"))
        unchanged = answer_unchanged(request, origin)
        if unchanged:
            return unchanged
        return answer_table(chosen, read_market_list(connection), origin, "markets")


@router.get(
    "/markets/{symbol}/latest",
    response_model=LatestValues,
    responses={200: {"content": dict(OTHER_FORMATS)}, **describe_problems(400, 404, 406, 503)},
    summary="The latest values of a market",
)
def tell_latest(
    request: Request,
    services: ServicesNeeded,
    symbol: Symbol,
    provider: ProviderName = None,
    kind: Format = None,
) -> Response:
    """Return price, newest final bars and statistics, from the cache where it has them."""
    chosen = choose_format(request, kind)
    (latest,) = fetch_latest(name_market(symbol, provider), services.engine, services.cache)
    LATEST.inc(source=latest.source)
    origin = Origin(
        source=latest.source,
        dataset_version=latest.dataset_version,
        age_seconds=latest.age_seconds,
        etag=make_etag(latest.version, chosen),
    )
    unchanged = answer_unchanged(request, origin)
    if unchanged:
        return unchanged
    if chosen == "json":
        return Response(latest.body, headers=origin.headers, media_type="application/json")
    frame = build_latest_frame([(latest.value, latest.source)])
    return answer_table(chosen, frame, origin, f"{latest.symbol}-latest")


@router.get(
    "/agreement", responses=describe_problems(400, 404, 503), summary="How a symbol's sources agree"
)
def tell_agreement(
    services: ServicesNeeded,
    symbol: Annotated[str, Query(max_length=80, examples=["SPX"])],
    interval: Annotated[Interval, Query(description="1h, 1d or 1w")] = Interval.DAY,
    start: Start = None,
    end: End = None,
) -> dict[str, list[PairAgreement]]:
    """Compare the final bars of each two active markets of a symbol; nothing is averaged."""
    window = choose_window(interval, start, end)
    return {"data": read_agreement(symbol, interval, window.start, window.end, services.engine)}
