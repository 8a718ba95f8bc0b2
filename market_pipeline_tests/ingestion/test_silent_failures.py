"""The failures that stay silent elsewhere, each by its name: found, told, healed by the next run.

Each ends with one good run and the same bars as if nothing had happened, but for what the failure
itself says: that is what *silent* would have cost.
"""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from market_pipeline_tests.ingestion.test_next_run import NOON, Pipeline

DAY = timedelta(days=1)
HOLES = "SELECT reason, interval FROM market_data.coverage_hole ORDER BY interval"


@pytest.fixture
def pipeline(engine: Engine) -> Pipeline:
    """A pipeline on an empty database."""
    return Pipeline(engine)


@pytest.fixture
def undisturbed(pipeline: Pipeline) -> list[dict[str, object]]:
    """The bars of a run in which nothing goes wrong."""
    pipeline.run(NOON)
    bars = pipeline.bars()
    with pipeline.engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE market_data.market CASCADE")
    return bars


@pytest.mark.owner
@pytest.mark.parametrize(
    ("name", "fault", "outcome", "reasons"),
    [
        ("a page is skipped in the middle", "skipped_page@2024-03-06..2024-03-08", "partial", 2),
        ("the provider answers nothing", "empty_page", "failed", 2),
        ("the provider does not answer", "timeout", "failed", 2),
        ("another market is answered", "wrong_symbol", "failed", 2),
        ("history is cut short", "truncated_history=3", "partial", 2),
        ("a row comes twice with other prices", "duplicate=1.5@2024-03-08", "partial", None),
        ("a row is off its grid", "off_grid=7@2024-03-08", "partial", None),
    ],
)
def test_it_is_told_at_once_and_healed_by_the_next_run(
    name: str,
    fault: str,
    outcome: str,
    reasons: int | None,
    undisturbed: list[dict[str, object]],
    pipeline: Pipeline,
) -> None:
    """The receipt says so, a hole keeps it, the next good run leaves no trace of it."""
    assert name
    receipt = pipeline.receipt(pipeline.run(NOON, f"BTC-USD:{fault}"))
    assert receipt["outcome"] == outcome
    assert receipt["reason"]
    assert receipt["holes_left"] or receipt["quarantined"]
    holes = pipeline.read(HOLES)
    assert reasons is None or len(holes) >= reasons
    for hours in (1, 2, 26):
        later = NOON + timedelta(hours=hours)
        pipeline.run(later, days=12)
    healed = {(row["interval"], row["open_time"]): row for row in pipeline.bars()}
    for bar in undisturbed:
        found = healed[bar["interval"], bar["open_time"]]
        if bar["is_final"]:
            assert found == bar
    assert (
        pipeline.read("SELECT 1 FROM market_data.coverage_hole WHERE reason = 'fetch_failed'") == []
    )


def test_the_last_bar_is_half_a_bar(pipeline: Pipeline) -> None:
    """Whatever the provider calls it, it is not final before it has closed, and then it changes."""
    pipeline.run(NOON + timedelta(minutes=30), "BTC-USD:unclosed_bar")
    running = (
        "SELECT is_final FROM market_data.market_aggregate WHERE close_time > '2024-03-15 12:30Z'"
    )
    assert {row["is_final"] for row in pipeline.read(running)} == {False}
    pipeline.run(NOON + 2 * timedelta(hours=1))
    closed = (
        "SELECT is_final FROM market_data.market_aggregate WHERE close_time < '2024-03-15 13:00Z'"
    )
    assert {row["is_final"] for row in pipeline.read(closed)} == {True}


def test_the_provider_is_down_for_hours(pipeline: Pipeline) -> None:
    """One good run fills all of it, once the back-off of an hour at most is over."""
    pipeline.run(NOON)
    for hours in range(1, 7):
        failed = pipeline.receipt(pipeline.run(NOON + timedelta(hours=hours), "BTC-USD:timeout"))
        assert failed["outcome"] != "ok"
    with pipeline.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE market_data.coverage_hole SET next_check_at = now()")
    good = pipeline.receipt(pipeline.run(NOON + timedelta(hours=7)))
    assert (good["outcome"], good["holes_left"]) == ("ok", 0)
    hours_stored = """SELECT count(*) FROM market_data.market_aggregate
        WHERE interval = '1h' AND is_final AND open_time >= '2024-03-15 12:00Z'"""
    assert pipeline.read(hours_stored)[0]["count"] >= 6


def test_a_bar_is_corrected_long_after_it_was_read(pipeline: Pipeline) -> None:
    """Bars are read again with age; the old value stays readable."""
    pipeline.run(NOON)
    for age in (1, 2, 7, 8, 30, 31):
        pipeline.run(NOON + age * DAY, "BTC-USD:restated_bar=1.02@2024-03-13", days=45)
    revisions = "SELECT count(*) FROM market_data.market_aggregate_revision"
    assert pipeline.read(revisions)[0]["count"] > 0


def test_the_clock_is_wrong(pipeline: Pipeline) -> None:
    """A bar from the future is none, and nothing becomes final by a clock that runs ahead."""
    ahead = datetime(2024, 3, 15, 11, 30, tzinfo=UTC)
    pipeline.run(ahead)
    future = "SELECT 1 FROM market_data.market_aggregate WHERE is_final AND close_time > :now"
    assert pipeline.read(future, now=ahead) == []
