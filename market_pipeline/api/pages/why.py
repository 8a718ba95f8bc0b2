"""The why page: the method, bars, revisions, runs and requests behind a statistic."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from market_pipeline.api.pages.market import FRACTIONS, RATIOS
from market_pipeline.api.pages.rendering import answer_page
from market_pipeline.api.services import Services, get_services
from market_pipeline.readers.why import explain_statistic

router = APIRouter(include_in_schema=False)
MAX_ROWS = 50


@router.get("/why")
def show_why(
    request: Request,
    services: Annotated[Services, Depends(get_services)],
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
