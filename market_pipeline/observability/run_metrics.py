"""The metrics of runs, as totals; declared apart, so that a reader need not import the run."""

from collections.abc import Collection, Iterator
from itertools import product

from market_pipeline.domain.triggers import TRIGGERS
from market_pipeline.observability.metrics import Metric, Sample, counter, histogram

_RUN = ("trigger", "provider")
SUCCESS = counter("ingestion_success_total", "Runs that ended with outcome ok", _RUN)
PARTIAL = counter("ingestion_partial_total", "Runs that ended with outcome partial", _RUN)
FAILURE = counter("ingestion_failure_total", "Runs that failed, or were killed", _RUN)
DURATION = histogram("ingestion_duration_seconds", "From a run's start to its end", ("trigger",))
ROWS = counter(
    "ingestion_rows_total", "Rows that runs wrote, or found unchanged", ("table", "change")
)
BARS = counter(
    "ingestion_bars_total",
    "Bars that providers sent: received; of them revised (final ones replaced), quarantined",
    ("provider", "fate"),
)
CALLS = counter("provider_calls_total", "Requests to a provider, retries included", ("provider",))
THROTTLED = counter(
    "provider_throttled_total", "Of them, refused for coming too often", ("provider",)
)
ERRORS = counter(
    "provider_errors_total", "Requests for bars that were answered by an error", ("provider",)
)
REQUESTS = histogram("provider_request_seconds", "How long requests for bars took", ("provider",))

UNKNOWN = "unknown"
"""The provider of a run that failed before it knew its own."""
CHANGES = ("inserted", "updated", "unchanged")
FATES = ("received", "revised", "quarantined")
_OUTCOMES = (SUCCESS, PARTIAL, FAILURE)


def add_zeros(
    totals: Collection[Sample], providers: tuple[str, ...], tables: Collection[str]
) -> Iterator[Sample]:
    """Yield totals, and a zero for each series that may come: a watcher sees its first increase.

    Args:
        totals: What was counted until now.
        providers: Those that runs ask by default, in order.
        tables: Those that runs write.
    """
    known = {(total.name, total.labels) for total in totals}
    asked = {",".join(providers)} | _list_values(totals, _OUTCOMES) - {UNKNOWN}
    zeros = [
        *_list_zeros(_OUTCOMES, TRIGGERS, asked),
        *_list_zeros((FAILURE,), TRIGGERS, {UNKNOWN}),
        *_list_zeros((ROWS,), tables, CHANGES),
        *_list_zeros((BARS,), providers, FATES),
        *_list_zeros((CALLS, THROTTLED, ERRORS), providers),
    ]
    yield from totals
    yield from (zero for zero in zeros if (zero.name, zero.labels) not in known)


def _list_zeros(metrics: Collection[Metric], *values: Collection[str]) -> Iterator[Sample]:
    for metric in metrics:
        for labels in product(*values):
            yield metric.sample(0, **dict(zip(metric.labels, labels, strict=True)))


def _list_values(totals: Collection[Sample], metrics: Collection[Metric]) -> set[str]:
    """Return the providers under which some metrics were counted."""
    names = {metric.name for metric in metrics}
    return {dict(total.labels)["provider"] for total in totals if total.name in names}
