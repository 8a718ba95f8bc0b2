"""Each check passes and fails on a real database; only keys and order hold the others up."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, create_engine, event, text

from market_pipeline.definitions import build_definitions
from market_pipeline.domain.coverage import ASKED_OFTEN, Hole
from market_pipeline.domain.freshness import find_newest_due
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window
from market_pipeline.orchestration.assets import market_aggregates
from market_pipeline.orchestration.checks import BLOCKING, CHECKS, check_market_aggregates
from market_pipeline.storage.runs.evidence import read_run_evidence
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.orchestration.conftest import Materialise

pytestmark = pytest.mark.usefixtures("without_pictures")

MORNING = "2024-03-15T10:00Z"
SYMBOLS = ["BTC-USD", "SPX"]
REASONS = (
    "fetch_failed", "provider_empty", "no_trades", "quarantined", "before_first", "after_last",
    "out_of_reach",
)  # fmt: skip
BROKEN = "2024-03-13T00:00:00+00:00"
REPEAT_BARS = """
    ALTER TABLE market_data.market_aggregate DROP CONSTRAINT market_aggregate_pkey;
    CREATE FUNCTION repeat_bar() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO market_data.market_aggregate SELECT NEW.*; RETURN NULL; END $$;
    CREATE TRIGGER repeat_bar AFTER INSERT ON market_data.market_aggregate FOR EACH ROW
        WHEN (pg_trigger_depth() = 0 AND NEW.open_time = '2024-03-13') EXECUTE FUNCTION repeat_bar()
"""
SPOIL_BARS = """
    ALTER TABLE market_data.market_aggregate DROP CONSTRAINT {constraint};
    CREATE FUNCTION spoil_bar() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        NEW.{column} = {value}; RETURN NEW; END $$;
    CREATE TRIGGER spoil_bar BEFORE INSERT ON market_data.market_aggregate FOR EACH ROW
        WHEN (NEW.open_time = '2024-03-13') EXECUTE FUNCTION spoil_bar()
"""
Check = Callable[..., dict[str, dg.AssetCheckEvaluation]]


@pytest.fixture
def database(engine: Engine) -> Engine:
    """The market tables, there before the first run."""
    return engine


@pytest.fixture
def ingest(database: Engine, materialise: Materialise) -> Callable[[], dg.ExecuteInProcessResult]:
    """Runs the button over two markets, one of them with sessions."""
    assert database
    return lambda: materialise(symbols=SYMBOLS, window_end=MORNING, lookback_days=7)


@pytest.fixture
def check(database_url: str, instance: dg.DagsterInstance, ingest: Callable[[], Any]) -> Check:
    """Ingests, and then runs checks alone, which check the last receipt."""
    assert ingest().success
    selection = dg.AssetSelection.checks(check_market_aggregates)
    alone = dg.Definitions(jobs=[dg.define_asset_job("checks", selection=selection)])
    job = dg.Definitions.merge(build_definitions(), alone).resolve_job_def("checks")
    assert database_url

    def run(window_end: str = MORNING) -> dict[str, dg.AssetCheckEvaluation]:
        request = {"symbols": SYMBOLS, "window_end": window_end, "lookback_days": 7}
        config = {"resources": {"request": {"config": request}}}
        return list_evaluations(
            job.execute_in_process(config, instance=instance, raise_on_error=False)
        )

    return run


def list_evaluations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    """Return what each check of the bars said."""
    evaluations = result.get_asset_check_evaluations()
    bars = [one for one in evaluations if one.asset_key == market_aggregates.key]
    return {one.check_name: one for one in bars}


def read_numbers(one: dg.AssetCheckEvaluation) -> dict[str, Any]:
    """Return a check's numbers."""
    kept = {name: entry.value for name, entry in one.metadata.items()}
    return {name: value for name, value in kept.items() if isinstance(value, int | float)}


def list_violations(one: dg.AssetCheckEvaluation) -> list[Mapping[str, Any]]:
    """Return the lines of what a check objects to."""
    table = one.metadata.get("objections")
    return [record.data for record in table.value.records] if table else []  # type: ignore[union-attr]


