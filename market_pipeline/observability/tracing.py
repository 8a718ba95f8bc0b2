"""OpenTelemetry traces: a run, its fetches, its writes, its cache.

On where OTEL_EXPORTER_OTLP_ENDPOINT is set (OTLP over HTTP; OpenTelemetry's own variables set the
rest), and the extra ``otel`` is installed. Elsewhere nothing is imported and a span costs a
function call. A run's trace has the run's id, so that it is found from either side. Attributes
are names and counts, never addresses, texts of providers or secrets.
"""

import logging
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from market_pipeline.settings import read_variable

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = "market-pipeline"
# A collector that hangs holds a run up no longer than this.
_FLUSH_MS = 2_000
_EXPORT_SECONDS = 2.0
_MISSING = (
    "OTEL_EXPORTER_OTLP_ENDPOINT is set, but nothing is traced: the extra is not installed; "
    "pip install 'market-pipeline[otel]'"
)
logger = logging.getLogger("market_pipeline.observability")


class SpanHandle:
    """The span at work, to be given what is known only within it; None: nothing is traced."""

    def __init__(self, current: Any = None) -> None:
        self._current = current

    def set_attributes(self, **attributes: str | float) -> None:
        """Add what is known only now."""
        if self._current is not None:
            for name, value in attributes.items():
                self._current.set_attribute(f"market_pipeline.{name}", value)


_NOOP: AbstractContextManager[SpanHandle] = nullcontext(SpanHandle())


def span(name: str, **attributes: str | float) -> AbstractContextManager[SpanHandle]:
    """Trace what happens inside, such as ``fetch``; an exception marks it with its class."""
    tracing = _open()
    return _NOOP if tracing is None else tracing.trace(name, attributes)


def begin_run(run_id: UUID, job: str) -> None:
    """Begin the trace of a run: spans of any thread belong to it until :func:`end_run`."""
    if (tracing := _open()) is not None:
        tracing.begin_run(run_id, job)


def end_run() -> None:
    """End the trace and send what was not sent yet; waits two seconds at most."""
    if (tracing := _open()) is not None:
        tracing.end_run()


@cache
def _open() -> "_Tracing | None":
    if not read_variable("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return None
    try:
        return _Tracing()
    except ModuleNotFoundError:
        logger.warning(_MISSING)
        return None


class _Tracing:
    """The SDK at work in this process, and the run that is traced."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        tracing = self

        class RunIds(RandomIdGenerator):
            """A trace has the id of its run."""

            def generate_trace_id(self) -> int:
                return tracing.trace_id or super().generate_trace_id()

        self.trace_id = 0
        self.run: Any = None
        self.provider = TracerProvider(
            id_generator=RunIds(), resource=Resource.create({"service.name": SERVICE})
        )
        exporter = OTLPSpanExporter(timeout=_EXPORT_SECONDS)
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self.provider.get_tracer("market_pipeline")

    @contextmanager
    def trace(self, name: str, attributes: dict[str, str | int | float]) -> "Iterator[SpanHandle]":
        """Trace a span below the one at work in this thread, else below the run."""
        from opentelemetry import trace

        nested = trace.get_current_span().get_span_context().is_valid
        parent = None if nested or self.run is None else trace.set_span_in_context(self.run)
        with self.tracer.start_as_current_span(
            name, context=parent, record_exception=False, set_status_on_exception=False
        ) as current:
            handle = SpanHandle(current)
            handle.set_attributes(**attributes)
            try:
                yield handle
            except BaseException as error:
                # Its message may hold anything.
                current.set_status(trace.StatusCode.ERROR, type(error).__name__)
                raise

    def begin_run(self, run_id: UUID, job: str) -> None:
        """Open the span that everything else belongs to."""
        self.trace_id = run_id.int
        self.run = self.tracer.start_span("run")
        SpanHandle(self.run).set_attributes(run_id=str(run_id), job=job)

    def end_run(self) -> None:
        """Close it, and send."""
        if self.run is not None:
            self.run.end()
        self.run, self.trace_id = None, 0
        self.provider.force_flush(_FLUSH_MS)
