"""The schedules, ticked on a real instance."""

from datetime import UTC, datetime

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from market_pipeline.definitions import build_definitions
from market_pipeline.domain.errors import SettingError
from market_pipeline.orchestration.automation import find_last_ticks
from market_pipeline_tests.databases import read_column

OLD_SNAPSHOTS = """
    WITH made AS (INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base,
        quote, venue, calendar, intervals, price_basis)
        VALUES ('mock', 'x', 'X-USD', 'X', 'X', 'USD', 'mock', '24/7', '{1d}', 'unadjusted')
        RETURNING market_id)
    INSERT INTO market_data.market_snapshot (market_id, observed_at, price, fetched_at)
    SELECT market_id, observed_at, 1, observed_at FROM made, generate_series(
        '2020-01-01T00:00Z'::timestamptz, '2020-01-01T23:00Z', '1 hour') observed_at"""


def test_a_tick_of_the_schedule_asks_for_one_complete_run(instance: dg.DagsterInstance) -> None:
    """What it asks for is what the job accepts."""
    definitions = build_definitions()
    moment = datetime(2024, 3, 15, 12, tzinfo=UTC)
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=moment)
    schedule = definitions.get_repository_def().get_schedule_def("ingest_schedule")
    (request,) = schedule.evaluate_tick(context).run_requests or ()
    dg.validate_run_config(definitions.resolve_job_def("ingest"), dict(request.run_config))


@pytest.mark.parametrize(
    ("flag", "status"),
    [("", "STOPPED"), ("false", "STOPPED"), ("true", "RUNNING"), ("1", "RUNNING")],
)
def test_the_schedule_follows_its_two_settings(
    flag: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INGESTION_CRON_EXPRESSION says when, INGESTION_SCHEDULE_ENABLED whether; both in UTC."""
    monkeypatch.setenv("INGESTION_CRON_EXPRESSION", "7 3 * * 1-5")
    monkeypatch.setenv("INGESTION_SCHEDULE_ENABLED", flag)
    schedule = build_definitions().get_repository_def().get_schedule_def("ingest_schedule")
    assert schedule.cron_schedule == "7 3 * * 1-5"
    assert schedule.execution_timezone == "UTC"
    assert schedule.default_status.name == status


@pytest.mark.parametrize("expression", ["every day", "99 * * * *", "* * * *"])
def test_a_schedule_that_can_never_run_is_refused_at_load(
    expression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the variable and what it was."""
    monkeypatch.setenv("INGESTION_CRON_EXPRESSION", expression)
    with pytest.raises(SettingError) as refused:
        build_definitions()
    assert f"INGESTION_CRON_EXPRESSION={expression!r}" in str(refused.value)


def test_the_nightly_pruning_is_on_where_ingestion_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever schedules ingestion needs not think of it; nobody else's rows are removed."""
    for flag, status in (("", "STOPPED"), ("true", "RUNNING")):
        monkeypatch.setenv("INGESTION_SCHEDULE_ENABLED", flag)
        schedule = build_definitions().get_repository_def().get_schedule_def("prune_history_daily")
        assert schedule.default_status.name == status
        assert (schedule.job_name, schedule.execution_timezone) == ("prune_history", "UTC")


def test_the_pruning_job_removes_old_snapshots(
    engine: Engine, database_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the schedule starts it: without config, on the database in use."""
    with engine.begin() as connection:
        connection.execute(text(OLD_SNAPSHOTS))
    monkeypatch.setenv("DATABASE_URL", database_url)
    job = build_definitions().resolve_job_def("prune_history")
    assert job.execute_in_process(instance=instance).success
    kept = "SELECT to_char(observed_at, 'HH24') FROM market_data.market_snapshot"
    assert read_column(engine, kept) == ["23"]


def test_the_last_ticks_follow_the_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a weekend there is none, so nothing is missed."""
    monkeypatch.setenv("INGESTION_CRON_EXPRESSION", "0 9 * * 1-5")
    sunday = datetime(2024, 3, 17, 12, tzinfo=UTC)
    days = [tick.strftime("%a %H") for tick in find_last_ticks(sunday)]
    assert days == ["Fri 09", "Thu 09", "Wed 09"]
