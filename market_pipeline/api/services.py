"""The services of routes: the database, the cache, Dagster; opened once for each process."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import token_hex
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine

from market_pipeline.api.child_runs import ChildRuns
from market_pipeline.api.configuration import Configuration
from market_pipeline.api.credentials import WrongSignIns
from market_pipeline.api.dagster_client import DagsterClient
from market_pipeline.cache.protocol import Cache
from market_pipeline.readers.agreement import PairAgreement
from market_pipeline.readers.serving import open_serving_cache
from market_pipeline.storage.server.database import open_database


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a route may use; safe to share between threads.

    ``children`` starts runs where there is no webserver of Dagster. ``disagreeing`` keeps the
    sources that differ, by dataset version. ``form_secret`` signs forms where there is no token.
    """

    engine: Engine
    cache: Cache
    configuration: Configuration
    dagster: DagsterClient
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    children: ChildRuns = field(default_factory=ChildRuns)
    wrong_sign_ins: WrongSignIns = field(default_factory=WrongSignIns)
    disagreeing: dict[int, list[PairAgreement]] = field(default_factory=dict)
    form_secret: str = field(default_factory=token_hex, repr=False)


@contextmanager
def open_services(configuration: Configuration) -> Iterator[Services]:
    """Open what routes use, and close it in the end.

    Raises:
        StorageError: The database is unreachable, read-only, or at another schema version.
        SettingError: A setting of the database or the cache is wrong.
    """
    with open_database(patience="page") as engine, closing(open_serving_cache(engine)) as cache:
        dagster = DagsterClient(configuration.dagster_url, configuration.graphql_url)
        yield Services(engine, cache, configuration, dagster)


async def get_services(request: Request) -> Services:
    """Return the app's services: what routes depend on; a plain function would get a thread."""
    services: Services = request.app.state.services
    return services


ServicesNeeded = Annotated[Services, Depends(get_services)]
