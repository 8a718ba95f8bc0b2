"""The work of ``market-pipeline markets reload``: the preview and the reload."""

import os
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import click
from sqlalchemy import Engine

from market_pipeline.cli.plan import show_older
from market_pipeline.cli.progress import show_progress
from market_pipeline.cli.run import run_job
from market_pipeline.cli.runs import EXIT_FAILED, finish_run, tell
from market_pipeline.cli.show import print_json, print_rows
from market_pipeline.domain.errors import PipelineError
from market_pipeline.ingestion.closing import close_run
from market_pipeline.ingestion.estimate import ProviderEstimate
from market_pipeline.ingestion.plan import MarketPlan
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.reload import (
    TRIGGER,
    ReloadPlan,
    plan_market_reload,
    reload_market,
    sample_changes,
)
from market_pipeline.ingestion.request import Request, Route, build_request
from market_pipeline.providers.registry import route_markets
from market_pipeline.settings import find_state_dir
from market_pipeline.storage.coverage.listings import list_older
from market_pipeline.storage.markets.admin import dump_market
from market_pipeline.storage.runs.budget import read_budget_limits

_OUT_OF_REACH = "Nothing can be read again: the provider does not reach back that far."


def preview_reload(
    engine: Engine, market_id: int, name: str, asked_at: datetime, as_json: bool
) -> None:
    """Print what a reload would ask for, what it cannot get, and what a sample would change."""
    _, _, plan = _plan(engine, market_id, name, asked_at)
    sample = sample_changes(engine, plan, asked_at)
    provider, market = plan.route
    limit = read_budget_limits([provider])[provider.name]
    planned = MarketPlan(market, plan.requests, (), ())
    estimate = ProviderEstimate(provider.name, (planned,), limit)
    told = {
        "requests": estimate.describe_markets(),
        "cost": estimate.describe(),
        "out of reach": _list_lost(plan),
        "facts": [{"what": key, "stored": a, "now": b} for key, (a, b) in plan.facts.items()],
        "sample": sample,
    }
    if as_json:
        print_json(told)
        return
    _show_preview(told, name, has_requests=bool(plan.requests))


def _show_preview(told: dict[str, Any], name: str, *, has_requests: bool) -> None:
    print_rows("Would be read again", told["requests"])
    print_rows("Cost", [told["cost"]])
    print_rows("Unchanged, because the provider has these bars no more", told["out of reach"])
    print_rows("The provider's description of the market", told["facts"])
    print_rows("A sample: the newest of these bars, as the provider sends them now", told["sample"])
    if not has_requests:
        click.echo(_OUT_OF_REACH)
        return
    click.echo(f"Nothing was changed. To do it: market-pipeline markets reload {name} --yes")


def run_reload(engine: Engine, market_id: int, name: str, asked_at: datetime, as_json: bool) -> int:
    """Dump a market, read it again, compute its statistics, and return the exit code."""
    route, request, plan = _plan(engine, market_id, name, asked_at)
    if not plan.requests:
        click.echo(_OUT_OF_REACH, err=True)
        return EXIT_FAILED
    safe = quote(name, safe="").replace("%3A", "_")
    file = find_state_dir() / "reloads" / f"{safe}_{asked_at:%Y%m%dT%H%M%S_%f}.sql.gz"
    size = dump_market(engine, market_id, file)
    tell(f"Dumped the market to {file} ({size / 1e6:,.1f} MB)")
    run = Run(uuid4(), TRIGGER, asked_at, _cover(request, plan))
    with show_progress(run.run_id, sum(fetch.bars for fetch in plan.requests)):
        _reload(engine, run, route, market_id)
    market = route[1]
    options = {"symbols": [market.symbol], "provider": market.provider}
    causes = run_job("statistics", options).causes
    code = finish_run(run.run_id, causes, as_json, has_failed=bool(causes))
    with engine.connect() as connection:
        left = list_older(connection, [market_id])
    if left and not as_json:
        show_older(left)
    return code


def _reload(engine: Engine, run: Run, route: Route, market_id: int) -> None:
    error: str | None = "the reload was interrupted: start it again, and it continues from there"
    try:
        for _ in reload_market(engine, run, route, market_id):
            pass
        error = None
    except PipelineError as failure:
        error = str(failure)
        raise
    finally:
        with engine.begin() as connection:
            close_run(connection, run.run_id, error)


def _plan(
    engine: Engine, market_id: int, name: str, asked_at: datetime
) -> tuple[Route, Request, ReloadPlan]:
    """Return the market as its provider describes it now, and what is to be read again of it.

    Raises:
        MarketNotServedError: The provider does not serve it any more, or lacks a setting.
    """
    provider, _, symbol = name.partition(":")
    request = build_request(asked_at, [symbol], provider)
    [route] = route_markets([symbol], [provider], os.environ)
    with engine.connect() as connection:
        return route, request, plan_market_reload(connection, route, market_id, request)


def _list_lost(plan: ReloadPlan) -> list[dict[str, Any]]:
    return [
        {"interval": part.interval.value, "from": part.lost[0].start, "to": part.lost[-1].end}
        for part in plan.parts
        if part.lost
    ]


def _cover(request: Request, plan: ReloadPlan) -> Request:
    """Return the request with the span that is read: the receipt tells holes within it."""
    start = min(fetch.window.start for fetch in plan.requests)
    end = max(fetch.window.end for fetch in plan.requests)
    return replace(request, window=replace(request.window, start=start, end=end))
