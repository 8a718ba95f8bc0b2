"""A reader who demands complete history gets it, or is told what is missing and what brings it."""

import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine, event, text

from market_pipeline.domain.errors import HistoryRequestError, IncompleteHistoryError
from market_pipeline.providers.mock import MockProvider
from market_pipeline.readers import read_aggregates, read_roi_statistics
from market_pipeline.readers.completeness import Requirement
from market_pipeline_tests.ingestion.test_known_missing import fill_a_month_of_old, run
from market_pipeline_tests.ingestion.test_next_run import NOON, Pipeline
from market_pipeline_tests.readers.writing import write_statistics

DAY = timedelta(days=1)
SPAN = (datetime(2024, 3, 4, tzinfo=UTC), datetime(2024, 3, 14, tzinfo=UTC))
AT_NOON = {"as_of": NOON, "basis": "assumed"}


@pytest.fixture
def pipeline(engine: Engine) -> Pipeline:
    """A pipeline on an empty database."""
    return Pipeline(engine)


def read(pipeline: Pipeline, require: Requirement = "complete", **more: Any) -> pd.DataFrame:
    """Read ten days of Bitcoin."""
    asked = {"interval": "1d", "start": SPAN[0], "end": SPAN[1], **more}
    return read_aggregates("BTC-USD", **asked, engine=pipeline.engine, require=require)


def change_holes(pipeline: Pipeline, change: str) -> None:
    """Change the hole of days."""
    statement = f"UPDATE market_data.coverage_hole SET {change} WHERE interval = '1d'"
    with pipeline.engine.begin() as connection:
        assert connection.execute(text(statement)).rowcount == 1


def test_a_span_with_all_its_bars_is_returned(pipeline: Pipeline) -> None:
    """Hours, days and weeks; attrs say the same without a demand."""
    run(pipeline, NOON)
    for interval, count in (("1h", 240), ("1d", 10), ("1w", 1)):
        end = SPAN[0] + 7 * DAY if interval == "1w" else SPAN[1]
        bars = read(pipeline, interval=interval, end=end)
        assert len(bars) == count
        counts = {"expected": count, "present": count, "missing": {}}
        assert bars.attrs["completeness"] == counts
        assert read(pipeline, None, interval=interval, end=end).attrs == bars.attrs


def test_a_hole_is_refused_with_its_reason_and_what_fills_it(pipeline: Pipeline) -> None:
    """The command is one to type; explained lets through what nobody will ever have."""
    run(pipeline, NOON, MockProvider({"MOCK_FAULTS": "*:skipped_page@2024-03-06..2024-03-08"}))
    bars = read(pipeline, None)
    missing = {"expected": 10, "present": 8, "missing": {"provider_empty": 2}}
    assert bars.attrs["completeness"] == missing
    for require in ("complete", "explained"):
        with pytest.raises(IncompleteHistoryError, match="provider_empty, 2 bars") as refused:
            read(pipeline, require)  # type: ignore[arg-type]
        assert refused.value.missing == [
            {
                "symbol": "BTC-USD", "provider": "mock", "interval": "1d",
                "starts_at": "2024-03-06T00:00:00Z", "ends_at": "2024-03-08T00:00:00Z",
                "reason": "provider_empty", "bars": 2,
            }
        ]  # fmt: skip
    change_holes(pipeline, "tries = 4")
    assert len(read(pipeline, "explained")) == 8
    with pytest.raises(IncompleteHistoryError, match="No command can fetch it now"):
        read(pipeline)
    change_holes(pipeline, "reason = 'fetch_failed'")
    with pytest.raises(IncompleteHistoryError) as failed:
        read(pipeline, "explained")
    command = "market-pipeline backfill --from 2024-03-06 --to 2024-03-08"
    assert failed.value.commands == [f"{command} --symbols BTC-USD --provider mock"]
    assert command in str(failed.value)
    copied = pickle.loads(pickle.dumps(failed.value))  # noqa: S301 - made here
    assert (str(copied), copied.commands) == (str(failed.value), failed.value.commands)


def test_a_week_is_complete_when_its_days_are(pipeline: Pipeline) -> None:
    """The week is there, made of five days; it is refused all the same."""
    run(pipeline, NOON, MockProvider({"MOCK_FAULTS": "*:skipped_page@2024-03-06..2024-03-08"}))
    with pytest.raises(IncompleteHistoryError, match="1w 2024-03-04 00:00"):
        read(pipeline, interval="1w", end=SPAN[0] + DAY)


