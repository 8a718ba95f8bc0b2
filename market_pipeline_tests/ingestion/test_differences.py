"""A provider that changes its mind about stored bars: followed to its end, then read again."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import Engine

from market_pipeline.domain.columns import PRICES
from market_pipeline.domain.errors import TransientProviderError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import RESTATING, SUSPECTED_SPLIT, DataIssue
from market_pipeline.domain.records import HistoryTerms, Market, Window
from market_pipeline.domain.sessions import read_sessions
from market_pipeline.ingestion.drive import BarStream, WaveLimits
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.base import Provider
from market_pipeline.providers.file import FileProvider
from market_pipeline.providers.mock import MockProvider
from market_pipeline.storage.coverage.ledger import read_flaws
from market_pipeline_tests.commands import ROOT
from market_pipeline_tests.ingestion.test_next_run import NOON, REQUESTS, Pipeline

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
VOLUMES = """
    SELECT volume FROM market_data.market_aggregate WHERE interval = '1h' AND is_final
    ORDER BY open_time"""
EVENTS = "SELECT * FROM market_data.market_event ORDER BY event_id"
BARS = """
    SELECT interval, open_time, open, high, low, close FROM market_data.market_aggregate
    WHERE is_final AND interval <> '1w' ORDER BY interval, open_time"""
REVISIONS = "SELECT count(*) AS count FROM market_data.market_aggregate_revision"
FETCHED_REVISIONS = f"{REVISIONS} WHERE interval <> '1w'"
SERIES = ROOT / "market_pipeline_tests" / "recordings" / "series" / "SPX.csv"
SATURDAY = datetime(2024, 6, 29, 12, tzinfo=UTC)
MONDAY = datetime(2024, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def pipeline(engine: Engine) -> Pipeline:
    """A pipeline on an empty database."""
    return Pipeline(engine)


class Altered(MockProvider):
    """The mock, with prices multiplied, failing calls, or other terms.

    Args:
        faults: As MOCK_FAULTS spells them.
        terms: What ``describe_history`` says otherwise.
        multiply: Returns the factor of each bar.
        fails: Whether a call fails, by interval and length of its window.
        is_silent: Whether it answers no bars, by the length of its window.
    """

    def __init__(
        self,
        faults: str = "",
        terms: dict[str, Any] | None = None,
        multiply: Callable[[pd.DataFrame], Any] | None = None,
        fails: Callable[[Interval, timedelta], bool] = lambda *_: False,
        is_silent: Callable[[timedelta], bool] = lambda _: False,
    ) -> None:
        super().__init__({"MOCK_FAULTS": faults})
        self._terms, self._multiply = terms or {}, multiply
        self._fails, self._is_silent = fails, is_silent

    def describe_history(self, market: Market, interval: Interval) -> HistoryTerms:
        """Return the mock's terms with what is other."""
        return replace(super().describe_history(market, interval), **self._terms)

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: datetime
    ) -> pd.DataFrame:
        """Return the mock's bars, altered."""
        length = window.end - window.start
        if self._fails(interval, length):
            raise TransientProviderError(self.name, "is out of order")
        bars = super().fetch_bars(market, interval, window, now)
        if self._is_silent(length):
            return bars.iloc[:0]
        if self._multiply is None:
            return bars
        factors = self._multiply(bars)
        return bars.assign(**{name: bars[name] * factors for name in PRICES})


def ingest(
    engine: Engine,
    provider: Provider,
    symbol: str = "BTC-USD",
    now: datetime = NOON,
    days: int = 10,
    batches: int | None = None,
) -> Run:
    """Ingest one market as a run of its own; after some batches it dies before the next commit."""
    market = provider.find_market(symbol)
    assert market is not None
    request = build_request(now, [symbol], provider.name, days, now.isoformat())
    run = Run(uuid4(), "manual", now, request)
    stream = iter(BarStream(engine, run, [(provider, market)], WaveLimits(markets=1)))
    for _ in range(batches) if batches is not None else count():
        if next(stream, None) is None:
            break
    stream.close()  # type: ignore[attr-defined]
    return run


def read_withheld(engine: Engine) -> list[DataIssue]:
    """Return what an open event withholds."""
    with engine.connect() as connection:
        issues = read_flaws(connection, [1], Interval.DAY)
    return [issue for issue in issues if issue.reason in (RESTATING, SUSPECTED_SPLIT)]


