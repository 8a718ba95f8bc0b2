"""The comparison page: heat maps of correlation and ROI spread, and the ratio of two markets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from market_pipeline.api.pages.charts import build_ratio_chart
from market_pipeline.api.pages.pictures import draw_line
from market_pipeline.api.pages.rendering import answer_page
from market_pipeline.api.services import Services, get_services
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.storage import page_queries

router = APIRouter(include_in_schema=False)
MAX_SIDE = 25
_STEPS = 5
# A spread of so much has the full colour.
_FULL = {"correlation": 1.0, "roi_spread": 0.5}


@dataclass(frozen=True, slots=True)
class Heat:
    """A cell of a heat map; ``shade`` runs from -5 to 5, None on the diagonal and without value."""

    value: float | None
    reason: str | None
    shade: int | None
    is_self: bool = False


@router.get("/compare")
def show_comparison(
    request: Request,
    services: Annotated[Services, Depends(get_services)],
    horizon: Annotated[str, Query(pattern=r"^[0-9]{1,5}d$")] = "30d",
    base: Annotated[str, Query(max_length=80)] = "",
    quote: Annotated[str, Query(max_length=80)] = "",
    q: Annotated[str, Query(max_length=60)] = "",
) -> Response:
    """Show how markets moved together over a horizon, and two of them against each other."""
    with open_snapshot(services.engine) as connection:
        markets = page_queries.read_compared_markets(connection)
        shown = choose_markets(markets, q)
        ids = [market["market_id"] for market in shown]
        pairs = page_queries.read_newest_comparisons(connection, ids, horizon)
        horizons = page_queries.read_compared_horizons(connection)
        first, second = choose_pair(markets, base, quote)
        ratio: list[Mapping[str, Any]] = []
        if first and second:
            start = datetime.now(UTC) - timedelta(days=max(365, int(horizon[:-1])))
            key = (first["market_id"], second["market_id"])
            ratio = page_queries.read_ratio(connection, *key, start)
    name = f"{first['symbol']} / {second['symbol']}" if first and second else ""
    ratios = [row["base_close"] / row["quote_close"] for row in ratio]
    return answer_page(
        request,
        "comparison.html",
        {
            "markets": markets, "shown": shown, "horizon": horizon, "horizons": horizons,
            "maps": {
                measure: build_heat_map(shown, pairs, measure) for measure in _FULL
            },
            "pairs": pairs, "base": first, "other": second, "q": q, "ratio": ratio, "name": name,
            "chart": build_ratio_chart(ratio, name), "line": draw_line(ratios, 1_000, 220),
        },
    )  # fmt: skip


def choose_markets(markets: Sequence[Mapping[str, Any]], wanted: str) -> list[Mapping[str, Any]]:
    """Return the first markets that a text is found in: as many as a heat map can show."""
    parts = [part.strip().casefold() for part in wanted.split(",") if part.strip()]
    found = [
        market
        for market in markets
        if not parts or any(part in spell(market).casefold() for part in parts)
    ]
    return found[:MAX_SIDE]


def choose_pair(
    markets: Sequence[Mapping[str, Any]], base: str, quote: str
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Return the two markets that are named, else the first two; None where there are too few."""
    named = {spell(market): market for market in markets}
    first = named.get(base) or next(iter(markets), None)
    others = (market for market in markets if market is not first)
    second = named.get(quote)
    return first, second if second is not None and second is not first else next(others, None)


def spell(market: Mapping[str, Any]) -> str:
    """Return a market's full name."""
    return f"{market['provider']}:{market['symbol']}"


def build_heat_map(
    markets: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]], measure: str
) -> list[list[Heat]]:
    """Return a cell for each pair of markets, row over column.

    A pair is stored once: correlation is the same both ways, a spread turns its sign.
    """
    sign = 1 if measure == "correlation" else -1
    known: dict[tuple[int, int], Heat] = {}
    for pair in pairs:
        key, value = (pair["base_market_id"], pair["quote_market_id"]), pair[measure]
        known[key] = _heat(value, pair["reason"], measure)
        turned = None if value is None else sign * value
        known.setdefault(key[::-1], _heat(turned, pair["reason"], measure))
    ids = [market["market_id"] for market in markets]
    same, absent = Heat(None, None, None, is_self=True), Heat(None, "not_stored", None)
    return [[same if a == b else known.get((a, b), absent) for b in ids] for a in ids]


def _heat(value: float | None, reason: str | None, measure: str) -> Heat:
    if value is None:
        return Heat(None, reason, None)
    share = max(-1.0, min(1.0, value / _FULL[measure]))
    return Heat(value, None, round(share * _STEPS))
