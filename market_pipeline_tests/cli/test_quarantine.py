"""``market-pipeline quarantine``: impossible bars listed, shown, replayed and discarded."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pandas as pd
import pytest
from click.testing import Result
from sqlalchemy import Engine, text

from market_pipeline.domain.records import BAR_COLUMNS, build_bar_frame
from market_pipeline.storage.bars.quarantine import record_rejected
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.frames import reject_frame

Command = Callable[..., Result]
NOW = datetime(2024, 6, 1, tzinfo=UTC)
# A Monday, so that the week is rebuilt from this one day.
MONDAY = {
    "interval": "1d", "open_time": "2024-05-06T00:00Z", "close_time": "2024-05-07T00:00Z",
    "open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 5.0, "volume_kind": "base",
    "trades": 3.0, "source_kind": "traded", "is_final": True,
}  # fmt: skip
LATE_HOUR = {"interval": "1h", "open_time": "2024-05-06T13:30Z", "close_time": "2024-05-06T14:30Z"}
MARKETS = """
    INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base, quote, venue,
        calendar, intervals, price_basis)
    SELECT 'mock', symbol, symbol, symbol, 'X', 'USD', 'mock', calendar, '{1h,1d}', 'unadjusted'
    FROM (VALUES ('BTC-USD', '24/7'), ('SPX', 'XNYS')) one (symbol, calendar)"""
HOLE = """
    INSERT INTO market_data.coverage_hole (market_id, interval, starts_at, ends_at, reason, tries,
        first_seen_at, last_checked_at)
    VALUES (1, '1d', '2024-05-06', '2024-05-08', 'quarantined', 1, now(), now())"""
STORED = """
    SELECT format('%s %s %s', interval, open_time::date, close)
    FROM market_data.market_aggregate ORDER BY 1"""
VERSIONS = """
    SELECT interval FROM market_data.dataset_version
    JOIN market_data.ingestion_run USING (run_id) ORDER BY 1"""
STATUSES = "SELECT status FROM market_data.quarantined_row ORDER BY row_id"
HOLES = "SELECT starts_at::date::text FROM market_data.coverage_hole ORDER BY 1"


@pytest.fixture
def command(invoke: Command, engine: Engine, database_url: str) -> Command:
    """Runs ``market-pipeline`` in this process, on a database that has two markets."""
    execute(engine, MARKETS)
    return partial(invoke, DATABASE_URL=database_url)


def quarantine(engine: Engine, *bars: dict[str, Any], symbol: str = "BTC-USD") -> None:
    """Put bars into the quarantine, as if an older version had refused them."""
    changed = [{**MONDAY, **bar} for bar in bars]
    columns: dict[str, Any] = {name: [bar[name] for bar in changed] for name in BAR_COLUMNS}
    for name in ("open_time", "close_time"):
        columns[name] = pd.to_datetime(columns[name], utc=True, format="ISO8601")
    query = text("SELECT market_id FROM market_data.market WHERE symbol = :symbol")
    with engine.begin() as connection:
        market_id = connection.execute(query, {"symbol": symbol}).scalar_one()
        for at in range(len(bars)):  # One after the other, so that row ids follow.
            rejected = build_bar_frame(columns).iloc[at : at + 1]
            rejected = rejected.assign(rule="off_grid", detail="as it was")
            moment = NOW + timedelta(seconds=at)
            record_rejected(connection, uuid4(), market_id, reject_frame(rejected), moment)


def execute(engine: Engine, statement: str) -> None:
    """Run a statement in a transaction."""
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_a_row_that_is_good_now_is_stored_as_an_ingestion_would(
    command: Command, engine: Engine
) -> None:
    """Bar, week, version, coverage and receipt; the row says that it was replayed."""
    quarantine(engine, {})
    covered = "INSERT INTO market_data.market_coverage (market_id, interval) VALUES (1, '1d')"
    execute(engine, covered)
    execute(engine, HOLE)
    replayed = command("quarantine", "replay", "1")
    assert (replayed.exit_code, replayed.stderr) == (0, "")
    assert "1 rows replayed, 0 still bad" in replayed.stdout
    assert read_column(engine, STORED) == ["1d 2024-05-06 11", "1w 2024-05-06 11"]
    assert read_column(engine, STATUSES) == ["replayed"]
    assert read_column(engine, VERSIONS) == ["1d", "1w"]
    # Of two missing days the first came; it is settled, and the second is still missed.
    assert read_column(engine, HOLES) == ["2024-05-07"]
    settled = "SELECT settled::text FROM market_data.market_coverage"
    assert read_column(engine, settled) == ['{["2024-05-06 00:00:00+00","2024-05-07 00:00:00+00")}']
    assert read_column(engine, "SELECT bars FROM market_data.market_coverage") == [1]
    run_id = replayed.stdout.rsplit(" ", 1)[1].strip()
    receipt = json.loads(command("runs", "show", run_id, "--json").stdout)
    assert receipt["outcome"] == "ok"
    (row,) = receipt["markets"]
    assert (row["symbol"], row["inserted"], row["derived_inserted"]) == ("BTC-USD", 1, 1)
    assert read_column(engine, "SELECT count(*) FROM market_data.fetch_claim") == [0]


def test_a_row_that_is_still_bad_names_its_rule_and_the_good_ones_land(
    command: Command, engine: Engine
) -> None:
    """Exit 3 when some were good, 1 when none was; a bad row can be tried again."""
    quarantine(engine, {"high": 1.0}, {})
    some = command("quarantine", "replay", "--all")
    assert some.exit_code == 3
    assert some.stderr.startswith("Row 1 is still bad: high_below_body: open=10.0, high=1.0")
    assert "1 rows replayed, 1 still bad" in some.stdout
    assert read_column(engine, STATUSES) == ["open", "replayed"]
    none = command("quarantine", "replay", "1")
    assert none.exit_code == 1
    assert "0 rows replayed, 1 still bad" in none.stdout
    assert read_column(engine, "SELECT count(*) FROM market_data.ingestion_run") == [1]


def test_a_row_is_validated_by_its_own_markets_sessions(command: Command, engine: Engine) -> None:
    """New York's hours begin at half past; those of a market that never closes do not."""
    quarantine(engine, LATE_HOUR)
    quarantine(engine, LATE_HOUR, symbol="SPX")
    replayed = command("quarantine", "replay", "--all")
    assert replayed.exit_code == 3
    assert replayed.stderr.startswith("Row 1 is still bad: off_grid")
    assert read_column(engine, STATUSES) == ["open", "replayed"]
    assert read_column(engine, STORED) == ["1h 2024-05-06 11"]