def compute_history(now: datetime, symbol: str = "BTC-USD", faults: str = "") -> pd.DataFrame:
    """Return what the mock says by itself of all final bars: no database is asked."""
    provider = MockProvider({"MOCK_FAULTS": faults})
    market = provider.find_market(symbol)
    assert market is not None
    window = Window(now - timedelta(days=140), now)
    frames = [
        provider.fetch_bars(market, interval, window, now)
        for interval in (Interval.DAY, Interval.HOUR)
    ]
    bars = pd.concat(frames)
    return bars[bars["is_final"]].set_index(["interval", "open_time"]).sort_index()


def find_wrong(
    pipeline: Pipeline, expected: pd.DataFrame, until: datetime | None = None
) -> list[Any]:
    """Return the stored final bars whose prices are not the expected ones."""
    bars = [row for row in pipeline.read(BARS) if until is None or row["open_time"] < until]
    stored = pd.DataFrame(bars).set_index(["interval", "open_time"])
    other = expected.loc[stored.index, PRICES].to_numpy()
    same = np.isclose(stored[[*PRICES]].to_numpy(), other, rtol=1e-12).all(axis=1)
    return stored.index[~same].tolist()


def list_purposes(pipeline: Pipeline, run_id: Any) -> list[str]:
    """Return what a run asked for, without repetition."""
    return sorted({row["purpose"] for row in pipeline.read(REQUESTS, run_id=run_id)})


def write_spx(folder: Path, ratio: float) -> FileProvider:
    """Write 300 recorded days of the S&P 500 on the sessions up to 28 June 2024, and serve them."""
    recorded = pd.read_csv(SERIES).tail(300)
    sessions = read_sessions("XNYS", datetime(2023, 1, 1, tzinfo=UTC), SATURDAY)
    dates = sessions["session_date"].tail(300).dt.strftime("%Y-%m-%d")
    prices = recorded[["Open", "High", "Low", "Close"]].to_numpy() * ratio
    table = pd.DataFrame(prices, columns=["open", "high", "low", "close"])
    table.insert(0, "date", dates.to_numpy())
    table.to_csv(folder / "SPX.csv", index=False)
    return FileProvider({"FILE_PROVIDER_PATH": str(folder)})


def test_a_first_load_in_a_wrong_scale_is_healed_by_the_first_clean_run(pipeline: Pipeline) -> None:
    """Three per cent is no split, and still one and the same event over all of the market."""
    pipeline.run(NOON, "*:rescaled=1.03")
    clean = pipeline.run(NOON + HOUR)
    assert find_wrong(pipeline, compute_history(NOON + HOUR)) == []
    (event,) = pipeline.read(EVENTS)
    assert (event["kind"], event["resolution"]) == ("difference", "repaired")
    assert event["ratio"] == pytest.approx(1 / 1.03)
    assert event["spread"] < 1e-9
    receipt = pipeline.receipt(clean)
    assert (receipt["outcome"], receipt["reason"]) == ("ok", None)
    assert receipt["revised"] == pipeline.read(FETCHED_REVISIONS)[0]["count"] > 300


def test_a_rescaled_file_leaves_no_correction_inside_the_old_series(
    engine: Engine, pipeline: Pipeline, tmp_path: Path
) -> None:
    """Read again before the session opens, when nothing but old bars is looked at."""
    ingest(engine, write_spx(tmp_path, 1.0), "SPX", SATURDAY, 366)
    before = pd.DataFrame(pipeline.read(BARS))
    run = ingest(engine, write_spx(tmp_path, 0.25), "SPX", MONDAY, 366)
    after = pd.DataFrame(pipeline.read(BARS))
    assert np.allclose(after["close"] / before["close"], 0.25, rtol=1e-12)
    (event,) = pipeline.read(EVENTS)
    assert (event["ratio"], event["resolution"]) == (pytest.approx(0.25), "repaired")
    assert list_purposes(pipeline, run.run_id) == ["reload", "verify"]
    weeks = "SELECT max(high) / min(low) AS span FROM market_data.market_aggregate"
    assert pipeline.read(weeks)[0]["span"] < 2  # no bar of any kind holds both scales