def find_failed(evaluations: Mapping[str, dg.AssetCheckEvaluation]) -> set[str]:
    """Return the checks that did not pass."""
    return {name for name, one in evaluations.items() if not one.passed}


def execute(engine: Engine, statements: str, **values: object) -> None:
    """Change the database."""
    with engine.begin() as connection:
        connection.execute(text(statements), values)


def add_hole(engine: Engine, symbol: str, reason: str, tries: int, start: str, end: str) -> None:
    """Put a hole into the ledger."""
    execute(
        engine,
        "INSERT INTO market_data.coverage_hole (market_id, interval, starts_at, ends_at, reason,"
        " tries, first_seen_at, last_checked_at) SELECT market_id, '1d', :start, :end, :reason,"
        " :tries, now(), now() FROM market_data.market WHERE symbol = :symbol",
        symbol=symbol, reason=reason, tries=tries, start=start, end=end,
    )  # fmt: skip


def set_receipt(engine: Engine, symbol: str, **values: object) -> None:
    """Change a market's receipts."""
    changes = ", ".join(f"{name} = :{name}" for name in values)
    query = (
        f"UPDATE market_data.ingestion_run_market SET {changes} WHERE market_id ="
        " (SELECT market_id FROM market_data.market WHERE symbol = :symbol)"
    )
    execute(engine, query, symbol=symbol, **values)


def test_a_good_run_passes_every_check_with_its_numbers(
    ingest: Callable[[], dg.ExecuteInProcessResult], database: Engine
) -> None:
    """One step says it all: what was looked at is counted, so that nothing passes unseen."""
    result = ingest()
    evaluations = list_evaluations(result)
    assert set(evaluations) == set(CHECKS)
    assert find_failed(evaluations) == set()
    (stored,) = read_column(database, "SELECT count(*) FROM market_data.market_aggregate")
    query = "SELECT sum(received) FROM market_data.ingestion_run_market"
    (received,) = read_column(database, query)
    assert {name: read_numbers(one) for name, one in evaluations.items()} == {
        "ingestion_complete": {"run_markets": 2, "short": 0},
        "bars_fresh": {"series": 4, "late": 0},
        "no_unexplained_holes": {"holes": 0, "never_asked": 0},
        "keys_unique": {"bars": stored, "repeated": 0},
        "ohlc_in_order": {"bars": stored, "disordered": 0},
        "no_spikes": {"spikes": 0},
        "quarantine_rate": {"received": received, "quarantined": 0, "quarantine_ratio": 0.0},
        "sources_agree": {"pairs": 0, "differ": 0},
    }
    steps = {str(one.step_key) for one in result.get_step_success_events()}
    assert {step for step in steps if "check" in step} == {
        "market_aggregates_checks", "output_checks",
    }  # fmt: skip


def test_a_later_run_looks_at_what_it_wrote_alone(
    ingest: Callable[[], dg.ExecuteInProcessResult], materialise: Materialise, database: Engine
) -> None:
    """Neither at the bars it only read again nor at those between; none written, none checked."""
    ingest()
    later = materialise(symbols=SYMBOLS, window_end="2024-03-15T12:00Z", lookback_days=7)
    query = text("SELECT count(*) FROM market_data.market_aggregate WHERE run_id = :run_id")
    with database.connect() as connection:
        written = connection.execute(query, {"run_id": later.run_id}).scalar_one()
    evaluations = list_evaluations(later)
    assert read_numbers(evaluations["keys_unique"]) == {"bars": written, "repeated": 0}
    assert written > 2
    same = materialise(symbols=SYMBOLS, window_end="2024-03-15T12:00Z", lookback_days=7)
    assert read_numbers(list_evaluations(same)["ohlc_in_order"]) == {"bars": 0, "disordered": 0}


def test_checks_alone_check_the_last_receipt(check: Check, database: Engine) -> None:
    """The UI's button on a check has no receipt of its own; the result says whose it was."""
    (run_id,) = read_column(database, "SELECT run_id::text FROM market_data.ingestion_run")
    evaluations = check()
    assert find_failed(evaluations) == set()
    assert read_numbers(evaluations["keys_unique"])["bars"] > 0
    assert {str(one.metadata["receipt_of_run"].value) for one in evaluations.values()} == {run_id}


