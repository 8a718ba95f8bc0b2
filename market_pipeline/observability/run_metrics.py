"""What runs count, as totals: declared apart, so that whoever tells them need not run any."""

from market_pipeline.observability.metrics import counter, histogram

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