def test_a_row_never_replaces_a_stored_bar(command: Command, engine: Engine) -> None:
    """What was accepted since is worth more; the same values again are no contradiction."""
    quarantine(engine, {})
    assert command("quarantine", "replay", "1").exit_code == 0
    quarantine(engine, {"close": 11.5}, {"is_final": False})
    replayed = command("quarantine", "replay", "--all")
    assert replayed.stderr.startswith("Row 2 is still bad: conflicting_duplicate: is_final=True")
    assert read_column(engine, STATUSES) == ["replayed", "open", "replayed"]
    assert read_column(engine, STORED) == ["1d 2024-05-06 11", "1w 2024-05-06 11"]
    final = "SELECT bool_and(is_final) FROM market_data.market_aggregate WHERE interval = '1d'"
    assert read_column(engine, final) == [True]


def test_of_two_good_rows_of_one_bar_the_last_seen_wins(command: Command, engine: Engine) -> None:
    """The other contradicts it."""
    quarantine(engine, {"close": 10.5}, {"close": 11.5})
    replayed = command("quarantine", "replay", "--all")
    assert replayed.stderr.startswith("Row 1 is still bad: conflicting_duplicate")
    assert read_column(engine, STORED) == ["1d 2024-05-06 11.5", "1w 2024-05-06 11.5"]


def test_a_row_of_before_a_split_is_still_bad(command: Command, engine: Engine) -> None:
    """Its prices are in another scale than the series is now."""
    quarantine(engine, {})
    execute(
        engine,
        "INSERT INTO market_data.market_event (market_id, kind, ratio, detail, detected_at, run_id)"
        " VALUES (1, 'split', 0.1, '', '2024-06-02', gen_random_uuid())",
    )
    replayed = command("quarantine", "replay", "1")
    assert replayed.exit_code == 1
    assert replayed.stderr.startswith("Row 1 is still bad: before_split")
    assert read_column(engine, STORED) == []