@pytest.mark.parametrize(
    ("change", "failed", "numbers", "line"),
    [
        (
            {"outcome": "partial", "reason": "HTTP 503"},
            "ingestion_complete",
            {"run_markets": 2, "short": 1},
            {"outcome": "partial", "reason": "HTTP 503"},
        ),
        ({"spikes": 3}, "no_spikes", {"spikes": 3}, {"spikes": 3}),
        (
            {"received": 100, "quarantined": 2},
            "quarantine_rate",
            {"quarantined": 2},
            {"received": 100, "quarantined": 2},
        ),
    ],
)
def test_what_the_receipt_says_fails_its_check(
    check: Check,
    database: Engine,
    change: dict[str, Any],
    failed: str,
    numbers: dict[str, int],
    line: dict[str, Any],
) -> None:
    """That one alone, as a warning, naming the market."""
    set_receipt(database, "SPX", **change)
    evaluations = check()
    assert find_failed(evaluations) == {failed}
    assert evaluations[failed].severity is dg.AssetCheckSeverity.WARN
    assert read_numbers(evaluations[failed]).items() >= numbers.items()
    assert list_violations(evaluations[failed]) == [{"market": "SPX", "provider": "mock", **line}]


def add_source(engine: Engine, symbol: str, provider: str, factor: float) -> None:
    """Give a symbol a second market, whose daily bars are those of the first times a factor."""
    facts = "name, base, quote, venue, calendar, intervals, price_basis"
    execute(
        engine,
        f"""INSERT INTO market_data.market
            (provider, provider_market_id, symbol, is_primary, {facts})
        SELECT :provider, :provider || symbol, symbol, false, {facts} FROM market_data.market
        WHERE symbol = :symbol AND is_primary""",
        symbol=symbol, provider=provider,
    )  # fmt: skip
    values = "interval, open_time, close_time, volume_kind, source_kind, is_final, known_at"
    execute(
        engine,
        f"""INSERT INTO market_data.market_aggregate
            (market_id, open, high, low, close, dataset_version, {values})
        SELECT second.market_id, open * :factor, high * :factor, low * :factor, close * :factor,
            dataset_version, {values}
        FROM market_data.market_aggregate JOIN market_data.market USING (market_id)
        JOIN market_data.market second USING (symbol)
        WHERE interval = '1d' AND symbol = :symbol AND second.provider = :provider
            AND market.is_primary""",
        symbol=symbol, provider=provider, factor=factor,
    )  # fmt: skip


def test_d15_sources_that_differ_are_named_with_both_closes(check: Check, database: Engine) -> None:
    """Ten basis points are usual for Bitcoin, and too much for an index."""
    for symbol in SYMBOLS:
        add_source(database, symbol, "witness", 1.001)
    evaluations = check()
    assert find_failed(evaluations) == {"sources_agree"}
    found = evaluations["sources_agree"]
    assert found.severity is dg.AssetCheckSeverity.WARN
    assert read_numbers(found) == {"pairs": 2, "differ": 1}
    (line,) = list_violations(found)
    assert (line["market"], line["first"], line["second"]) == ("SPX", "mock", "witness")
    assert (line["median bp"], line["largest bp"]) == (10.0, 10.0)
    assert line["second close"] == pytest.approx(line["first close"] * 1.001)
    assert "nearly every bar differs" in line["may be"]
    assert read_numbers(check("2025-03-15T10:00Z")["sources_agree"]) == {"pairs": 2, "differ": 0}


def test_one_percent_in_quarantine_is_borne(check: Check, database: Engine) -> None:
    """A single row of a hundred is what happens."""
    set_receipt(database, "SPX", received=100, quarantined=1)
    assert find_failed(check()) == set()


def test_a_market_that_received_nothing_has_no_rate(check: Check, database: Engine) -> None:
    """Nought of nought is not above one percent."""
    execute(database, "UPDATE market_data.ingestion_run_market SET received = 0")
    evaluations = check()
    assert find_failed(evaluations) == set()
    assert read_numbers(evaluations["quarantine_rate"])["quarantine_ratio"] == 0


