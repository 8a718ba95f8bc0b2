"""A split that nobody announced: noted with the bar, decided on by a person, never asked twice."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine

from market_pipeline.domain.errors import PipelineError
from market_pipeline.domain.masking import SUSPECTED_SPLIT
from market_pipeline.domain.records import Market, Window
from market_pipeline.ingestion.deciding import confirm_split, dismiss_event
from market_pipeline_tests.ingestion.test_differences import (
    EVENTS,
    MONDAY,
    SATURDAY,
    Altered,
    ingest,
    read_withheld,
    write_spx,
)
from market_pipeline_tests.ingestion.test_next_run import NOON, Pipeline

DAY = timedelta(days=1)
SPLIT_DAY = datetime(2024, 3, 8, tzinfo=UTC)  # a Friday
JUMP = Window(datetime(2024, 3, 7, 21, tzinfo=UTC), datetime(2024, 3, 8, 21, tzinfo=UTC))
SPLIT = "SPX:rescaled=0.25@2024-03-08"
ALERTS = "SELECT members, cleared_at FROM market_data.alert WHERE kind = 'split_suspected'"
CLOSES = """
    SELECT interval, open_time, close, volume FROM market_data.market_aggregate
    WHERE is_final ORDER BY interval, open_time"""


@pytest.fixture
def pipeline(engine: Engine) -> Pipeline:
    """A pipeline on an empty database."""
    return Pipeline(engine)


class Adjusted(Altered):
    """A mock that says that it adjusts for splits."""

    def find_market(self, symbol: str) -> Market | None:
        """Return the mock's market with another price basis."""
        one = super().find_market(symbol)
        return None if one is None else replace(one, price_basis="split_adjusted")