def test_statistics_wait_while_the_file_is_read_again(
    engine: Engine, pipeline: Pipeline, tmp_path: Path
) -> None:
    """From the batch in which the difference was seen, until the last one."""
    ingest(engine, write_spx(tmp_path, 1.0), "SPX", SATURDAY, 366)
    assert read_withheld(engine) == []
    rescaled = write_spx(tmp_path, 0.25)
    ingest(engine, rescaled, "SPX", MONDAY, 366, batches=1)
    (issue,) = read_withheld(engine)
    assert (issue.reason, issue.window and issue.window.end.year) == (RESTATING, 2200)
    assert pipeline.read(REVISIONS)[0]["count"] == 0
    ingest(engine, rescaled, "SPX", MONDAY, 366)
    assert read_withheld(engine) == []


def is_mixed(pipeline: Pipeline) -> bool:
    """Tell whether bars of both scales are stored."""
    wrong = len(find_wrong(pipeline, compute_history(NOON + HOUR)))
    return 0 < wrong < len(pipeline.read(BARS))


def test_a_run_that_dies_anywhere_loses_nothing_and_hides_nothing(
    engine: Engine, pipeline: Pipeline
) -> None:
    """Each run commits the tails and one page more; a mixed series is always marked."""
    ingest(engine, Altered("*:rescaled=1.03"), days=60)
    stages, pages = [], []
    while not (events := pipeline.read(EVENTS)) or events[0]["resolved_at"] is None:
        run = ingest(engine, Altered(), now=NOON + HOUR, days=3, batches=3)
        (event,) = pipeline.read(EVENTS)
        is_open = event["resolved_at"] is None
        assert is_open or not is_mixed(pipeline)
        assert bool(read_withheld(engine)) == is_open
        stages.append(event["trace"]["stage"])
        asked = pipeline.read(REQUESTS, run_id=run.run_id)
        pages += [(row["interval"], row["starts_at"]) for row in asked if row["purpose"] == "trace"]
        assert len(stages) < 40
    assert len(stages) > 5
    assert stages == sorted(stages, reverse=True)  # tracing, then repairing
    assert len(pages) == len(set(pages))
    assert find_wrong(pipeline, compute_history(NOON + HOUR)) == []


def test_a_correction_deep_in_history_touches_nothing_else(
    engine: Engine, pipeline: Pipeline
) -> None:
    """One day of two months ago is read again, and today's statistics do not wait."""
    ingest(engine, Altered(), days=90)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE market_data.market_coverage SET verified = '{}'")
    fault = "BTC-USD:restated_bar=1.02@2024-01-17 1d"
    run = ingest(engine, Altered(fault), now=NOON + DAY, days=90)
    (event,) = pipeline.read(EVENTS)
    day = datetime(2024, 1, 17, tzinfo=UTC)
    assert (event["starts_at"], event["ends_at"]) == (day, day + DAY)
    assert (event["resolution"], event["ratio"]) == ("repaired", pytest.approx(1.02))
    revised = pipeline.read("SELECT interval, open_time FROM market_data.market_aggregate_revision")
    assert [row["open_time"] for row in revised if row["interval"] != "1w"] == [day]
    asked = pipeline.read(REQUESTS, run_id=run.run_id)
    assert [row["starts_at"] for row in asked if row["purpose"] == "reload"] == [day]
    days = [row["purpose"] for row in asked if row["interval"] == "1h"]
    assert "trace" in days  # the hours of that day are looked at as well


def test_both_intervals_are_read_again_where_one_was_seen(
    engine: Engine, pipeline: Pipeline
) -> None:
    """The days that are not asked for in this run are looked at over the same span."""
    ingest(engine, Altered("*:rescaled=1.03"))
    run = ingest(engine, Altered(), now=NOON + timedelta(minutes=5))
    rows = pipeline.read(REQUESTS, run_id=run.run_id)
    reloads = {row["interval"] for row in rows if row["purpose"] == "reload"}
    assert reloads == {"1d", "1h"}
    assert find_wrong(pipeline, compute_history(NOON)) == []