def test_an_unexplained_hole_is_named_with_its_span(check: Check, database: Engine) -> None:
    """Market, interval, span, reason and tries; an explained one beside it is none."""
    add_hole(database, "SPX", "fetch_failed", 2, "2024-03-04", "2024-03-06")
    add_hole(database, "BTC-USD", "before_first", 2, "2024-03-01", "2024-03-02")
    evaluations = check()
    assert find_failed(evaluations) == {"no_unexplained_holes"}
    assert read_numbers(evaluations["no_unexplained_holes"]) == {"holes": 1, "never_asked": 0}
    assert list_violations(evaluations["no_unexplained_holes"]) == [
        {
            "market": "SPX", "provider": "mock", "interval": "1d", "from": "2024-03-04 00:00",
            "to": "2024-03-06 00:00", "reason": "fetch_failed", "tries": 2,
        }
    ]  # fmt: skip


def test_time_that_nobody_asked_for_is_missing_too(check: Check, database: Engine) -> None:
    """It is listed as a hole is, by the reason that statistics give."""
    execute(
        database,
        """UPDATE market_data.market_coverage
        SET settled = settled + tstzmultirange(tstzrange('2024-01-01Z', '2024-01-03Z'))
        WHERE interval = '1d' AND market_id = (
            SELECT market_id FROM market_data.market WHERE symbol = 'SPX')""",
    )
    found = check()["no_unexplained_holes"]
    assert read_numbers(found) == {"holes": 0, "never_asked": 1}
    (line,) = list_violations(found)
    assert (line["market"], line["from"]) == ("SPX", "2024-01-03 00:00")
    assert line["reason"] == "never_asked"


def test_many_holes_are_counted_and_the_last_are_shown(check: Check, database: Engine) -> None:
    """An event keeps twenty lines, and the whole number."""
    first = datetime(2023, 1, 1, tzinfo=UTC)
    for day in range(25):
        start, end = (first + timedelta(days=2 * day + more) for more in (0, 1))
        add_hole(database, "SPX", "quarantined", 1, start.isoformat(), end.isoformat())
    found = check()["no_unexplained_holes"]
    assert read_numbers(found) == {"holes": 25, "never_asked": 0}
    assert len(list_violations(found)) == 20
    assert list_violations(found)[0]["from"] == "2023-02-18 00:00"


def test_a_hole_is_explained_to_the_check_as_to_the_statistics(
    check: Check, database: Engine
) -> None:
    """The database's condition and the domain's are one, for every reason and number of tries."""
    cases = [(reason, tries) for reason in REASONS for tries in (ASKED_OFTEN - 1, ASKED_OFTEN)]
    unexplained = set()
    for day, (reason, tries) in enumerate(cases):
        start = datetime(2024, 2, 1, tzinfo=UTC) + timedelta(days=day)
        end = start + timedelta(days=1)
        add_hole(database, "SPX", reason, tries, start.isoformat(), end.isoformat())
        if not Hole(Window(start, end), reason, tries, start, start, None).is_explained:
            unexplained.add((reason, tries))
    lines = list_violations(check()["no_unexplained_holes"])
    assert {(line["reason"], line["tries"]) for line in lines} == unexplained


def test_a_series_that_stopped_is_late(check: Check, database: Engine) -> None:
    """By the run's clock: a day later, all four series lack their newest bar."""
    late = check(window_end="2024-03-16T00:00Z")
    assert find_failed(late) == {"bars_fresh"}
    assert late["bars_fresh"].severity is dg.AssetCheckSeverity.WARN
    lines = [(line["market"], line["interval"]) for line in list_violations(late["bars_fresh"])]
    assert lines == [("BTC-USD", "1h"), ("BTC-USD", "1d"), ("SPX", "1h"), ("SPX", "1d")]
    assert list_violations(late["bars_fresh"])[1] == {
        "market": "BTC-USD", "provider": "mock", "interval": "1d",
        "final to": "2024-03-15 00:00", "expected to": "2024-03-16 00:00",
    }  # fmt: skip
    execute(database, "DELETE FROM market_data.market_coverage WHERE interval = '1d'")
    never = list_violations(check()["bars_fresh"])
    assert [(line["interval"], line["final to"]) for line in never] == [("1d", "never")] * 2


