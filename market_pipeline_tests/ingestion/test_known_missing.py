"""What is known to be missing is asked for by every run, and what nobody asked for is said."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text

from market_pipeline.domain import sessions
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.masking import NEVER_ASKED
from market_pipeline.domain.records import HistoryTerms, Market, Window
from market_pipeline.domain.sessions import build_schedule
from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.estimate import estimate_request
from market_pipeline.ingestion.plan import describe_cut
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.mock import MockProvider
from market_pipeline.providers.registry import route_markets
from market_pipeline.storage.coverage.ledger import read_flaws, read_never_asked
from market_pipeline_tests.ingestion.test_next_run import NOON, REQUESTS, Pipeline

DAY = timedelta(days=1)
HOLES = """
    SELECT interval, starts_at, ends_at, reason, tries, next_check_at
    FROM market_data.coverage_hole ORDER BY interval, starts_at"""


class Terms(MockProvider):
    """The mock, which may have a limit and forget what is old."""

    def __init__(self, reaches_back: timedelta | None, calls_a_day: int | None = None) -> None:
        super().__init__({})
        self.reaches_back, self.calls_per_day = reaches_back, calls_a_day

    def describe_history(self, market: Market, interval: Interval) -> HistoryTerms:
        """Return the mock's terms but for the reach."""
        terms = super().describe_history(market, interval)
        return replace(terms, reaches_back=self.reaches_back)


def run(
    pipeline: Pipeline,
    now: datetime,
    provider: MockProvider | None = None,
    asked_at: datetime | None = None,
    **options: Any,
) -> UUID:
    """Ingest Bitcoin as a run of its own; options are those of a request."""
    provider = provider or MockProvider({})
    symbol = options.pop("symbol", "BTC-USD")
    market = provider.find_market(symbol)
    assert market is not None
    given = {"window_end": now.isoformat(), "lookback_days": 10, **options}
    request = build_request(asked_at or datetime.now(UTC), [symbol], "mock", **given)
    of_run = Run(uuid4(), "manual", now, request)
    for _ in BarStream(pipeline.engine, of_run, [(provider, market)]):
        pass
    return of_run.run_id


def list_purposes(pipeline: Pipeline, run_id: UUID) -> list[tuple[str, str]]:
    """Return interval and purpose of each request of a run."""
    rows = pipeline.read(REQUESTS, run_id=run_id)
    return [(row["interval"], row["purpose"]) for row in rows]


def asks_for_the_tail_alone(pipeline: Pipeline, run_id: UUID) -> bool:
    """Return whether a run asked for no more than the newest bars."""
    return {purpose for _, purpose in list_purposes(pipeline, run_id)} == {"tail"}


@pytest.fixture
def pipeline(engine: Engine) -> Pipeline:
    """A pipeline on an empty database."""
    return Pipeline(engine)


def fill_a_month_of_old(pipeline: Pipeline, days_ago: int) -> None:
    """Load ten days up to now, and a month long before: time between them is not asked for."""
    run(pipeline, NOON)
    start = NOON - days_ago * DAY
    span = {"history_from": start.isoformat(), "history_to": (start + 30 * DAY).isoformat()}
    run(pipeline, NOON, **span)


def test_time_that_nobody_asked_for_withholds_statistics(pipeline: Pipeline) -> None:
    """A load, and a month three months before it: the days between are an issue by name."""
    fill_a_month_of_old(pipeline, 90)
    with pipeline.engine.connect() as connection:
        never = read_never_asked(connection)
        (market_id,) = {key[0] for key in never}
        issues = read_flaws(connection, [market_id], Interval.DAY)
    assert {key[1] for key in never} == {Interval.HOUR, Interval.DAY}
    assert {issue.reason for issue in issues} == {NEVER_ASKED}
    window = issues[0].window
    assert window is not None
    assert (window.end - window.start).days >= 40


def test_the_next_run_fills_it_within_its_reach_and_no_further(pipeline: Pipeline) -> None:
    """Within a year, the longest horizon, whatever the look-back; what lies beyond stays."""
    fill_a_month_of_old(pipeline, 90)
    run(pipeline, NOON + timedelta(hours=1))
    with pipeline.engine.connect() as connection:
        assert read_never_asked(connection) == {}
    run(pipeline, NOON, history_from="2022-01-03", history_to="2022-02-07")
    run(pipeline, NOON + timedelta(hours=2))
    with pipeline.engine.connect() as connection:
        never = read_never_asked(connection)
    assert len(never) == 2
    first_filled = NOON - 365 * DAY
    for (gap,) in never.values():
        assert gap.start == datetime(2022, 2, 7, tzinfo=UTC)
        assert timedelta(0) < first_filled - gap.end < 12 * DAY


