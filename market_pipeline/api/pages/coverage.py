"""The map of coverage: a strip for each market and interval over one span of time."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from market_pipeline.api.pages.formats import name_market
from market_pipeline.api.pages.market import Strip, build_strip
from market_pipeline.api.pages.paging import cut_page
from market_pipeline.api.pages.rendering import answer_page
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.domain.records import Window
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.storage.coverage.ledger import read_coverage, read_never_asked
from market_pipeline.storage.markets.lookup import read_active_markets

router = APIRouter(include_in_schema=False)
PAGE_ROWS = 50


@dataclass(frozen=True, slots=True)
class CoveredMarket:
    """A market of the map, with the strips of its intervals."""

    row: Mapping[str, Any]
    strips: list[Strip]


@router.get("/coverage")
def show_coverage(
    request: Request,
    services: ServicesNeeded,
    q: Annotated[str, Query(max_length=60)] = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    """Show what is stored and missing of all markets that a text is found in."""
    now, sought = datetime.now(UTC), q.strip().casefold()
    with open_snapshot(services.engine) as connection:
        markets = [
            row for row in read_active_markets(connection) if sought in name_market(row).casefold()
        ]
        listing = cut_page(markets, page, PAGE_ROWS)
        ids = [row["market_id"] for row in listing.items]
        known, never = read_coverage(connection, ids), read_never_asked(connection, ids)
    starts = [one.settled[0].start for one in known.values() if one.settled]
    span = Window(min(starts, default=now), now)
    covered = [
        CoveredMarket(
            row,
            [
                strip
                for key in sorted(known, key=lambda key: key[1].duration)
                if key[0] == row["market_id"]
                and (strip := build_strip(key[1].value, known[key], span, never.get(key, [])))
            ],
        )
        for row in listing.items
    ]
    shown = {"listing": listing, "covered": covered, "span": span, "q": q}
    return answer_page(request, "coverage.html", shown)
