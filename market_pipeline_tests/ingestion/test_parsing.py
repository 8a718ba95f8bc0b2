"""A provider's answers read in another way: what is stored stays, what comes is new, none mixes."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import MIXED_PARSING
from market_pipeline.domain.records import Window
from market_pipeline.storage.coverage.ledger import read_coverage, read_flaws
from market_pipeline_tests.ingestion.reading import (
    NOON,
    Reader,
    count,
    read,
    read_finals,
    read_older,
    run,
)


@pytest.mark.parametrize("symbol", ["BTC-USD", "SPX"])
def test_bars_of_an_older_parser_stay_and_nothing_is_compared_with_them(
    engine: Engine, symbol: str
) -> None:
    """Every price is 0.4 % off, and there is no revision, no event and no failure."""
    run(engine, Reader(1), NOON, symbol)
    before = read_finals(engine)
    for hours in (3, 30, 24 * 9):
        run_id = run(engine, Reader(2), NOON + timedelta(hours=hours), symbol)
        receipt = read(
            engine,
            "SELECT * FROM market_data.ingestion_run_market WHERE run_id = :run_id",
            run_id=run_id,
        )
        assert (receipt[0]["outcome"], receipt[0]["revised"]) == ("ok", 0)
    after = read_finals(engine)
    assert before < after
    assert count(engine, "market_aggregate_revision") == 0
    assert count(engine, "market_event") == 0
    assert count(engine, "coverage_hole") == 0


def test_what_an_older_parser_has_read_is_kept_with_the_coverage(engine: Engine) -> None:
    """From the first batch on; the running bar is no part of it, as it was not final."""
    run(engine, Reader(1), NOON + timedelta(minutes=20))
    assert set(map(tuple, read_older(engine).values())) == {()}
    run(engine, Reader(2), NOON + timedelta(hours=3))
    older = read_older(engine)
    (hours,), (days,) = older[Interval.HOUR], older[Interval.DAY]
    assert (hours.end, days.end) == (NOON, NOON.replace(hour=0))
    versions = read(engine, "SELECT parsing FROM market_data.market_coverage")
    assert [row["parsing"] for row in versions] == [2, 2]
    run(engine, Reader(2), NOON + timedelta(hours=5))
    assert read_older(engine) == older


def test_what_cannot_be_compared_is_not_asked_for(engine: Engine) -> None:
    """Neither as the tail's known bars, nor to be verified at an age."""
    run(engine, Reader(1), NOON)
    provider = Reader(2)
    run(engine, provider, NOON + timedelta(days=8))
    older = {interval: spans[0] for interval, spans in read_older(engine).items()}
    assert provider.asked
    assert all(window.start >= older[interval].end for interval, window in provider.asked)


def test_a_hole_in_older_bars_is_filled_by_todays_parser(engine: Engine) -> None:
    """Its bars lie between two changes."""
    run(engine, Reader(1, "BTC-USD:skipped_page@2024-03-09..2024-03-10"), NOON)
    run(engine, Reader(2), NOON + timedelta(hours=3))
    assert count(engine, "coverage_hole") == 0
    hole = Window(datetime(2024, 3, 9, tzinfo=UTC), datetime(2024, 3, 10, tzinfo=UTC))
    for spans in read_older(engine).values():
        assert [spans[0].end, spans[1].start] == [hole.start, hole.end]
    with engine.connect() as connection:
        issues = read_flaws(connection, [1], Interval.DAY)
    instant = timedelta(microseconds=1)
    moments = [hole.end - instant, hole.end + timedelta(days=1) - instant]
    assert [(issue.reason, issue.window) for issue in issues] == [
        (MIXED_PARSING, Window(moment, moment)) for moment in moments
    ]


def test_statistics_are_withheld_where_they_would_mix_and_only_there(engine: Engine) -> None:
    """The issue lies between the last old close and the first new one, both of them excluded."""
    run(engine, Reader(1), NOON)
    with engine.connect() as connection:
        assert read_flaws(connection, [1], Interval.DAY) == []
    run(engine, Reader(2), NOON + timedelta(hours=3))
    with engine.connect() as connection:  # no day of the new version is final yet
        assert read_flaws(connection, [1], Interval.DAY) == []
        (hourly,) = read_flaws(connection, [1], Interval.HOUR)
    assert hourly.window is not None
    assert NOON < hourly.window.start < NOON + timedelta(hours=1)
    run(engine, Reader(2), NOON + timedelta(days=1))
    with engine.connect() as connection:
        (daily,) = read_flaws(connection, [1], Interval.DAY)
    last_old, first_new = NOON.replace(hour=0), NOON.replace(hour=0) + timedelta(days=1)
    assert daily.reason == MIXED_PARSING
    assert daily.window is not None
    assert last_old < daily.window.start == daily.window.end < first_new


def test_a_third_version_keeps_the_first_two_apart(engine: Engine) -> None:
    """Each version has its own spans."""
    for parsing in (1, 2, 3):
        run(engine, Reader(parsing), NOON + parsing * timedelta(days=2))
    with engine.connect() as connection:
        known = read_coverage(connection, [1])[1, Interval.DAY]
        issues = read_flaws(connection, [1], Interval.DAY)
    assert known.parsing == 3
    assert sorted(known.older_parsings) == [1, 2]
    assert len(issues) == 2