def read_events(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Return what was suspected."""
    return [row for row in pipeline.read(EVENTS) if row["kind"] == SUSPECTED_SPLIT]


def test_a_jump_is_noted_with_the_bar_and_told(engine: Engine, pipeline: Pipeline) -> None:
    """Statistics over the jump wait, those before and after it do not; there is one alert."""
    ingest(engine, Altered(SPLIT), "SPX", days=30)
    (event,) = read_events(pipeline)
    assert (event["starts_at"], event["ends_at"]) == (JUMP.start, JUMP.end)
    assert event["ratio"] == 0.25
    (issue,) = read_withheld(engine)
    assert (issue.reason, issue.window) == (SUSPECTED_SPLIT, JUMP)
    (alert,) = pipeline.read(ALERTS)
    assert alert["cleared_at"] is None
    assert "1:4" in alert["members"]["mock:SPX"]
    ingest(engine, Altered(SPLIT), "SPX", now=NOON + DAY, days=30)
    assert len(read_events(pipeline)) == 1


def test_a_jump_in_the_newest_bar_is_noted_by_an_ordinary_run(
    engine: Engine, pipeline: Pipeline
) -> None:
    """What it overlaps with shows the close before."""
    before = datetime(2024, 3, 8, 12, tzinfo=UTC)
    ingest(engine, Altered(SPLIT), "SPX", now=before, days=30)
    assert read_events(pipeline) == []
    ingest(engine, Altered(SPLIT), "SPX", now=before + 10 * timedelta(hours=1), days=30)
    assert [row["ends_at"] for row in read_events(pipeline)] == [JUMP.end]


def test_a_jump_between_new_and_old_bars_is_noted(engine: Engine, pipeline: Pipeline) -> None:
    """History that is filled later ends where the stored bars begin."""
    monday = datetime(2024, 3, 11, tzinfo=UTC)
    fault = "SPX:rescaled=0.25@2024-03-04"
    ingest(engine, Altered(fault), "SPX", now=monday + 4 * DAY, days=2)
    assert read_events(pipeline) == []
    ingest(engine, Altered(fault), "SPX", now=monday + 4 * DAY, days=60)
    assert [row["ends_at"].day for row in read_events(pipeline)] == [4]


@pytest.mark.parametrize(
    ("symbol", "provider"),
    [("BTC-USD", Altered("*:rescaled=0.25@2024-03-08")), ("SPX", Adjusted(SPLIT))],
)
def test_markets_without_splits_are_not_suspected(
    engine: Engine, pipeline: Pipeline, symbol: str, provider: Altered
) -> None:
    """One that is always open, and one whose provider adjusts for splits."""
    ingest(engine, provider, symbol, days=30)
    assert read_events(pipeline) == []


def test_a_jump_that_was_dismissed_is_a_price(engine: Engine, pipeline: Pipeline) -> None:
    """It is never suspected again, the alert ends, and no bar was touched."""
    ingest(engine, Altered(SPLIT), "SPX", days=30)
    before = pipeline.read(CLOSES)
    assert dismiss_event(engine, read_events(pipeline)[0]["event_id"]) == "mock:SPX"
    assert read_withheld(engine) == []
    assert pipeline.read(ALERTS)[0]["cleared_at"] is not None
    assert pipeline.read(CLOSES) == before
    ingest(engine, Altered(SPLIT), "SPX", now=NOON + DAY, days=90)
    assert [row["resolution"] for row in read_events(pipeline)] == ["dismissed"]
    with pytest.raises(PipelineError, match="was dismissed at"):
        dismiss_event(engine, read_events(pipeline)[0]["event_id"])


def test_a_split_that_was_confirmed_multiplies_what_came_before(
    engine: Engine, pipeline: Pipeline
) -> None:
    """Shares' volumes the other way round; the provider's old scale does not come back."""
    ingest(engine, Altered(SPLIT), "SPX", days=30)
    before = pd.DataFrame(pipeline.read(CLOSES))
    done = confirm_split(engine, read_events(pipeline)[0]["event_id"], datetime.now(UTC))
    after = pd.DataFrame(pipeline.read(CLOSES))
    is_earlier = (before["open_time"] < SPLIT_DAY) & (before["interval"] != "1w")
    is_later = (before["open_time"] >= SPLIT_DAY) & (before["interval"] != "1w")
    ratios, volumes = after["close"] / before["close"], after["volume"] / before["volume"]
    assert (ratios[is_earlier].round(12) == 0.25).all()
    assert (volumes[is_earlier].round(12) == 4).all()
    assert (ratios[is_later] == 1).all()
    assert done.bars == int(is_earlier.sum())
    receipt = pipeline.receipt(done.run_id)
    assert receipt["revised"] >= done.bars
    assert read_withheld(engine) == []
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE market_data.market_coverage SET verified = '{}'")
    ingest(engine, Altered(SPLIT), "SPX", now=NOON + DAY, days=30)
    kept = pd.DataFrame(pipeline.read(CLOSES))
    kept = kept[kept["open_time"] < SPLIT_DAY].reset_index(drop=True)
    earlier = after[after["open_time"] < SPLIT_DAY].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, earlier)
    assert [row["resolution"] for row in pipeline.read(EVENTS)] == ["confirmed"]


def test_a_jump_that_the_provider_takes_back_is_no_longer_suspected(
    engine: Engine, pipeline: Pipeline
) -> None:
    """Its bars were read again, and the jump is gone."""
    ingest(engine, Altered(SPLIT), "SPX", days=30)
    ingest(engine, Altered(), "SPX", now=NOON + DAY, days=30)
    kinds = [(row["kind"], row["resolution"]) for row in pipeline.read(EVENTS)]
    assert kinds == [("suspected_split", "withdrawn"), ("difference", "repaired")]
    assert pipeline.read(ALERTS)[0]["cleared_at"] is not None


def test_a_rescaling_that_is_read_again_is_no_split(
    engine: Engine, pipeline: Pipeline, tmp_path: Path
) -> None:
    """Old and new bars stand side by side meanwhile; only a difference is known of them."""
    ingest(engine, write_spx(tmp_path, 1.0), "SPX", SATURDAY, 366)
    ingest(engine, write_spx(tmp_path, 0.25), "SPX", MONDAY + DAY, 366)
    assert [row["kind"] for row in pipeline.read(EVENTS)] == ["difference"]


def test_only_what_is_open_and_suspected_can_be_decided_on(engine: Engine) -> None:
    """Each refusal says what to do."""
    with pytest.raises(
        PipelineError, match="event 7 does not exist: `market-pipeline events list`"
    ):
        dismiss_event(engine, 7)
    ingest(engine, Altered(), days=60)
    ingest(engine, Altered("*:rescaled=1.03"), days=60, batches=3)
    for decide in (
        lambda: dismiss_event(engine, 1),
        lambda: confirm_split(engine, 1, datetime.now(UTC)),
    ):
        with pytest.raises(PipelineError, match="event 1 is a difference"):
            decide()