def test_a_failure_outside_the_look_back_is_asked_for_again(pipeline: Pipeline) -> None:
    """What timed out with a long look-back is filled by the next short ones."""
    run(pipeline, NOON, MockProvider({"MOCK_FAULTS": "*:timeout"}), lookback_days=200)
    assert {row["reason"] for row in pipeline.read(HOLES)} == {"fetch_failed"}
    for hours in range(1, 4):
        run(pipeline, NOON + timedelta(hours=hours))
    assert pipeline.read(HOLES) == []
    first = pipeline.read("SELECT min(first_bar_at) AS at FROM market_data.market_coverage")
    assert first[0]["at"] < NOON - 190 * DAY


def test_a_failure_that_lasts_is_tried_ever_more_rarely(pipeline: Pipeline) -> None:
    """Each try is counted though it lies outside the window, and the run is partial."""
    run(pipeline, NOON)
    old = "BTC-USD:timeout@2023-10-01..2023-10-20 1d"
    broken = MockProvider({"MOCK_FAULTS": old})
    run(pipeline, NOON, broken, history_from="2023-10-02", history_to="2023-10-16")
    (hole,) = pipeline.read(HOLES)
    clock = datetime.now(UTC)
    delays = []
    for _ in range(7):
        clock = max(clock, hole["next_check_at"]) + timedelta(minutes=1)
        failed = run(pipeline, NOON, broken, asked_at=clock)
        assert ("1d", "retry") in list_purposes(pipeline, failed)
        assert pipeline.receipt(failed)["outcome"] == "partial"
        (hole,) = [row for row in pipeline.read(HOLES) if row["interval"] == "1d"]
        delays.append(hole["next_check_at"] - clock)
    assert hole["tries"] == 8
    assert delays == sorted(delays)
    assert delays[-1] == 30 * DAY
    assert asks_for_the_tail_alone(pipeline, run(pipeline, NOON, broken, asked_at=clock))


def test_a_retry_alone_does_not_fail_a_market(pipeline: Pipeline) -> None:
    """On a Saturday New York has nothing new; the hole is all that is asked for."""
    saturday = datetime(2024, 3, 16, 12, tzinfo=UTC)
    run(pipeline, saturday, symbol="SPX")
    span = {"history_from": "2023-10-02", "history_to": "2023-10-16"}
    broken = MockProvider({"MOCK_FAULTS": "SPX:timeout@2023-10-01..2023-10-20"})
    run(pipeline, saturday, broken, symbol="SPX", **span)
    failed = run(pipeline, saturday, broken, symbol="SPX")
    assert {purpose for _, purpose in list_purposes(pipeline, failed)} == {"retry"}
    assert pipeline.receipt(failed)["outcome"] == "partial"


def test_a_backfill_does_not_wait_for_a_failures_time(pipeline: Pipeline) -> None:
    """Who names the span asks for it now."""
    run(pipeline, NOON)
    span = {"history_from": "2023-10-02", "history_to": "2023-10-16"}
    run(pipeline, NOON, MockProvider({"MOCK_FAULTS": "*:timeout"}), **span)
    with pipeline.engine.begin() as connection:
        connection.execute(
            text("UPDATE market_data.coverage_hole SET next_check_at = now() + interval '9 days'")
        )
    assert asks_for_the_tail_alone(pipeline, run(pipeline, NOON))
    run(pipeline, NOON, **span)
    assert pipeline.read(HOLES) == []


def test_what_the_provider_reaches_no_more_is_said_and_left_alone(pipeline: Pipeline) -> None:
    """The hole is out of reach, keeps its tries, and costs no request; it is not explained."""
    asked_at = datetime.now(UTC)
    near = timedelta(days=(asked_at - NOON).days + 60)
    run(pipeline, NOON)
    span = {"history_from": "2023-10-02", "history_to": "2023-10-16"}
    run(pipeline, NOON, MockProvider({"MOCK_FAULTS": "*:timeout"}), **span)
    tries = [row["tries"] for row in pipeline.read(HOLES)]
    last = run(pipeline, NOON, Terms(near))
    holes = pipeline.read(HOLES)
    assert {(row["reason"], row["next_check_at"]) for row in holes} == {("out_of_reach", None)}
    assert [row["tries"] for row in holes] == tries
    assert asks_for_the_tail_alone(pipeline, last)
    with pipeline.engine.connect() as connection:
        issues = read_flaws(connection, [1], Interval.DAY)
    assert [issue.reason for issue in issues] == ["unexplained_hole"]


