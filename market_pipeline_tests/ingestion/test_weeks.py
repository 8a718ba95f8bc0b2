"""Weeks and days that are made of bars: final when all that can still come has come."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market
from market_pipeline.providers.mock import MockProvider
from market_pipeline_tests.ingestion.test_next_run import NOON, Pipeline

WEDNESDAY = "skipped_page@2024-03-06..2024-03-07"
MADE = """
    SELECT is_final, dataset_version, close FROM market_data.market_aggregate
    WHERE "interval" = :interval AND open_time = :opens"""
WEEK: dict[str, Any] = {"interval": "1w", "opens": datetime(2024, 3, 4, tzinfo=UTC)}
DAY: dict[str, Any] = {"interval": "1d", "opens": datetime(2024, 3, 6, tzinfo=UTC)}
HOLES = "SELECT reason, tries FROM market_data.coverage_hole WHERE \"interval\" = '1d'"
REVISIONS = "SELECT count(*) FROM market_data.market_aggregate_revision"


@pytest.fixture
def pipeline(engine: Engine) -> Pipeline:
    """A pipeline on an empty database."""
    return Pipeline(engine)


@pytest.fixture
def hours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the mock provider serve hours alone, so that days are made of them."""
    find_market = MockProvider.find_market

    def find_hourly(provider: MockProvider, symbol: str) -> Market | None:
        found = find_market(provider, symbol)
        return found and replace(found, intervals=(Interval.HOUR,))

    monkeypatch.setattr(MockProvider, "find_market", find_hourly)


def run_again(pipeline: Pipeline, times: int, faults: str, symbol: str) -> None:
    """Run some hours later, each hole's time having come."""
    for again in range(1, times + 1):
        with pipeline.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE market_data.coverage_hole SET next_check_at = now()")
        pipeline.run(NOON + timedelta(minutes=again), faults, symbol)


def test_a_week_is_final_once_its_missing_day_is_known_to_be_for_good(pipeline: Pipeline) -> None:
    """In the run that believes the provider, though no bar came; with a version of its own."""
    fault = f"SPX:{WEDNESDAY}"
    pipeline.run(NOON, fault, "SPX")
    run_again(pipeline, 2, fault, "SPX")
    [waiting] = pipeline.read(MADE, **WEEK)
    assert pipeline.read(HOLES) == [{"reason": "provider_empty", "tries": 3}]
    assert waiting["is_final"] is False

    run_again(pipeline, 1, fault, "SPX")

    [final] = pipeline.read(MADE, **WEEK)
    assert pipeline.read(HOLES) == [{"reason": "provider_empty", "tries": 4}]
    assert final["is_final"] is True
    assert final["dataset_version"] > waiting["dataset_version"]
    noted = 'SELECT "interval" FROM market_data.dataset_version WHERE version = :version'
    assert pipeline.read(noted, version=final["dataset_version"]) == [{"interval": "1w"}]
    assert pipeline.read(REVISIONS) == [{"count": 0}]


def test_a_day_that_comes_after_all_revises_its_final_week(pipeline: Pipeline) -> None:
    """A final week stays final, with the right values and its old ones kept."""
    fault = f"SPX:{WEDNESDAY}"
    pipeline.run(NOON, fault, "SPX")
    run_again(pipeline, 4, fault, "SPX")
    run_again(pipeline, 1, "", "SPX")
    assert pipeline.read(HOLES) == []
    assert [row["is_final"] for row in pipeline.read(MADE, **WEEK)] == [True]
    clean = Pipeline(pipeline.engine)
    revised = 'SELECT "interval" FROM market_data.market_aggregate_revision'
    assert clean.read(revised) == [{"interval": "1w"}]


@pytest.mark.usefixtures("hours_only")
def test_a_day_made_of_hours_is_final_without_those_nobody_traded_in(pipeline: Pipeline) -> None:
    """Two hours without a trade are explained at once; the day, and its week, do not wait."""
    pipeline.run(NOON, "BTC-USD:skipped_page@2024-03-06T05:00..2024-03-06T07:00")
    holes = "SELECT reason FROM market_data.coverage_hole"
    assert pipeline.read(holes) == [{"reason": "no_trades"}]
    for made in (DAY, WEEK):
        assert [row["is_final"] for row in pipeline.read(MADE, **made)] == [True]