def test_time_that_was_never_asked_for_is_refused(pipeline: Pipeline) -> None:
    """Between two loads, and before the first: both by name."""
    fill_a_month_of_old(pipeline, 90)
    with pytest.raises(IncompleteHistoryError, match="never_asked"):
        read(pipeline, start=NOON - 80 * DAY)
    with pytest.raises(IncompleteHistoryError, match="never_asked"):
        read(pipeline, "explained", start=NOON - 180 * DAY, end=NOON - 170 * DAY)
    assert len(read(pipeline, start=NOON - 80 * DAY, end=NOON - 70 * DAY)) == 10


def test_what_is_due_and_was_not_asked_for_is_refused(pipeline: Pipeline) -> None:
    """The newest stored bar is of 2024; by today's clock the days since are missing."""
    run(pipeline, NOON)
    with pytest.raises(IncompleteHistoryError, match="not_asked_yet"):
        read(pipeline, end=datetime.now(UTC))


def test_a_running_bar_is_not_expected_and_a_late_one_is_provisional(pipeline: Pipeline) -> None:
    """Due is what the provider should have published by the time that is asked about."""
    run(pipeline, NOON)
    tomorrow = NOON + DAY
    assert len(read(pipeline, end=tomorrow, **AT_NOON)) == 11
    with pytest.raises(
        IncompleteHistoryError, match=r"2024-03-15 00:00 to .*: provisional, 1 bars"
    ):
        read(pipeline, end=tomorrow)


def test_an_open_event_is_refused(pipeline: Pipeline) -> None:
    """All bars are there; their values are in doubt."""
    run(pipeline, NOON)
    assert len(read(pipeline)) == 10
    with pipeline.engine.begin() as connection:
        connection.execute(
            text("""INSERT INTO market_data.market_event (market_id, kind, detail, detected_at,
                run_id) SELECT market_id, 'split', 'seen', now(), gen_random_uuid()
                FROM market_data.market""")
        )
    with pytest.raises(IncompleteHistoryError, match="restating"):
        read(pipeline, "explained")


def test_a_version_is_checked_by_its_own_time(pipeline: Pipeline) -> None:
    """What was written later is not in it, though the ledger has it now."""
    first = NOON - 3 * DAY
    run(pipeline, first)
    version = read(pipeline, None).attrs["dataset_version"]
    run(pipeline, NOON)
    assert len(read(pipeline)) == 10
    with pytest.raises(IncompleteHistoryError, match="not_known_then"):
        read(pipeline, version=version)
    assert len(read(pipeline, version=version, end=SPAN[0] + 8 * DAY)) == 8


def test_statistics_are_refused_when_a_bar_of_their_horizon_is_missing(pipeline: Pipeline) -> None:
    """A hole of two days is in 30 days, and not in the seven before the last close."""
    run(pipeline, NOON, MockProvider({"MOCK_FAULTS": "*:skipped_page@2024-03-05..2024-03-07"}))
    write_statistics(pipeline.engine)

    def ask(horizon: str, require: Requirement = "complete") -> pd.DataFrame:
        return read_roi_statistics("BTC-USD", horizon, engine=pipeline.engine, require=require)

    assert ask("7d").attrs["completeness"] == {"expected": 8, "present": 8, "missing": {}}
    with pytest.raises(IncompleteHistoryError, match="provider_empty, 2 bars"):
        ask("30d")
    told = ask("30d", None).attrs["completeness"]
    assert told["expected"] == 31
    assert told["missing"]["provider_empty"] == 2
    assert read_roi_statistics("BTC-USD", "9d", engine=pipeline.engine, require="complete").empty


@pytest.mark.parametrize(
    "span",
    [("1700-01-01", "8999-12-31"), ("1700-01-01", "1700-01-02"), ("8999-01-01", "8999-12-31")],
)
def test_absurd_spans_are_answered(pipeline: Pipeline, span: tuple[Any, Any]) -> None:
    """Before 1970 and after today nothing is expected, and nothing breaks."""
    run(pipeline, NOON)
    for interval in ("1h", "1d", "1w"):
        bars = read(pipeline, None, interval=interval, start=span[0], end=span[1])
        told = bars.attrs["completeness"]
        assert told["expected"] == told["present"] + sum(told["missing"].values())


def test_another_word_is_refused(pipeline: Pipeline) -> None:
    """Both words are named."""
    with pytest.raises(HistoryRequestError, match="'complete', 'explained'"):
        read(pipeline, "all")  # type: ignore[arg-type]


def test_telling_completeness_reads_no_bars(pipeline: Pipeline) -> None:
    """One statement reads them; the others are about the ledger."""
    run(pipeline, NOON)
    statements: list[str] = []
    watch: Callable[..., None] = lambda *given: statements.append(given[2])  # noqa: E731
    event.listen(pipeline.engine, "before_cursor_execute", watch)
    read(pipeline, None)
    of_bars = [one for one in statements if "market_aggregate" in one]
    assert len(of_bars) <= 1
    assert len(statements) <= 5
