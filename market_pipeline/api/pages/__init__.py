"""Pages for people: the dashboard, rendered on the server.

One module a page, each with a ``router``: rows of ``storage.page_queries`` in, a template out. What
a page shows is built by pure functions. ``formats`` writes values, ``charts`` and ``pictures``
draw, ``rendering`` answers, ``assets`` sends scripts and style sheets. No page asks a provider.
"""

from fastapi import APIRouter

from market_pipeline.api.pages import assets, comparison, market, overview, runs, why

router = APIRouter(include_in_schema=False)
for _page in (overview, market, comparison, runs, why, assets):
    router.include_router(_page.router)