@pytest.mark.usefixtures("hours_only")
def test_a_week_made_of_hours_does_not_wait_for_a_day_that_never_comes(pipeline: Pipeline) -> None:
    """Twenty-four hours that nobody has are a day that nobody has; a provisional one waits."""
    fault = f"BTC-USD:{WEDNESDAY}"
    pipeline.run(NOON, fault)
    run_again(pipeline, 2, fault, "BTC-USD")
    assert pipeline.read(MADE, **DAY) == []
    assert [row["is_final"] for row in pipeline.read(MADE, **WEEK)] == [False]
    run_again(pipeline, 1, fault, "BTC-USD")
    assert pipeline.read(MADE, **DAY) == []
    assert [row["is_final"] for row in pipeline.read(MADE, **WEEK)] == [True]


@pytest.mark.usefixtures("hours_only")
def test_a_day_becomes_final_when_its_hours_are_given_up(pipeline: Pipeline) -> None:
    """The hole is longer than a lull, so that it is asked for before it is believed."""
    fault = "BTC-USD:skipped_page@2024-03-06T05:00..2024-03-06T15:00"
    pipeline.run(NOON, fault)
    run_again(pipeline, 2, fault, "BTC-USD")
    assert [row["is_final"] for row in pipeline.read(MADE, **DAY)] == [False]
    run_again(pipeline, 1, fault, "BTC-USD")
    assert [row["is_final"] for row in pipeline.read(MADE, **DAY)] == [True]


def test_a_bar_stored_by_an_older_version_on_a_closed_date_is_no_part_of_a_week(
    pipeline: Pipeline,
) -> None:
    """The week that the next day touches is made of sessions alone."""
    pipeline.run(datetime(2024, 3, 8, 12, tzinfo=UTC), symbol="SPX")
    with pipeline.engine.begin() as connection:
        connection.exec_driver_sql("""
            INSERT INTO market_data.market_aggregate
            SELECT (stray).* FROM (SELECT jsonb_populate_record(bar, jsonb_build_object(
                'open_time', '2024-03-09T00:00Z', 'close_time', '2024-03-10T00:00Z',
                'high', 1e9, 'close', 1e9, 'is_final', true)) stray
            FROM market_data.market_aggregate bar
            WHERE "interval" = '1d' AND open_time = '2024-03-07') strays""")
    pipeline.run(NOON, symbol="SPX")
    [week] = pipeline.read(MADE, **WEEK)
    friday = pipeline.read(MADE, interval="1d", opens=datetime(2024, 3, 8, tzinfo=UTC))
    assert (week["is_final"], week["close"]) == (True, friday[0]["close"])


@pytest.mark.parametrize("is_hourly", [False, True])
def test_a_final_bar_stays_final_and_right_when_half_of_its_hole_comes(
    pipeline: Pipeline, is_hourly: bool, request: pytest.FixtureRequest
) -> None:
    """The other half is waited for again, and the week has what came all the same."""
    if is_hourly:
        request.getfixturevalue("hours_only")
    pipeline.run(NOON, fault := "BTC-USD:skipped_page@2024-03-05..2024-03-07")
    run_again(pipeline, 3, fault, "BTC-USD")
    [before] = pipeline.read(MADE, **WEEK)
    run_again(pipeline, 1, "BTC-USD:skipped_page@2024-03-06..2024-03-07", "BTC-USD")
    [after] = pipeline.read(MADE, **WEEK)
    volumes = """
        SELECT sum(volume) FILTER (WHERE "interval" = '1d') AS days,
            sum(volume) FILTER (WHERE "interval" = '1w') AS week FROM market_data.market_aggregate
        WHERE open_time >= '2024-03-04Z' AND open_time < '2024-03-11Z'"""
    [sums] = pipeline.read(volumes)
    assert (before["is_final"], after["is_final"]) == (True, True)
    assert sums["week"] == pytest.approx(sums["days"])