def test_rows_without_a_time_and_of_any_year_are_still_bad(
    command: Command, engine: Engine
) -> None:
    """Nothing in a payload stops the others."""
    quarantine(
        engine, {"open_time": None}, {"open_time": "1890-01-01T00:00Z"}, {"close": float("nan")}, {}
    )
    replayed = command("quarantine", "replay", "--all")
    assert replayed.exit_code == 3, replayed.stderr
    assert [line.split(": ")[1] for line in replayed.stderr.splitlines()] == [
        "absurd_time", "absurd_time", "not_finite",
    ]  # fmt: skip


def test_unknown_and_closed_rows_are_refused_and_nothing_is_written(
    command: Command, engine: Engine
) -> None:
    """Also when the others named are fine."""
    quarantine(engine, {}, {"close": 11.5})
    discarded = command("quarantine", "discard", "2")
    assert (discarded.exit_code, discarded.stdout) == (0, "1 rows discarded\n")
    for verb in ("replay", "discard"):
        unknown = command("quarantine", verb, "1", "77", "99")
        assert unknown.exit_code == 1
        assert unknown.stderr.startswith("Error: row 77, 99 is not in the quarantine")
        closed = command("quarantine", verb, "1", "2")
        assert closed.exit_code == 1
        assert closed.stderr.startswith("Error: row 2 was discarded at ")
    assert command("quarantine", "show", "77").exit_code == 1
    assert read_column(engine, STATUSES) == ["open", "discarded"]
    assert read_column(engine, STORED) == []


def test_nothing_to_replay_is_no_error(command: Command) -> None:
    """An empty quarantine is what one hopes for."""
    replayed = command("quarantine", "replay", "--all")
    assert (replayed.exit_code, replayed.stdout) == (0, "0 rows replayed, 0 still bad\n")
    assert command("quarantine", "list").stdout == "No such rows in the quarantine\n"
    assert json.loads(command("quarantine", "list", "--json").stdout) == []


def test_rows_are_listed_and_shown(command: Command, engine: Engine) -> None:
    """The last seen first, filtered, limited, and whole as JSON."""
    quarantine(engine, {}, {"close": float("inf"), "open_time": None})
    quarantine(engine, LATE_HOUR, symbol="SPX")
    rows = json.loads(command("quarantine", "list", "--json").stdout)
    assert [row["row_id"] for row in rows] == [2, 3, 1]
    assert [row["symbol"] for row in rows] == ["BTC-USD", "SPX", "BTC-USD"]
    assert rows[0]["open_time"] is None
    assert rows[0]["payload"]["close"] == "inf"
    spx = json.loads(command("quarantine", "list", "--json", "--symbols", "SPX").stdout)
    assert [row["row_id"] for row in spx] == [3]
    limited = command("quarantine", "list", "--limit", "2")
    assert "mock:SPX" in limited.stdout
    assert limited.stderr == "There are more than 2: --limit shows more\n"
    command("quarantine", "discard", "1")
    for status, expected in (("open", [2, 3]), ("discarded", [1]), ("all", [2, 3, 1])):
        listed = command("quarantine", "list", "--json", "--status", status)
        assert [row["row_id"] for row in json.loads(listed.stdout)] == expected
    shown = command("quarantine", "show", "3")
    assert "2024-05-06T13:30:00" in shown.stdout
    assert json.loads(command("quarantine", "show", "3", "--json").stdout)["rule"] == "off_grid"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay"], "Name rows, or --all."),
        (["replay", "--all", "1"], "Name rows, or --all."),
        (["discard"], "Name rows."),
        (["show", "0"], "0 is not in the range"),
        (["replay", "x"], "'x'"),
        (["list", "--status", "lost"], "'lost'"),
    ],
)
def test_a_command_that_cannot_be_meant_is_a_usage_error(
    invoke: Callable[..., Result], arguments: list[str], said: str
) -> None:
    """Exit 2 before anything is opened."""
    refused = invoke("quarantine", *arguments)
    assert refused.exit_code == 2
    assert said in " ".join(refused.stderr.split())


def test_a_bad_symbol_is_named(invoke: Callable[..., Result]) -> None:
    """Exit 1, one line, as with every other command."""
    refused = invoke("quarantine", "list", "--symbols", "BTC USD")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: --symbols 'BTC USD': ")
