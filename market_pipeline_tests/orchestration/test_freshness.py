"""When the catalog calls an asset stale, and that alerts say the same."""

import asyncio
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.definitions.freshness import FreshnessState
from dagster._core.definitions.freshness_evaluator import TimeWindowFreshnessPolicyEvaluator
from dagster._core.loader import LoadingContextForTest
from dagster._core.test_utils import freeze_time
from sqlalchemy import Connection, Engine, text

from market_pipeline.definitions import ASSETS, build_definitions
from market_pipeline.ingestion.alert_conditions import find_idleness
from market_pipeline.orchestration.automation import build_freshness_policy, find_last_ticks
from market_pipeline_tests.orchestration.conftest import Materialise

MONDAY = datetime(2024, 3, 18, tzinfo=UTC)
RUN_TIME = timedelta(seconds=40)
RECORD_START = text("""
    INSERT INTO market_data.ingestion_run (run_id, trigger, provider, started_at, request)
    VALUES (gen_random_uuid(), 'schedule', 'mock', :started_at, '{}')""")


def read_state(instance: dg.DagsterInstance, asset: str, now: datetime) -> FreshnessState:
    """Return what Dagster's daemon would find at a time."""
    node = build_definitions().resolve_asset_graph().get(dg.AssetKey(asset))
    with freeze_time(now):
        context = LoadingContextForTest(instance)
        return asyncio.run(TimeWindowFreshnessPolicyEvaluator().evaluate_freshness(context, node))


def test_every_stored_asset_becomes_stale_after_two_missed_ticks(
    materialise: Materialise, instance: dg.DagsterInstance
) -> None:
    """Dagster's own evaluation of the graph that it loads."""
    assert materialise("markets", window_end="2024-03-15T10:00Z").success
    now = datetime.now(UTC)
    assert read_state(instance, "markets", now + timedelta(minutes=29)) is FreshnessState.PASS
    assert read_state(instance, "markets", now + timedelta(minutes=31)) is FreshnessState.FAIL
    assert read_state(instance, "market_snapshots", now) is FreshnessState.UNKNOWN


def test_what_is_stored_has_a_policy_and_what_is_observed_has_none() -> None:
    """Providers are not materialised, so that they would never be fresh."""
    graph = build_definitions().resolve_asset_graph()
    with_policy = {
        key
        for key in graph.get_all_asset_keys()
        if graph.get(key).freshness_policy_or_from_metadata
    }
    assert with_policy == {asset.key for asset in ASSETS}


@pytest.mark.parametrize(
    ("expression", "hours"),
    [("*/15 * * * *", 0.5), ("30 6 * * *", 48), ("0 9 * * 1-5", 96), ("0 9-17 * * 1-5", 65)],
)
def test_the_time_follows_the_schedule(
    monkeypatch: pytest.MonkeyPatch, expression: str, hours: float
) -> None:
    """It is the longest pause over two ticks; at weekends nothing is stale that nobody wants."""
    monkeypatch.setenv("INGESTION_CRON_EXPRESSION", expression)
    policy = build_freshness_policy(MONDAY)
    assert policy.fail_window.to_timedelta() == timedelta(hours=hours)  # type: ignore[attr-defined]


@pytest.mark.parametrize("expression", ["*/15 * * * *", "30 6 * * *", "0 9 * * 1-5"])
def test_what_the_catalog_calls_stale_has_an_alert(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, expression: str
) -> None:
    """After any last run, and where pauses are equal the other way round as well."""
    monkeypatch.setenv("INGESTION_CRON_EXPRESSION", expression)
    policy = build_freshness_policy(MONDAY)
    allowed: timedelta = policy.fail_window.to_timedelta()  # type: ignore[attr-defined]
    for started in find_last_ticks(MONDAY, 7):
        with engine.connect() as connection:
            connection.execute(RECORD_START, {"started_at": started})
            for now in (started + allowed + RUN_TIME, started + allowed - RUN_TIME):
                is_stale = now - (started + RUN_TIME) >= allowed
                assert is_stale <= is_idle(connection, now)
                assert is_stale == is_idle(connection, now) or "1-5" in expression
            connection.rollback()


def is_idle(connection: Connection, now: datetime) -> bool:
    """Say whether the alert ``no_run`` is raised, while the schedule has long been on."""
    missed = find_last_ticks(now)[1]
    return bool(find_idleness(connection, missed, datetime(2020, 1, 1, tzinfo=UTC)).members)