def test_a_bar_that_nobody_has_is_not_waited_for(check: Check, database: Engine) -> None:
    """A delisted market is not late for ever."""
    add_hole(database, "SPX", "before_first", 2, "2024-03-01", "2024-03-02")
    add_hole(database, "SPX", "after_last", 3, "2024-03-15", "2024-03-20")
    late = list_violations(check(window_end="2024-03-16T00:00Z")["bars_fresh"])
    assert ("SPX", "1d") not in [(line["market"], line["interval"]) for line in late]
    add_hole(database, "BTC-USD", "fetch_failed", 3, "2024-03-15", "2024-03-20")
    late = list_violations(check(window_end="2024-03-16T00:00Z")["bars_fresh"])
    assert ("BTC-USD", "1d") in [(line["market"], line["interval"]) for line in late]


@pytest.mark.parametrize(
    ("calendar", "interval", "now", "lag_minutes", "opens", "closes"),
    [
        ("24/7", "1d", "2024-03-15T10:00", 0, "2024-03-14T00:00", "2024-03-15T00:00"),
        ("24/7", "1d", "2024-03-15T00:00", 0, "2024-03-14T00:00", "2024-03-15T00:00"),
        ("24/7", "1d", "2024-03-15T00:34", 35, "2024-03-13T00:00", "2024-03-14T00:00"),
        ("24/7", "1d", "2024-03-15T00:35", 35, "2024-03-14T00:00", "2024-03-15T00:00"),
        ("24/7", "1h", "2024-03-15T10:59", 0, "2024-03-15T09:00", "2024-03-15T10:00"),
        # Friday's session closes at 20:00 UTC and is the newest until Monday's close.
        ("XNYS", "1d", "2024-03-15T19:59", 0, "2024-03-14T00:00", "2024-03-14T20:00"),
        ("XNYS", "1d", "2024-03-18T19:59", 0, "2024-03-15T00:00", "2024-03-15T20:00"),
        ("XNYS", "1h", "2024-03-17T12:00", 0, "2024-03-15T19:30", "2024-03-15T20:00"),
        # A half day ends at 18:00 UTC; New Year's Day has no session.
        ("XNYS", "1d", "2024-11-29T18:00", 0, "2024-11-29T00:00", "2024-11-29T18:00"),
        ("XNYS", "1d", "2024-01-01T23:00", 0, "2023-12-29T00:00", "2023-12-29T21:00"),
    ],
)
def test_the_newest_bar_due_follows_calendar_and_provider(
    calendar: str, interval: str, now: str, lag_minutes: int, opens: str, closes: str
) -> None:
    """Weekends, holidays, half days, and the minutes a provider takes to publish."""
    clock = datetime.fromisoformat(now).replace(tzinfo=UTC)
    lag = timedelta(minutes=lag_minutes)
    due = find_newest_due(calendar, Interval(interval), clock, clock, lag)
    expected = [datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in (opens, closes)]
    assert due == Window(*expected)


def test_of_a_span_of_history_its_last_bar_is_due() -> None:
    """A run over 2015 is not late because it is 2024."""
    clock, end = datetime(2024, 3, 15, tzinfo=UTC), datetime(2015, 2, 1, tzinfo=UTC)
    due = find_newest_due("24/7", Interval.DAY, end, clock, timedelta(0))
    assert due == Window(datetime(2015, 1, 31, tzinfo=UTC), end)


@pytest.mark.owner
def test_a_repeated_key_fails_the_run_and_stops_the_statistics(
    ingest: Callable[[], dg.ExecuteInProcessResult], database: Engine
) -> None:
    """Without its constraint the table takes a bar twice; nothing is computed from that."""
    execute(database, REPEAT_BARS)
    result = ingest()
    assert not result.success
    evaluations = list_evaluations(result)
    assert find_failed(evaluations) == {"keys_unique"}
    assert set(evaluations) == set(CHECKS)
    assert evaluations["keys_unique"].severity is dg.AssetCheckSeverity.ERROR
    assert read_numbers(evaluations["keys_unique"])["repeated"] == 3
    lines = list_violations(evaluations["keys_unique"])
    named = {
        (line["market"], line["interval"], line["open time"], line["copies"]) for line in lines
    }
    assert named == {
        ("BTC-USD", "1d", BROKEN, 2), ("BTC-USD", "1h", BROKEN, 2), ("SPX", "1d", BROKEN, 2),
    }  # fmt: skip
    made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert made == {"markets", "market_aggregates"}