def test_a_page_that_fails_while_history_is_read_again_leaves_the_event_open(
    engine: Engine, pipeline: Pipeline
) -> None:
    """The next run reads what is left, and that alone."""
    ingest(engine, Altered("*:rescaled=1.03"), days=120)
    broken = Altered(fails=lambda interval, span: interval is Interval.DAY and span > 100 * DAY)
    receipt = pipeline.receipt(ingest(engine, broken, now=NOON + HOUR, days=120).run_id)
    assert receipt["outcome"] == "partial"
    assert "statistics over them are NULL until then" in receipt["reason"]
    (event,) = pipeline.read(EVENTS)
    assert (event["resolved_at"], event["trace"]["stage"]) == (None, "repairing")
    assert read_withheld(engine)
    run = ingest(engine, Altered(), now=NOON + 2 * HOUR, days=3)
    assert pipeline.receipt(run.run_id)["outcome"] == "ok"
    asked = pipeline.read(REQUESTS, run_id=run.run_id)
    assert [row["interval"] for row in asked if row["purpose"] == "reload"] == ["1d"]
    assert find_wrong(pipeline, compute_history(NOON + 2 * HOUR)) == []
    assert read_withheld(engine) == []


def test_an_empty_answer_while_history_is_read_again_is_a_failure(
    engine: Engine, pipeline: Pipeline
) -> None:
    """Bars are stored there, so the provider had them; nothing counts as read again."""
    ingest(engine, Altered("*:rescaled=1.03"), days=120)
    broken = Altered(fails=lambda _, span: span > 50 * DAY)
    ingest(engine, broken, now=NOON + HOUR, days=120)
    silent = Altered(is_silent=lambda span: span > 50 * DAY)
    receipt = pipeline.receipt(ingest(engine, silent, now=NOON + HOUR, days=3).run_id)
    assert "the provider has no bars in this window" in receipt["reason"]
    assert len(read_withheld(engine)) == 1
    ingest(engine, Altered(), now=NOON + HOUR, days=3)
    ingest(engine, Altered(), now=NOON + HOUR, days=3)
    assert find_wrong(pipeline, compute_history(NOON + HOUR)) == []
    assert read_withheld(engine) == []


def test_a_difference_that_is_taken_back_writes_nothing(engine: Engine, pipeline: Pipeline) -> None:
    """The provider sends the stored values again while it is still followed."""
    ingest(engine, Altered(), days=60)
    before = pipeline.read(BARS)
    other = Altered("*:rescaled=1.03", fails=lambda _, span: 20 * HOUR < span < 26 * HOUR)
    ingest(engine, other, now=NOON, days=60, batches=3)
    assert pipeline.read(EVENTS)[0]["trace"]["stage"] == "tracing"
    receipt = pipeline.receipt(ingest(engine, Altered(), days=60).run_id)
    (event,) = pipeline.read(EVENTS)
    assert event["resolution"] == "withdrawn"
    assert (receipt["outcome"], receipt["revised"]) == ("ok", 0)
    assert pipeline.read(BARS) == before
    assert read_withheld(engine) == []


def test_a_provider_may_change_its_mind_while_history_is_read_again(
    engine: Engine, pipeline: Pipeline
) -> None:
    """What was read again already differs from what comes now: all of it is read once more."""
    ingest(engine, Altered(), days=120)
    other = Altered(
        "*:rescaled=2", fails=lambda interval, span: interval is Interval.DAY and span > 100 * DAY
    )
    ingest(engine, other, now=NOON + HOUR, days=120)
    assert is_mixed(pipeline)
    ingest(engine, Altered(), now=NOON + 2 * HOUR, days=120)
    ingest(engine, Altered(), now=NOON + 3 * HOUR, days=120)
    assert find_wrong(pipeline, compute_history(NOON + 3 * HOUR)) == []
    assert read_withheld(engine) == []


