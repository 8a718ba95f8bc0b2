"""Traces: what a run sends to a collector, what a bad collector costs, and that off is off."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from market_pipeline_tests.commands import run_command

RUN = (
    "market-pipeline",
    "ingest",
    "--symbols",
    "BTC-USD,ETH-USD",
    "--lookback-days",
    "3",
    "--json",
)
OFF = """
import sys
from market_pipeline.observability import tracing
with tracing.span("fetch", market="BTC-USD") as handle:
    handle.set_attributes(bars=1)
tracing.end_run()
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
NOT_INSTALLED = """
import sys
sys.modules["opentelemetry"] = None
from market_pipeline.observability import tracing
with tracing.span("fetch") as handle:
    handle.set_attributes(bars=1)
"""
Ingest = Callable[..., str]


class Collector:
    """An OTLP receiver on loopback that keeps the spans it is sent."""

    def __init__(self) -> None:
        """Start serving."""
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.hold = threading.Event()
        self.is_hanging = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Let go of who waits, and free the port."""
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()

    def list_names(self) -> list[str]:
        """Return the names of all spans."""
        return [span.name for span in self.spans]

    def _take(self, body: bytes) -> None:
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {one.key: one.value.string_value for one in part.resource.attributes}
            self.services.add(named["service.name"])
            self.spans += [span for scope in part.scope_spans for span in scope.spans]

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if collector.is_hanging:
                    collector.hold.wait(120)
                    return
                assert self.path == "/v1/traces"
                collector._take(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Stay silent."""

        return Handler


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that takes everything."""
    running = Collector()
    yield running
    running.close()


@pytest.fixture
def ingest(project_environment: dict[str, str], tmp_path: Path) -> Ingest:
    """Runs the main job in a process of its own, and returns its run's id."""

    def run(**variables: str) -> str:
        import json

        environment = {**project_environment, **variables}
        done = run_command(*RUN, environment=environment, folder=tmp_path)
        assert done.returncode in (0, 3), done.stderr
        return str(json.loads(done.stdout)["run_id"])

    return run


def read_attributes(span: Span) -> dict[str, str | int]:
    """Return a span's attributes by their short names."""
    return {
        one.key.removeprefix("market_pipeline."): one.value.string_value or one.value.int_value
        for one in span.attributes
    }


def test_a_run_is_one_trace_with_the_runs_id(ingest: Ingest, collector: Collector) -> None:
    """Fetches by threads and writes belong to the run; a fetch that failed says so, not why."""
    run_id = ingest(OTEL_EXPORTER_OTLP_ENDPOINT=collector.address, MOCK_FAULTS="ETH-USD:timeout")

    assert collector.services == {"market-pipeline"}
    assert {span.trace_id.hex() for span in collector.spans} == {run_id.replace("-", "")}
    [run] = [span for span in collector.spans if span.name == "run"]
    assert read_attributes(run) == {"run_id": run_id, "job": "ingest"}
    others = [span for span in collector.spans if span is not run]
    assert {span.parent_span_id for span in others} == {run.span_id}
    assert all(run.start_time_unix_nano <= one.start_time_unix_nano for one in others)
    assert all(one.end_time_unix_nano <= run.end_time_unix_nano for one in others)

    fetches = [read_attributes(span) for span in others if span.name == "fetch"]
    assert {one["market"] for one in fetches} == {"BTC-USD", "ETH-USD"}
    assert {one["interval"] for one in fetches} == {"1h", "1d"}
    assert sum(int(one.get("bars", 0)) for one in fetches) > 0
    failed = [span for span in others if span.status.code == Status.STATUS_CODE_ERROR]
    assert {read_attributes(span)["market"] for span in failed} == {"ETH-USD"}
    assert {span.status.message for span in failed} == {"TransientProviderError"}
    assert all(not span.events for span in others)

    tables = {read_attributes(span)["table"] for span in others if span.name == "upsert"}
    assert {"market", "market_aggregate", "market_snapshot", "market_roi_statistic"} <= tables
    written = [read_attributes(one) for one in others if one.name == "upsert"]
    assert sum(int(one["inserted"]) for one in written if one["table"] == "market_aggregate") > 0


@pytest.mark.faults
def test_a_collector_that_hangs_or_is_not_there_ends_no_run(
    ingest: Ingest, collector: Collector
) -> None:
    """The run is as good as without it."""
    collector.is_hanging = True
    assert ingest(OTEL_EXPORTER_OTLP_ENDPOINT=collector.address)
    assert ingest(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert collector.spans == []


@pytest.mark.parametrize(
    ("script", "variables", "said"),
    [
        (OFF, {}, ""),
        (
            NOT_INSTALLED,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
            "market-pipeline[otel]",
        ),
    ],
)
def test_off_costs_nothing_and_a_missing_extra_is_told(
    script: str, variables: dict[str, str], said: str, tmp_path: Path
) -> None:
    """Without the setting nothing of OpenTelemetry is imported; without the extra, work goes on."""
    done = run_command("python", "-c", script, environment=variables, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert bool(said) == bool(done.stderr)
