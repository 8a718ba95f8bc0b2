"""The app: routes and pages behind the security layer, with one form of errors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.staticfiles import StaticFiles

from market_pipeline.api.counting import Counting
from market_pipeline.api.description import SUMMARY, TITLE, VERSION, describe_api
from market_pipeline.api.launching import Launcher
from market_pipeline.api.pages import (
    actions,
    assets,
    comparison,
    coverage,
    details,
    launches,
    market,
    overview,
    runs,
    sign_in,
)
from market_pipeline.api.pages.rendering import show_problem
from market_pipeline.api.params import refuse_unknown
from market_pipeline.api.problems import install_problems
from market_pipeline.api.quick import LatestFastPath
from market_pipeline.api.routes import docs, health, history, ingest, ledgers, markets, metrics
from market_pipeline.api.security import RequestGuard
from market_pipeline.api.services import Services
from market_pipeline.api.transport import HeadAsGet, compress_answers, let_sites_in

PAGES = (overview, market, comparison, coverage, runs, details, launches, actions, assets)
FOR_PROGRAMS = (
    ingest.router,
    metrics.router,
    markets.router,
    history.router,
    ledgers.router,
)
# Watchers of health and browsers may add parameters of their own.
LENIENT = (
    health.router,
    docs.router,
    sign_in.router,
    *(page.router for page in PAGES),
)


def build_app(services: Services) -> FastAPI:
    """Return the app on services that are open; who opened them closes them."""
    app = FastAPI(
        title=TITLE,
        summary=SUMMARY,
        version=VERSION,
        generate_unique_id_function=lambda route: route.name,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # What is counted and logged here is ours; spans go to whoever set a tracer provider.
        telemetry={"metrics": False, "logs": False},
        lifespan=_live,
    )
    app.state.services = services
    app.state.launcher = Launcher(services)
    install_problems(app, show_problem)
    for router in FOR_PROGRAMS:
        app.include_router(router, dependencies=[Depends(refuse_unknown)])
    for router in LENIENT:
        app.include_router(router)
    app.mount(docs.ASSETS_PATH, StaticFiles(directory=docs.find_assets()))
    app.openapi = lambda: describe_api(app)  # type: ignore[method-assign]  # FastAPI's way
    compress_answers(app)
    app.add_middleware(LatestFastPath, services=services)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestGuard, configuration=services.configuration)
    let_sites_in(app, services.configuration.cors_origins)
    app.add_middleware(Counting)
    return app


@asynccontextmanager
async def _live(app: FastAPI) -> AsyncIterator[None]:
    yield
    await app.state.launcher.close()
