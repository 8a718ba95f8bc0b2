"""The pages of runs: receipts, holes, quarantine, and what each dataset version changed."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from market_pipeline.api.pages.formats import format_plural, say_plainly
from market_pipeline.api.pages.paging import cut_page
from market_pipeline.api.pages.rendering import REFRESH_SECONDS, answer_page
from market_pipeline.api.problems import ProblemError
from market_pipeline.api.routes.ingest import LauncherNeeded
from market_pipeline.api.services import Services, ServicesNeeded
from market_pipeline.readers.opening import open_snapshot
from market_pipeline.storage.bars.quarantine import list_quarantine
from market_pipeline.storage.bars.revisions import read_restated_bars, read_version_batches
from market_pipeline.storage.coverage.holes import read_holes, read_run_holes
from market_pipeline.storage.runs.receipts import (
    read_run_tables,
    read_run_totals,
    read_run_with_totals,
    read_worst_markets,
)
from market_pipeline.storage.runs.ticks import read_parts

router = APIRouter(include_in_schema=False)
MAX_RUNS = 50
MAX_ROWS = 200
MAX_EXCEPTIONS = 50
MAX_MARKETS = 20_000
MAX_SHORT = 20
MAX_TOLD = 3
PAGE_ROWS = 50
_FAST_SECONDS = 1
COUNTS = (
    "received", "inserted", "updated", "unchanged", "revised", "derived_inserted",
    "derived_updated", "quarantined", "holes_left", "calls",
)  # fmt: skip


@router.get("/runs")
def show_runs(request: Request, services: ServicesNeeded) -> Response:
    """Show the last runs, all holes and the rows in quarantine."""
    with open_snapshot(services.engine) as connection:
        shown = {
            "runs": read_run_totals(connection, MAX_RUNS),
            "holes": read_holes(connection, MAX_EXCEPTIONS),
            "quarantined": list_quarantine(connection, MAX_EXCEPTIONS, status="open"),
        }
    return answer_page(request, "runs.html", {**shown, "link_run": services.dagster.link_run})


@router.get("/runs/{run_id}")
async def show_run(
    request: Request,
    run_id: UUID,
    services: ServicesNeeded,
    launcher: LauncherNeeded,
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    """Show a run's receipt, also while it runs; before it wrote one, that it waits."""
    shown = await run_in_threadpool(_read_shown, services, run_id, page)
    if shown is not None:
        return await run_in_threadpool(answer_page, request, "run.html", shown)
    try:
        state = await launcher.read_state(run_id)
    except ProblemError:
        state = None
    if state is None:
        detail = f"run {run_id} has no receipt (old ones are removed): /runs lists the receipts"
        raise ProblemError(404, "Not Found", detail)
    seconds = REFRESH_SECONDS if state.has_ended else _FAST_SECONDS
    link = services.dagster.link_run(run_id)
    waiting = {"run_id": run_id, "state": state, "refresh_seconds": seconds, "dagster_url": link}
    return answer_page(request, "run_waiting.html", waiting)


def _read_shown(services: Services, run_id: UUID, page: int) -> dict[str, Any] | None:
    """Return what the page of a run shows; None for a run without a receipt."""
    with open_snapshot(services.engine) as connection:
        run = read_run_with_totals(connection, run_id)
        if run is None:
            return None
        shards = read_parts(connection, run_id)
        receipts = read_worst_markets(connection, run_id, MAX_MARKETS)
        short = [row for row in receipts if row["outcome"] != "ok"]
        return {
            "run": run,
            "sentence": summarise_run(run, short),
            "short": short[:MAX_SHORT],
            "n_short": len(short),
            "request_text": json.dumps(run["request"], indent=2, sort_keys=True),
            "listing": cut_page(receipts, page, PAGE_ROWS),
            "tables": read_run_tables(connection, run_id),
            "holes": read_run_holes(connection, run["parts"], MAX_EXCEPTIONS),
            "quarantined": list_quarantine(connection, MAX_EXCEPTIONS, run_ids=run["parts"]),
            "shards": shards,
            "versions": read_version_batches(connection, run, MAX_ROWS),
            "restated": read_restated_bars(connection, run, MAX_EXCEPTIONS),
            "dagster_url": services.dagster.link_run(run_id, is_tick=bool(shards)),
            "counts": COUNTS,
            "refresh_seconds": _FAST_SECONDS if run["outcome"] == "running" else REFRESH_SECONDS,
        }


def summarise_run(run: Mapping[str, Any], short: Sequence[Mapping[str, Any]]) -> str:
    """Return what a run did, in a sentence or two: how many markets are whole, and which are not.

    Markets that came short for the same reason are named together.
    """
    if not run["markets"]:
        return "It fetched no bars."
    whole = f"{run['ok']:,} of {format_plural(run['markets'], 'market')} gave all their bars."
    if run["outcome"] == "running":
        return f"It runs: {whole}"
    reasons: dict[str, list[str]] = {}
    for row in short:
        reasons.setdefault(say_plainly(row["reason"]) or "no reason was noted", []).append(
            row["symbol"]
        )
    told = [f"{_name_some(names)}: {reason}." for reason, names in list(reasons.items())[:MAX_TOLD]]
    return " ".join([whole, *told])


def _name_some(names: Sequence[str]) -> str:
    if len(names) <= MAX_TOLD:
        return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    return f"{', '.join(names[:MAX_TOLD])} and {len(names) - MAX_TOLD:,} more"