def test_old_holes_stay_within_the_verification_share(pipeline: Pipeline) -> None:
    """A provider that grants ten calls a day is not asked for what is not needed."""
    limited = Terms(None, calls_a_day=10)  # 5 % of ten is none
    run(pipeline, NOON, limited)
    span = {"history_from": "2023-10-02", "history_to": "2023-10-16"}
    run(pipeline, NOON, MockProvider({"MOCK_FAULTS": "*:timeout"}), **span)
    last = run(pipeline, NOON, limited)
    assert asks_for_the_tail_alone(pipeline, last)
    assert len(pipeline.read(HOLES)) == 2
    plenty = run(pipeline, NOON, Terms(None, calls_a_day=100))
    assert ("1d", "retry") in list_purposes(pipeline, plenty)
    spent = "SELECT verifications_today FROM market_data.provider_budget"
    assert pipeline.read(spent)[0]["verifications_today"] == 2


def test_history_that_was_loaded_late_is_read_again(pipeline: Pipeline) -> None:
    """A page a day from the oldest bar on; the ledger keeps how far it is."""
    run(pipeline, NOON)
    run(pipeline, NOON, history_from="2023-01-02")
    first = pipeline.read("SELECT min(first_bar_at) AS at FROM market_data.market_coverage")[0]
    assert asks_for_the_tail_alone(pipeline, run(pipeline, NOON))
    reached = first["at"]
    for days in range(1, 4):
        last = run(pipeline, NOON + days * DAY)
        pages = [
            (row["starts_at"], row["ends_at"])
            for row in pipeline.read(REQUESTS, run_id=last)
            if (row["interval"], row["purpose"]) == ("1h", "verify")
        ]
        assert (reached, reached + 60 * DAY) in pages
        reached += 60 * DAY
        turn = "SELECT round FROM market_data.market_coverage WHERE interval = '1h'"
        assert datetime.fromisoformat(pipeline.read(turn)[0]["round"]["reached"]) == reached
        assert asks_for_the_tail_alone(pipeline, run(pipeline, NOON + days * DAY))


def test_a_page_of_the_turn_that_fails_does_not_hold_the_turn_up(pipeline: Pipeline) -> None:
    """It is noted, the market is not short for it, and the next page comes a day later."""
    run(pipeline, NOON)
    run(pipeline, NOON, history_from="2023-06-05")
    broken = MockProvider({"MOCK_FAULTS": "BTC-USD:timeout@2023-06-05..2023-07-01"})
    failed = run(pipeline, NOON + DAY, broken)
    assert pipeline.receipt(failed)["outcome"] == "ok"
    later = run(pipeline, NOON + 2 * DAY, broken)
    assert pipeline.receipt(later)["outcome"] == "ok"
    skipped = "SELECT round FROM market_data.market_coverage WHERE interval = '1h'"
    turn = pipeline.read(skipped)[0]["round"]
    assert len(turn["skipped"]) == 1
    assert turn["reached"] > turn["skipped"][0][1]
    assert pipeline.read(HOLES) == []


def test_what_a_calendar_does_not_know_is_named(pipeline: Pipeline) -> None:
    """Years before the first session are not asked for: the plan and the receipt say so."""
    span = {"history_from": "1985-01-07", "history_to": "1990-01-10"}
    told = pipeline.receipt(run(pipeline, NOON, symbol="SPX", **span))
    assert told["outcome"] == "ok"
    assert "nothing before 1990-01-01 is asked for: XNYS begins there" in told["reason"]
    later = {"history_from": "1990-01-01", "history_to": "1990-01-16"}
    assert pipeline.receipt(run(pipeline, NOON, symbol="SPX", **later))["reason"] is None
    request = build_request(datetime.now(UTC), ["SPX", "BTC-USD"], "mock", **span)
    routes = route_markets(request.symbols, ["mock"], {})
    with pipeline.engine.connect() as connection:
        (estimate,) = estimate_request(connection, routes, request, {})
    (cut,) = estimate.describe_cuts()
    assert cut.startswith("SPX: nothing before 1990-01-01")


def test_the_end_of_a_calendar_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that lives for years must not take the end of its calendar for a closure."""
    schedule = build_schedule("XNYS")
    monkeypatch.setitem(sessions._known, "XNYS", schedule[schedule["session_date"] < "2024-03-01"])
    market = MockProvider({}).find_market("SPX")
    assert market is not None
    cut = describe_cut(market, Window(NOON - 30 * DAY, NOON))
    assert cut == "nothing after 2024-03-01 is asked for: XNYS ends there"
    assert describe_cut(market, Window(NOON - 30 * DAY, datetime(2024, 3, 4, tzinfo=UTC))) is None
