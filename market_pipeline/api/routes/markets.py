"""Markets and their latest values."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from market_pipeline.api.counting import LATEST
from market_pipeline.api.media import (
    MEDIA_TYPES,
    Origin,
    answer_table,
    answer_unchanged,
    choose_format,
    describe_table,
    make_etag,
)
from market_pipeline.api.models import LatestTable, LatestValues, MarketTable
from market_pipeline.api.params import (
    End,
    Format,
    ProviderName,
    Start,
    Symbol,
    Symbols,
    name_market,
    split_symbols,
)
from market_pipeline.api.problems import describe_problems
from market_pipeline.api.routes.history import choose_window
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.domain.intervals import Interval
from market_pipeline.readers.agreement import PairAgreement, read_agreement
from market_pipeline.readers.encoding import encode_json
from market_pipeline.readers.latest import fetch_latest
from market_pipeline.readers.latest_frame import build_latest_frame
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.storage.latest.market_versions import EVERYTHING, read_version_pair
from market_pipeline.storage.markets.listings import read_market_list

router = APIRouter(prefix="/api", tags=["read"])


@router.get(
    "/markets",
    response_model=MarketTable,
    responses=describe_table(is_tagged=True),
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
    responses=describe_table(404, is_tagged=True),
    summary="The latest values of a market",
)
def get_latest(
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
    "/latest",
    response_model=LatestTable,
    responses=describe_table(404, is_tagged=True),
    summary="The latest values of many markets",
)
def list_latest(
    request: Request, services: ServicesNeeded, symbols: Symbols = None, kind: Format = None
) -> Response:
    """Return what the route of one market does, for each; without `symbols` for all active ones."""
    chosen = choose_format(request, kind)
    found = fetch_latest(split_symbols(symbols), services.engine, services.cache)
    for latest in found:
        LATEST.inc(source=latest.source)
    stamps = ";".join(f"{one.provider}:{one.symbol}={one.version}" for one in found)
    version = max((one.dataset_version or 0 for one in found), default=0) or None
    origin = Origin(
        source="cache" if all(one.source == "cache" for one in found) else "database",
        dataset_version=version,
        age_seconds=max((one.age_seconds for one in found), default=0.0),
        etag=make_etag(hashlib.sha256(stamps.encode()).hexdigest()[:16], chosen),
    )
    unchanged = answer_unchanged(request, origin)
    if unchanged:
        return unchanged
    if chosen != "json":
        frame = build_latest_frame([(one.value, one.source) for one in found])
        return answer_table(chosen, frame, origin, "latest")
    head = encode_json({"dataset_version": version, "next_cursor": None})[:-1]
    body = b'%s,"data":[%s]}' % (head, b",".join(one.body for one in found))
    return Response(body, headers=origin.headers, media_type=MEDIA_TYPES["json"])


@router.get(
    "/agreement", responses=describe_problems(404, 503), summary="How a symbol's sources agree"
)
def get_agreement(
    services: ServicesNeeded,
    symbol: Annotated[str, Query(max_length=80, examples=["SPX"])],
    interval: Annotated[Interval, Query(description="1h, 1d or 1w")] = Interval.DAY,
    start: Start = None,
    end: End = None,
) -> dict[str, list[PairAgreement]]:
    """Compare the final bars of each two active markets of a symbol; nothing is averaged."""
    window = choose_window(interval, start, end)
    return {"data": read_agreement(symbol, interval, window.start, window.end, services.engine)}
