"""Metrics: two forms of the same figures, also when the database is gone."""

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine

from market_pipeline.api.app import build_app
from market_pipeline_tests.api.conftest import MakeClient, make_services


def test_both_forms_tell_the_same(client: TestClient) -> None:
    """Names and values are equal in Prometheus' text and in JSON."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    text = {(one.name, one.value) for family in families for one in family.samples}
    told = {(one["name"], one["value"]) for one in client.get("/api/metrics").json()}
    assert text == told
    assert ("database_up", 1.0) in told


def test_a_database_that_is_gone_is_a_figure() -> None:
    """The scrape works and says so."""
    nowhere = create_engine("postgresql+psycopg2://me@127.0.0.1:1/nowhere")
    with TestClient(build_app(make_services(nowhere)), "http://127.0.0.1") as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert "database_up 0.0" in answer.text


def test_metrics_are_behind_the_token(make_client: MakeClient) -> None:
    """Figures are no public matter where a token is set."""
    assert make_client(token="t" * 32).get("/metrics").status_code == 401