@pytest.mark.owner
@pytest.mark.parametrize(
    ("constraint", "column", "value"),
    [
        ("low_is_lowest", "low", "NEW.high * 2"),
        ("low_is_lowest", "low", "-1"),
        ("low_is_lowest", "low", "'NaN'"),
        ("high_is_highest", "high", "NEW.low / 2"),
        ("high_is_highest", "high", "'Infinity'"),
    ],
)
def test_prices_out_of_order_fail_the_run_and_stop_the_statistics(
    ingest: Callable[[], dg.ExecuteInProcessResult],
    database: Engine,
    constraint: str,
    column: str,
    value: str,
) -> None:
    """Without its constraint the table takes an impossible bar; nothing is computed from that."""
    execute(database, SPOIL_BARS.format(constraint=constraint, column=column, value=value))
    result = ingest()
    assert not result.success
    evaluations = list_evaluations(result)
    assert find_failed(evaluations) == {"ohlc_in_order"}
    lines = list_violations(evaluations["ohlc_in_order"])
    # A low of nothing and an infinite high reach into the week.
    assert read_numbers(evaluations["ohlc_in_order"])["disordered"] == len(lines) >= 3
    named = {(line["market"], line["interval"], line["open time"]) for line in lines}
    assert named >= {(market, "1d", BROKEN) for market in SYMBOLS}


def test_only_keys_and_order_block() -> None:
    """A market that is short, late or odd does not keep the others from their statistics."""
    specs = {spec.name: spec for spec in check_market_aggregates.check_specs}
    assert {name for name, spec in specs.items() if spec.blocking} == BLOCKING
    assert {"keys_unique", "ohlc_in_order"} == BLOCKING
    assert all(spec.description for spec in specs.values())


@pytest.fixture
def statements(database: Engine) -> Iterator[list[str]]:
    """The statements that the engine sends."""
    sent: list[str] = []
    event.listen(database, "before_cursor_execute", lambda *call: sent.append(call[2]))
    yield sent
    sent.clear()


def test_the_evidence_takes_few_questions_and_scans_no_table(
    check: Check, database: Engine, statements: list[str]
) -> None:
    """Six round trips for any number of markets, bars by their primary key."""
    assert check
    (run_id,) = read_column(database, "SELECT run_id FROM market_data.ingestion_run")
    statements.clear()
    with database.connect() as connection:
        read_run_evidence(connection, run_id)  # type: ignore[arg-type]
    assert len(statements) <= 6


def test_the_bars_are_found_by_their_key(check: Check, database_url: str) -> None:
    """However many bars there are, those of the run are looked up where its versions say."""
    from market_pipeline.storage.runs import evidence

    assert check
    engine = create_engine(database_url)
    with engine.begin() as connection:
        run_id = connection.execute(text("SELECT run_id FROM market_data.ingestion_run")).scalar()
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        query = text(f"EXPLAIN {evidence._BARS.text}")
        plan = "\n".join(connection.execute(query, {"run_id": run_id}).scalars())
    engine.dispose()
    assert "Seq Scan" not in plan, plan
    assert "market_aggregate_pkey" in plan
    assert "dataset_version_market" in plan


def test_a_symbol_that_no_provider_serves_is_a_short_market(
    database: Engine, materialise: Materialise
) -> None:
    """The run goes on, and its check names the symbol with the reason."""
    done = materialise(symbols=["BTC-USD", "X:FOO"], window_end=MORNING, lookback_days=7)
    assert done.success
    found = list_evaluations(done)["ingestion_complete"]
    assert not found.passed
    (line,) = found.metadata["objections"].value.records  # type: ignore[union-attr]
    assert (line.data["market"], line.data["outcome"]) == ("X:FOO", "failed")
    assert "no provider serves it" in str(line.data["reason"])
    assert read_column(database, "SELECT outcome FROM market_data.ingestion_run") == ["partial"]
