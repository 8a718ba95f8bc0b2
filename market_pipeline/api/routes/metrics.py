"""Figures for those who watch, read from the database as they are asked for.

They are gauges: what the receipts that are kept say, not counters of this process. A database that
does not answer is a figure too, so a scrape never fails for it.
"""

import time
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from market_pipeline.api.problems import describe_problems
from market_pipeline.api.services import Services, get_services
from market_pipeline.storage.ledgers import market_coverage
from market_pipeline.storage.tables import ingestion_run, market

router = APIRouter(tags=["metrics"])
MAX_MARKETS = 1_000


class Metric(BaseModel):
    """One figure."""

    type: Literal["gauge"] = "gauge"
    name: str = Field(examples=["ingestion_runs"])
    value: float
    timestamp: float = Field(description="When it was read, in seconds since 1970 (UTC)")
    labels: dict[str, str]


class _Collector:
    """Hands families that were read already to the exposition."""

    def __init__(self, families: Iterable[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the families."""
        return self._families


@router.get("/metrics", include_in_schema=False)
def expose_metrics(services: Annotated[Services, Depends(get_services)]) -> Response:
    """Answer in Prometheus' text format."""
    collector: Any = _Collector(read_families(services))
    return Response(generate_latest(collector), media_type=CONTENT_TYPE_LATEST)


@router.get("/api/metrics", summary="Figures as JSON", responses=describe_problems(401))
def list_metrics(services: Annotated[Services, Depends(get_services)]) -> list[Metric]:
    """Answer with the same figures as /metrics."""
    now = time.time()
    return [
        Metric(name=one.name, value=one.value, timestamp=now, labels=one.labels)
        for family in read_families(services)
        for one in family.samples
    ]


def read_families(services: Services) -> list[GaugeMetricFamily]:
    """Return all figures; those of the database are missing when it does not answer."""
    up = GaugeMetricFamily("database_up", "Whether the database answers")
    cache = GaugeMetricFamily("cache_up", "Whether the cache's store answers", labels=["store"])
    cache.add_metric([services.cache.store_name], 0 if services.cache.trouble else 1)
    try:
        with services.engine.connect() as connection:
            found = [_read_runs(connection), *_read_markets(connection)]
    except SQLAlchemyError:
        up.add_metric([], 0)
        return [up, cache]
    up.add_metric([], 1)
    return [up, cache, *found]


def _read_runs(connection: Connection) -> GaugeMetricFamily:
    run = ingestion_run.c
    names = ["trigger", "provider", "outcome"]
    outcome = func.coalesce(run.outcome, "running")
    keys = (run.trigger, run.provider, outcome)
    family = GaugeMetricFamily("ingestion_runs", "Receipts that are kept", labels=names)
    query = select(*keys, func.count()).group_by(*keys).order_by(func.count().desc())
    for *labels, count in connection.execute(query.limit(MAX_MARKETS)):
        family.add_metric(labels, count)
    return family


def _read_markets(connection: Connection) -> list[GaugeMetricFamily]:
    names = ["provider", "symbol", "interval"]
    bars = GaugeMetricFamily("market_bars", "Bars stored", labels=names)
    closed = GaugeMetricFamily(
        "market_watermark_timestamp_seconds", "Close of the last final bar", labels=names
    )
    known = market_coverage.c
    columns = (market.c.provider, market.c.symbol, known.interval, known.bars, known.watermark)
    query = select(*columns).join(market, market.c.market_id == known.market_id)
    ordered = query.where(market.c.is_active).order_by(known.market_id, known.interval)
    for provider, symbol, interval, count, watermark in connection.execute(
        ordered.limit(MAX_MARKETS)
    ):
        bars.add_metric([provider, symbol, interval], count)
        if watermark is not None:
            closed.add_metric([provider, symbol, interval], watermark.timestamp())
    return [bars, closed]
