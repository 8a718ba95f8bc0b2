"""The comparison page: heat maps of correlation and ROI spread, and the ratio of two markets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from market_pipeline.api.pages.charts import break_at_gaps, build_ratio_chart
from market_pipeline.api.pages.formats import name_market
from market_pipeline.api.pages.pictures import draw_line
from market_pipeline.api.pages.rendering import answer_page
from market_pipeline.api.services import ServicesNeeded
from market_pipeline.domain.intervals import Interval
from market_pipeline.readers.comparing import PAIR_KEYS
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.readers.pairs import read_pairs
from market_pipeline.readers.resolve import read_all_markets
from market_pipeline.settings import read_statistics_settings
from market_pipeline.storage.bars.stored import read_ratio
from market_pipeline.storage.markets.lookup import read_active_markets
from market_pipeline.storage.statistics.series import StatisticSpan, read_compared_horizons

router = APIRouter(include_in_schema=False)
MAX_SIDE = 25
MAX_LISTED = 50
_SHOWN = ("correlation", "roi_spread", "price_ratio", "n_returns", "reason", "is_stored")
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
    is_stored: bool = True


@router.get("/compare")
def show_comparison(
    request: Request,
    services: ServicesNeeded,
    horizon: Annotated[str, Query(pattern=r"^[0-9]{1,5}d$")] = "30d",
    base: Annotated[str, Query(max_length=80)] = "",
    quote: Annotated[str, Query(max_length=80)] = "",
    q: Annotated[str, Query(max_length=60)] = "",
) -> Response:
    """Show how markets moved together over a horizon, and two of them against each other."""
    with open_snapshot(services.engine) as connection:
        markets = read_active_markets(connection)
        shown = choose_markets(markets, q)
        ids = [market["market_id"] for market in shown]
        pairs = read_shown_pairs(connection, ids, horizon, ids)
        horizons = list_horizons(read_compared_horizons(connection), horizon)
        first, second = choose_pair(markets, base, quote)
        ratio: Sequence[Mapping[str, Any]] = ()
        spans: list[dict[Any, Any]] = []
        if first and second:
            start = datetime.now(UTC) - timedelta(days=max(365, int(horizon[:-1])))
            key = (first["market_id"], second["market_id"])
            ratio = read_ratio(connection, *key, start)
            spans = read_shown_pairs(connection, [key[0]], None, [key[1]])
    name = f"{first['symbol']} / {second['symbol']}" if first and second else ""
    ratios = [row["base_close"] / row["quote_close"] for row in ratio]
    dates = [row["open_time"] for row in ratio]
    calendars = [market["calendar"] for market in (first, second) if market]
    names = {market["market_id"]: market for market in shown}
    return answer_page(
        request,
        "comparison.html",
        {
            "markets": markets, "shown": shown, "horizon": horizon, "horizons": horizons,
            "maps": {
                measure: build_heat_map(shown, pairs, measure) for measure in _FULL
            },
            "pairs": pairs, "listed": list_closest(pairs), "names": names, "spans": spans,
            "base": first, "other": second, "q": q, "name": name,
            "chart": build_ratio_chart(ratio, name, calendars),
            "line": draw_line(break_at_gaps(dates, ratios, calendars, Interval.DAY), 1_000, 220),
        },
    )  # fmt: skip


def list_closest(pairs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the pairs that moved together or against each other most; unknown ones come last."""
    return sorted(pairs, key=lambda pair: -abs(pair["correlation"] or 0))[:MAX_LISTED]


def read_shown_pairs(
    connection: Connection, ones: Sequence[int], horizon: str | None, others: Sequence[int]
) -> list[dict[Any, Any]]:
    """Return the newest comparison of markets with others, computed where it is not stored.

    By horizon, the shortest first; None: of all horizons.
    """
    span = StatisticSpan(ones, Interval.DAY.value, horizon)
    found = read_pairs(connection, read_all_markets(connection), span, others).rows
    shown = found[[*PAIR_KEYS, "horizon", *_SHOWN]].astype(object)
    rows = shown.where(shown.notna(), None).to_dict("records")
    return sorted(rows, key=lambda row: int(row["horizon"].removesuffix("d")))


def list_horizons(stored: Sequence[str], shown: str) -> list[str]:
    """Return the horizons to choose from, the shortest first: stored, configured, and shown."""
    configured = [f"{days}d" for days in read_statistics_settings().horizons_days]
    return sorted({*stored, *configured, shown}, key=lambda label: int(label.removesuffix("d")))


def choose_markets(markets: Sequence[Mapping[str, Any]], wanted: str) -> list[Mapping[str, Any]]:
    """Return the first markets that a text is found in: as many as a heat map can show."""
    parts = [part.strip().casefold() for part in wanted.split(",") if part.strip()]
    found = [
        market
        for market in markets
        if not parts or any(part in name_market(market).casefold() for part in parts)
    ]
    return found[:MAX_SIDE]


def choose_pair(
    markets: Sequence[Mapping[str, Any]], base: str, quote: str
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Return the two markets that are named, else the first two; None where there are too few."""
    named = {name_market(market): market for market in markets}
    first = named.get(base) or next(iter(markets), None)
    others = (market for market in markets if market is not first)
    second = named.get(quote)
    return first, second if second is not None and second is not first else next(others, None)


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
        turned = None if value is None else sign * value
        known[key] = _heat(value, pair, measure)
        known.setdefault(key[::-1], _heat(turned, pair, measure))
    ids = [market["market_id"] for market in markets]
    same, absent = Heat(None, None, None, is_self=True), Heat(None, "no_common_date", None)
    return [[same if a == b else known.get((a, b), absent) for b in ids] for a in ids]


def _heat(value: float | None, pair: Mapping[str, Any], measure: str) -> Heat:
    is_stored = bool(pair["is_stored"])
    if value is None:
        return Heat(None, pair["reason"], None, is_stored=is_stored)
    share = max(-1.0, min(1.0, value / _FULL[measure]))
    return Heat(value, None, round(share * _STEPS), is_stored=is_stored)
