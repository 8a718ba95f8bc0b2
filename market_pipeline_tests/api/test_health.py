"""Health: alive, ready, and what is degraded."""

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from market_pipeline.alerting.raising import raise_alert
from market_pipeline_tests.api.conftest import MakeClient


def test_health_asks_nobody(client: TestClient) -> None:
    """The process is alive whatever else is not."""
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_ready_names_what_is_degraded(client: TestClient) -> None:
    """Without Dagster reads work, so it is ready, and says what is missing."""
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "degraded", "degraded": ["dagster"]}


def test_alerts_that_do_not_arrive_are_degraded(
    client: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alerting cannot tell of its own failure; who watches reads it here, if anybody is to hear."""
    with engine.begin() as connection:
        raise_alert("error", "disk", connection=connection)
        connection.execute(
            text("UPDATE market_data.alert_delivery SET created_at = now() - interval '2 hours'")
        )
    assert client.get("/readyz").json()["degraded"] == ["dagster"]
    monkeypatch.setenv("ALERT_WEBHOOK_URL", "https://hooks.example.com/x")
    assert client.get("/readyz").json()["degraded"] == ["alerts", "dagster"]


def test_served_by_the_real_command(served: httpx.Client) -> None:
    """`market-pipeline serve` answers on loopback, page, scripts and description included."""
    assert served.get("/healthz").json() == {"status": "ok"}
    page = served.get("/docs")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for path in ("/docs/assets/swagger-ui-bundle.js", "/docs/assets/swagger-ui.css"):
        assert path in page.text
        assert served.get(path).status_code == 200
    assert served.get("/docs/openapi.json").json()["openapi"] == "3.0.3"


def test_health_needs_no_token(make_client: MakeClient) -> None:
    """Who watches needs no secret."""
    assert make_client(token="t" * 32).get("/readyz").status_code == 200
