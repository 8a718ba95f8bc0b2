"""Metrics: two forms of the same figures, also when the database is gone."""

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, create_engine, text

from market_pipeline.api.app import build_app
from market_pipeline.observability.metrics import Metric
from market_pipeline.observability.run_metrics import FAILURE
from market_pipeline.storage.alerts.metrics import add_totals
from market_pipeline_tests.api.conftest import MakeClient, make_services
from market_pipeline_tests.cli.conftest import Command, command  # noqa: F401 - a fixture

RECEIPT = """INSERT INTO market_data.ingestion_run
        (run_id, trigger, provider, request, started_at, outcome)
    VALUES (gen_random_uuid(), 'schedule', '{provider}', '{{}}', now() - interval '{days} days',
        '{outcome}')"""


def read_figures(client: TestClient, name: str) -> dict[str, float]:
    """Return a metric's values by its labels."""
    return {
        ",".join(one["labels"].values()): one["value"]
        for one in client.get("/api/metrics").json()
        if one["name"] == name
    }


def test_counters_begin_at_zero(client: TestClient, engine: Engine) -> None:
    """Prometheus sees no first failure in a series that appears with it."""
    failures = read_figures(client, "ingestion_failure_total")
    triggers = ("manual", "cron", "schedule", "backfill")
    providers = ("mock", "unknown")
    assert failures == {f"{one},{name}": 0 for one in triggers for name in providers}
    for name in ("success", "partial"):
        told = read_figures(client, f"ingestion_{name}_total")
        assert told == {f"{one},mock": 0 for one in triggers}
    for name in ("calls", "throttled", "errors"):
        assert read_figures(client, f"provider_{name}_total") == {"mock": 0}
    assert len(read_figures(client, "ingestion_rows_total")) == 5 * 3
    assert set(read_figures(client, "latest_reads_total")) >= {"cache", "database"}
    assert read_figures(client, "ingestion_last_success_timestamp_seconds") == {"mock": 0}
    with engine.begin() as connection:
        add_totals(connection, [FAILURE.sample(2, trigger="cron", provider="yahoo")])
    failures = read_figures(client, "ingestion_failure_total")
    assert failures["cron,yahoo"] == 2
    assert failures["schedule,yahoo"] == 0


def test_a_provider_counts_as_dead_for_a_week(client: TestClient, engine: Engine) -> None:
    """Each provider that is asked has a time of its own; one that nobody asks any more has none."""
    with engine.begin() as connection:
        for provider, days, outcome in (("yahoo", 2, "failed"), ("coingecko", 30, "ok")):
            connection.execute(text(RECEIPT.format(provider=provider, days=days, outcome=outcome)))
    told = read_figures(client, "ingestion_last_success_timestamp_seconds")
    assert told == {"mock": 0, "yahoo": 0}


def test_labels_come_back_as_they_are(client: TestClient, engine: Engine) -> None:
    """Whatever a provider or a symbol is called, Prometheus reads the same name."""
    name = 'a "quoted"\\n\nname'
    with engine.begin() as connection:
        add_totals(connection, [FAILURE.sample(2, trigger="cron", provider=name)])
    told = client.get("/metrics")
    assert told.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {one.name: one for one in text_string_to_metric_families(told.text)}
    failures = families["ingestion_failure"].samples
    assert [one.value for one in failures if one.labels["provider"] == name] == [2, 0, 0, 0]
    assert families["ingestion_failure"].type == "counter"


def test_both_forms_tell_the_same(client: TestClient) -> None:
    """Names and values are equal in Prometheus' text and in JSON; histograms are cumulative."""
    client.get("/healthz")
    told = client.get("/api/metrics").json()
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    written = {
        (one.name, *sorted(one.labels.items())): one.value for f in families for one in f.samples
    }
    for one in told:
        labels = sorted(one["labels"].items())
        if one["name"].startswith(("http_", "alert_oldest")):
            continue  # They grew by the second question.
        if one["type"] == "histogram":
            assert (
                written[one["name"] + "_count", *labels] == one["count"] == one["buckets"]["+Inf"]
            )
            assert list(one["buckets"].values()) == sorted(one["buckets"].values())
        else:
            assert written[one["name"], *labels] == one["value"]
    assert written["database_up",] == 1


def test_what_runs_counted_is_seen_after_they_ended(
    client: TestClient,
    engine: Engine,
    command: Command,  # noqa: F811 - the fixture
) -> None:
    """A good, a partial and a failed run in other processes; pruning lowers nothing."""
    quick = {"INGESTION_LOOKBACK_DAYS": "2", "INGESTION_MARKETS": "BTC-USD,ETH-USD"}
    assert command("ingest", **quick).returncode == 0
    assert command("ingest", **quick, MOCK_FAULTS="ETH-USD:timeout").returncode == 3
    assert command("ingest", **quick, MOCK_FAULTS="*:timeout").returncode == 1
    outcomes = [f"ingestion_{name}_total" for name in ("success", "partial", "failure")]
    for name in outcomes:
        counted = {labels: value for labels, value in read_figures(client, name).items() if value}
        assert counted == {"manual,mock": 1}
    (duration,) = [
        one
        for one in client.get("/api/metrics").json()
        if one["name"] == "ingestion_duration_seconds"
    ]
    assert (duration["count"], duration["labels"]) == (3, {"trigger": "manual"})
    assert read_figures(client, "ingestion_bars_total")["mock,received"] > 100
    assert read_figures(client, "provider_errors_total")["mock"] > 0
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM market_data.ingestion_run"))
    assert read_figures(client, "ingestion_success_total")["manual,mock"] == 1
    emitted = {one["name"] for one in client.get("/api/metrics").json()}
    unseen = {"latest_reads_total", "ingestion_runs", "ingestion_last_success_timestamp_seconds"}
    assert set(Metric.DECLARED) - emitted <= unseen | {"quarantine_rows"}
    client.get("/api/markets/BTC-USD/latest")
    assert sum(read_figures(client, "latest_reads_total").values()) >= 1


def test_requests_are_counted_by_route_not_by_path(client: TestClient) -> None:
    """Whoever asks for a thousand paths makes one series."""

    def count(route: str) -> float:
        figures = read_figures(client, "http_requests_total")
        return sum(value for labels, value in figures.items() if f",{route}," in labels)

    before = count("none"), count("/healthz"), count("/api/markets/{symbol}/latest")
    for number in range(20):
        assert client.get(f"/nothing/{number}").status_code == 404
        assert client.get(f"/api/markets/M{number}/latest").status_code == 404
    client.get("/healthz")
    after = count("none"), count("/healthz"), count("/api/markets/{symbol}/latest")
    assert [now - then for now, then in zip(after, before, strict=True)] == [20, 1, 20]


def test_g7_a_database_that_is_gone_is_a_figure() -> None:
    """The scrape works and says so."""
    nowhere = create_engine("postgresql+psycopg2://me@127.0.0.1:1/nowhere")
    with TestClient(build_app(make_services(nowhere)), "http://127.0.0.1") as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert "database_up 0.0" in answer.text


def test_metrics_are_behind_the_token(make_client: MakeClient) -> None:
    """Figures are no public matter where a token is set."""
    assert make_client(token="t" * 32).get("/metrics").status_code == 401