@pytest.mark.parametrize("volumes", [True, False])
def test_what_cannot_be_read_again_is_multiplied(
    engine: Engine, pipeline: Pipeline, volumes: bool
) -> None:
    """One factor explains all; volumes follow where the provider's did, and old values are kept."""
    ingest(engine, Altered(), days=60)
    fault = "BTC-USD:split=4@2024-03-15T12:30" if volumes else "*:rescaled=0.25"
    before = pipeline.read(VOLUMES)
    run = ingest(engine, Altered(fault, {"reaches_back": 30 * DAY}), now=NOON + HOUR, days=60)
    (event,) = pipeline.read(EVENTS)
    assert event["resolution"] == "multiplied"
    expected = compute_history(NOON, faults="*:rescaled=0.25")
    assert find_wrong(pipeline, expected, until=NOON) == []
    marked = pipeline.read(
        "SELECT max(open_time) AS last, count(*) AS count FROM market_data.market_aggregate"
        " WHERE source_kind = 'rescaled' AND interval = '1h'"
    )[0]
    assert marked["last"] == NOON + HOUR - 30 * DAY - HOUR
    assert marked["count"] > 700
    factor = 4 if volumes else 1
    for old, new in zip(before, pipeline.read(VOLUMES), strict=False):
        assert new["volume"] == pytest.approx(factor * old["volume"])
    receipt = pipeline.receipt(run.run_id)
    assert (receipt["outcome"], receipt["revised"]) == (
        "ok",
        pipeline.read(FETCHED_REVISIONS)[0]["count"],
    )
    again = ingest(engine, Altered(fault, {"reaches_back": 30 * DAY}), now=NOON + HOUR, days=60)
    assert pipeline.receipt(again.run_id)["updated"] == 0


def test_what_no_one_factor_explains_stays_marked_where_it_meets(
    engine: Engine, pipeline: Pipeline
) -> None:
    """Statistics over the seam alone are withheld, until somebody dismisses the event."""
    ingest(engine, Altered(), days=60)
    uneven = Altered(
        terms={"reaches_back": 30 * DAY},
        multiply=lambda bars: 1.1 + 0.1 * (bars["open_time"].dt.day % 2),
    )
    receipt = pipeline.receipt(ingest(engine, uneven, now=NOON + HOUR, days=60).run_id)
    assert "no single factor explains the difference" in receipt["reason"]
    (event,) = pipeline.read(EVENTS)
    assert (event["trace"]["stage"], event["resolved_at"]) == ("seam", None)
    edge = NOON + HOUR - 30 * DAY
    (issue,) = read_withheld(engine)
    assert issue.window is not None
    assert edge - 2 * DAY < issue.window.start <= edge < issue.window.end < edge + 2 * DAY
    again = pipeline.receipt(ingest(engine, uneven, now=NOON + HOUR, days=60).run_id)
    assert (again["outcome"], again["updated"]) == ("ok", 0)
    assert len(pipeline.read(EVENTS)) == 1


def test_a_reload_that_the_version_before_began_goes_on(engine: Engine, pipeline: Pipeline) -> None:
    """An open split is a difference over everything known, whatever the look-back."""
    ingest(engine, Altered("*:rescaled=2"), days=60)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE market_data.market_coverage SET settled = '{}', verified = '{}'"
        )
        connection.exec_driver_sql("""
            INSERT INTO market_data.market_event
                (market_id, kind, ratio, detail, detected_at, run_id)
            VALUES (1, 'split', 0.5, '', now(), gen_random_uuid())""")
    assert [issue.window for issue in read_withheld(engine)] == [None]
    run = ingest(engine, Altered(), now=NOON + HOUR, days=3)
    assert find_wrong(pipeline, compute_history(NOON + HOUR)) == []
    (event,) = pipeline.read(EVENTS)
    assert (event["kind"], event["resolution"]) == ("split", "repaired")
    assert pipeline.receipt(run.run_id)["outcome"] == "ok"


def test_noise_makes_no_revision_and_no_event(engine: Engine, pipeline: Pipeline) -> None:
    """Within the provider's noise the stored price stays, to the last bit."""
    terms = {"noise_ratio": 1e-6}
    ingest(engine, Altered(terms=terms))
    before = pipeline.read(BARS)
    noisy = Altered(terms=terms, multiply=lambda _: 1 + 5e-7)
    ingest(engine, noisy)
    assert pipeline.read(BARS) == before
    assert (pipeline.read(EVENTS), pipeline.read(REVISIONS)[0]["count"]) == ([], 0)


def test_what_was_stored_while_a_difference_was_open_is_read_again(
    engine: Engine, pipeline: Pipeline
) -> None:
    """The run that saw it also loaded older bars, in a scale that the provider gave up since."""
    ingest(engine, Altered(), days=2)
    ingest(engine, Altered("*:rescaled=4"), now=NOON + HOUR, days=40, batches=1)
    assert is_mixed(pipeline)
    ingest(engine, Altered(), now=NOON + DAY, days=40)
    assert find_wrong(pipeline, compute_history(NOON + DAY)) == []
    assert read_withheld(engine) == []
