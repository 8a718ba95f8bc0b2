"""Filling history by month, as Dagster starts it for a partition."""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.storage.tags import PRIORITY_TAG
from sqlalchemy import Engine, text

from market_pipeline.definitions import build_definitions
from market_pipeline.orchestration.backfill import backfill_history_job
from market_pipeline.orchestration.causes import Cause, find_cause
from market_pipeline.orchestration.checks import CHECKS
from market_pipeline.orchestration.executor import describe_asked, list_job_assets
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.orchestration.test_checks import SPOIL_BARS

AGGREGATES = dg.AssetKey("market_aggregates")
# The first of March 2024 is a Friday, and the window begins on its Monday: weeks are whole.
FEBRUARY_26, MARCH_31 = "2024-02-26", "2024-03-31"
DAYS = "SELECT DISTINCT open_time::date::text FROM market_data.market_aggregate ORDER BY 1"
Fill = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def fill(
    engine: Engine, database_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Fill:
    """Runs the job for a month, or with no partition chosen."""
    assert engine
    monkeypatch.setenv("DATABASE_URL", database_url)
    job = build_definitions().resolve_job_def("backfill_history")

    def run(month: str | None = None, **tags: str) -> dg.ExecuteInProcessResult:
        return job.execute_in_process(
            instance=instance, partition_key=month, tags=tags, raise_on_error=False
        )

    return run


def list_failures(result: dg.ExecuteInProcessResult) -> list[Cause]:
    """Return why each failed step did."""
    return [find_cause(event) for event in result.all_events if event.is_step_failure]


def test_a_month_is_filled_and_recorded_as_the_assets(
    fill: Fill, engine: Engine, instance: dg.DagsterInstance
) -> None:
    """Its bars are stored and no others; catalog and checks know, as after a materialisation."""
    assert fill("2024-03-01").success
    days = read_column(engine, DAYS)
    assert (days[0], days[-1]) == (FEBRUARY_26, MARCH_31)
    latest = instance.get_latest_materialization_event(AGGREGATES)
    assert latest
    assert latest.asset_materialization
    told = latest.asset_materialization.metadata
    assert {"rows_inserted", "dagster/row_count", "dagster/column_schema", "rows"} <= set(told)
    checked = instance.get_records_for_run(
        latest.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    )
    assert len(checked.records) == len(CHECKS)


def test_again_it_writes_nothing(fill: Fill, engine: Engine) -> None:
    """What is settled of a month is not asked for twice."""
    identities = "SELECT xmin::text FROM market_data.market_aggregate ORDER BY ctid"
    assert fill("2024-03-01").success
    before = read_column(engine, identities)
    assert fill("2024-03-01").success
    assert read_column(engine, identities) == before


def test_without_a_month_it_says_how_to_choose_one(fill: Fill, engine: Engine) -> None:
    """It does not do a small part of what ``ingest`` does instead."""
    (failed,) = list_failures(fill())
    assert "choose a month" in failed.text
    assert read_column(engine, DAYS) == []


@pytest.mark.owner
def test_a_broken_bar_fails_it(fill: Fill, engine: Engine) -> None:
    """Blocking checks are as strict as after a materialisation, and alerts know the failure."""
    spoil = {"constraint": "low_is_lowest", "column": "low", "value": "NEW.high * 2"}
    with engine.begin() as connection:
        connection.execute(text(SPOIL_BARS.format(**spoil)))
    result = fill("2024-03-01")
    (failed,) = list_failures(result)
    assert failed.step == "market_aggregates_checks"
    assert failed.error_class == "DagsterAssetCheckFailedError"
    assert failed.text.endswith("blocking checks failed: ohlc_in_order")


def test_the_tag_of_a_month_alone_means_the_same(fill: Fill, engine: Engine) -> None:
    """So `dg launch --partition` starts it, and its receipt tells the month that was asked for."""
    tags = {"dagster/partition": "2024-03-01"}
    assert fill(**tags).success
    days = read_column(engine, DAYS)
    assert (days[0], days[-1]) == (FEBRUARY_26, MARCH_31)
    asked = describe_asked(str(uuid4()), tags, {}, ["market_aggregates"], datetime.now(UTC))
    assert asked.request["window_end"].startswith("2024-04-01")


def test_a_tag_that_names_no_month_is_refused(fill: Fill, engine: Engine) -> None:
    """Nothing is fetched; the message says what was expected."""
    (failed,) = list_failures(fill(**{"dagster/partition": "2024-03-02"}))
    assert "dagster/partition='2024-03-02': expected the first day of a month" in failed.text
    assert read_column(engine, DAYS) == []


def test_its_steps_are_named_as_receipts_know_them() -> None:
    """A receipt says which assets a run was to fill by the keys of its steps."""
    assets = list_job_assets(backfill_history_job.name)
    assert {node.name for node in backfill_history_job.nodes} == {*assets, f"{assets[0]}_checks"}


def test_months_that_wait_stand_behind_the_schedule() -> None:
    """Dagster's queue reads the tag by this name; a run without it has the priority 0."""
    assert int(backfill_history_job.tags[PRIORITY_TAG]) < 0
