"""Metrics for monitoring: totals of runs, the state of the database, and this process's own.

A database that does not answer is a metric too, so a scrape never fails because of it.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from market_pipeline.api.services import Services, get_services
from market_pipeline.observability import run_metrics
from market_pipeline.observability.metrics import Labels, Metric, Sample, collect, gauge
from market_pipeline.settings import read_ingestion_defaults
from market_pipeline.storage.alerts.metrics import LAST_SUCCESS, read_gauges, read_totals

router = APIRouter(tags=["metrics"])
DATABASE_UP = gauge("database_up", "Whether the database answers")
CACHE_UP = gauge("cache_up", "Whether the cache's store answers", ("store",))
TABLES = (
    "market",
    "market_aggregate",
    "market_snapshot",
    "market_comparison",
    "market_roi_statistic",
)
_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPED = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})


class Figure(BaseModel):
    """One series of a metric."""

    type: Literal["counter", "gauge", "histogram"]
    name: str = Field(examples=["ingestion_success_total"])
    value: int | float = Field(
        description="The number; for a histogram the sum of the observations"
    )
    timestamp: datetime = Field(description="When it was read (UTC)")
    labels: dict[str, str]
    count: int | None = Field(
        default=None, description="Of a histogram: the number of observations"
    )
    sum: int | float | None = Field(default=None, description="Of a histogram: their sum")
    buckets: dict[str, int] | None = Field(
        default=None, description="Of a histogram: observations up to each bound; cumulative"
    )


@router.get("/metrics", include_in_schema=False)
def expose_metrics(services: Annotated[Services, Depends(get_services)]) -> Response:
    """Answer in Prometheus' text format."""
    lines = _format_samples(read_samples(services))
    return Response("\n".join([*lines, ""]), media_type=_TEXT_FORMAT)


@router.get(
    "/api/metrics",
    summary="Figures as JSON",
    response_model_exclude_none=True,
)
def list_metrics(services: Annotated[Services, Depends(get_services)]) -> list[Figure]:
    """Answer with the same figures as /metrics."""
    now = datetime.now(UTC)
    return [_describe_sample(sample, now) for sample in read_samples(services)]


def read_samples(services: Services) -> list[Sample]:
    """Return all figures; those of the database are missing when it does not answer."""
    is_well = not services.cache.trouble
    samples = [*collect(), CACHE_UP.sample(is_well, store=services.cache.store_name)]
    try:
        with services.engine.connect() as connection:
            totals, gauges = read_totals(connection), list(read_gauges(connection))
    except SQLAlchemyError:
        # Without zeros: they would stand for totals that are only not known now.
        return [*samples, DATABASE_UP.sample(0)]
    return [*samples, *_complete(totals, gauges), DATABASE_UP.sample(1)]


def _complete(totals: list[Sample], gauges: list[Sample]) -> Iterator[Sample]:
    """Yield what was read, with zeros for what the configured providers have not come to yet."""
    providers = read_ingestion_defaults().providers
    yield from run_metrics.add_zeros(totals, providers, TABLES)
    yield from gauges
    never = LAST_SUCCESS.sample(0, provider=",".join(providers))
    if all((gauge.name, gauge.labels) != (never.name, never.labels) for gauge in gauges):
        yield never


def _describe_sample(sample: Sample, now: datetime) -> Figure:
    metric = Metric.DECLARED[sample.name]
    figure = Figure(
        type=metric.kind,
        name=sample.name,
        value=_shorten_number(sample.value),
        timestamp=now,
        labels=dict(sample.labels),
    )
    if metric.kind == "histogram":
        figure.count, figure.sum = sample.count, figure.value
        figure.buckets = dict(_list_buckets(metric, sample))
    return figure


def _shorten_number(value: float) -> int | float:
    """Return a count as the whole number that it is."""
    return int(value) if float(value).is_integer() else value


def _format_samples(samples: Iterable[Sample]) -> Iterator[str]:
    """Yield the lines of all metrics, those of one together."""
    for name, found in groupby(sorted(samples, key=_by_name), key=_by_name):
        metric = Metric.DECLARED[name]
        yield f"# HELP {name} {metric.meaning}"
        yield f"# TYPE {name} {metric.kind}"
        for sample in found:
            if metric.kind == "histogram":
                yield from _format_histogram(metric, sample)
            else:
                yield f"{name}{_format_labels(sample.labels)} {float(sample.value)!r}"


def _format_histogram(metric: Metric, sample: Sample) -> Iterator[str]:
    for bound, count in _list_buckets(metric, sample):
        yield f"{metric.name}_bucket{_format_labels((*sample.labels, ('le', bound)))} {count}"
    labels = _format_labels(sample.labels)
    yield f"{metric.name}_count{labels} {sample.count}"
    yield f"{metric.name}_sum{labels} {float(sample.value)!r}"


def _format_labels(labels: Labels) -> str:
    pairs = [f'{name}="{value.translate(_ESCAPED)}"' for name, value in sorted(labels)]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _by_name(sample: Sample) -> str:
    return sample.name


def _list_buckets(metric: Metric, sample: Sample) -> list[tuple[str, int]]:
    bounds = [f"{bound:g}" for bound in metric.bounds]
    return [*zip(bounds, sample.buckets, strict=True), ("+Inf", sample.count)]
