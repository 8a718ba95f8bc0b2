"""``market-pipeline ingest`` and ``runs``: what is printed where, and the exit codes."""

import json
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from market_pipeline_tests.databases import read_column
from market_pipeline_tests.replay import ReplayServer, answer_with

Command = Callable[..., "subprocess.CompletedProcess[str]"]
NOT_FOUND = answer_with(b'{"error": "gone"}', 404)
UNAUTHORISED = answer_with(b'{"error": "no key"}', 401)
LIVE = ("--provider", "coingecko,yahoo", "--symbols", "BTC-USD,SPX", "--window-end", "2014-12-31")
STORED = """
    SELECT DISTINCT symbol FROM market_data.market_aggregate
    JOIN market_data.market USING (market_id)"""
NOISE = ("Traceback", "DEBUG", "Stack Trace", "STEP_FAILURE", "dagster - ")


@pytest.fixture
def providers() -> Iterator[ReplayServer]:
    """CoinGecko and Yahoo as recorded, at the end of 2014."""
    with ReplayServer(now=datetime(2014, 12, 31, tzinfo=UTC)) as server:
        yield server


def assert_quiet(stderr: str) -> None:
    """Nothing of Dagster's own log, nor a traceback."""
    assert [word for word in NOISE if word in stderr] == []


def test_a_run_prints_a_line_for_each_market_and_its_receipt(command: Command) -> None:
    """Progress on stderr, tables on stdout; `runs` shows the same again."""
    ran = command("ingest", "--window-end", "2024-03-15", "--lookback-days", "10")

    assert ran.returncode == 0, ran.stderr
    assert_quiet(ran.stderr)
    progress = sorted(map(json.loads, ran.stderr.splitlines()), key=lambda line: line["market"])
    assert [line["market"] for line in progress] == ["BTC-USD", "ETH-USD", "SPX"]
    assert all(" inserted, 0 updated, 0 unchanged" in line["event"] for line in progress)
    assert {line["provider"] for line in progress} == {"mock"}
    assert "market_roi_statistic" in ran.stdout
    assert ran.stdout.rstrip().endswith(": ok")

    (listed,) = json.loads(command("runs", "--json").stdout)
    assert listed["outcome"] == "ok"
    assert listed["ok"] == listed["markets"] == 3
    shown = command("runs", "show", listed["run_id"])
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, ran.stdout, "")


def test_a12_one_market_that_fails_does_not_lose_the_others(
    command: Command, providers: ReplayServer, project_environment: dict[str, str]
) -> None:
    """Exit 3, stdout pure JSON with the reason; the other market's bars are there."""
    providers.misbehave(NOT_FOUND, times=9, path="/yahoo")

    ran = command("ingest", *LIVE, "--json", **providers.environ)

    assert ran.returncode == 3, ran.stderr
    assert_quiet(ran.stderr)
    receipt = json.loads(ran.stdout)
    markets = {row["symbol"]: row for row in receipt["markets"]}
    assert receipt["outcome"] == "partial"
    assert markets["BTC-USD"]["outcome"] == "ok"
    assert markets["BTC-USD"]["reason"] is None
    assert markets["BTC-USD"]["inserted"] > 900
    assert markets["SPX"]["outcome"] == "failed"
    assert "HTTP 404" in markets["SPX"]["reason"]
    assert read_column(project_environment["DATABASE_URL"], STORED) == ["BTC-USD"]

    shown = command("runs", "show", receipt["run_id"], "--json")
    assert json.loads(shown.stdout) == receipt


def test_no_live_price_at_all_is_partial(command: Command, providers: ReplayServer) -> None:
    """History landed; the snapshots' table is empty, and why is said."""
    providers.misbehave(UNAUTHORISED, times=9, path="/coingecko/coins/markets")

    ran = command(
        "ingest", "--provider", "coingecko", "--symbols", "BTC-USD", "--window-end", "2014-12-31",
        "--json", **providers.environ,
    )  # fmt: skip

    assert ran.returncode == 3, ran.stderr
    assert_quiet(ran.stderr)
    assert "BTC-USD: no price: coingecko: /coins/markets answered HTTP 401" in ran.stderr
    tables = {row["table_name"]: row["inserted"] for row in json.loads(ran.stdout)["tables"]}
    assert tables["market_snapshot"] == 0
    assert tables["market_aggregate"] > 900
    assert tables["market_roi_statistic"] > 0


def test_a13_nothing_usable_fails_with_its_causes_and_a_receipt(
    command: Command, providers: ReplayServer, project_environment: dict[str, str]
) -> None:
    """Exit 1, one line with every market's reason, no bars, and the receipts are committed."""
    providers.misbehave(NOT_FOUND, times=9, path="/yahoo")
    providers.misbehave(UNAUTHORISED, times=9, path="/coingecko")

    ran = command("ingest", *LIVE, "--json", **providers.environ)

    assert ran.returncode == 1
    assert_quiet(ran.stderr)
    told = [json.loads(line) for line in ran.stderr.splitlines()][-1]
    assert told["level"] == "error"
    last = told["event"]
    assert last.startswith("market_aggregates: no market gave a usable bar. BTC-USD: ")
    assert "HTTP 401" in last
    assert "SPX: " in last
    assert "HTTP 404" in last
    receipt = json.loads(ran.stdout)
    assert receipt["outcome"] == "failed"
    assert [row["outcome"] for row in receipt["markets"]] == ["failed", "failed"]
    database = project_environment["DATABASE_URL"]
    assert read_column(database, "SELECT outcome FROM market_data.ingestion_run") == ["failed"]
    assert read_column(database, "SELECT count(*) FROM market_data.market_aggregate") == [0]
    assert read_column(database, "SELECT status FROM dagster.runs") == ["FAILURE"]


def test_debug_shows_dagsters_own_log(command: Command, providers: ReplayServer) -> None:
    """Whoever asks for it gets the stack trace."""
    providers.misbehave(NOT_FOUND, times=9, path="/yahoo")
    variables = {**providers.environ, "LOG_LEVEL": "debug"}
    ran = command("ingest", "--provider", "yahoo", "--symbols", "SPX", **variables)
    assert ran.returncode == 1
    assert "Stack Trace" in ran.stderr
    assert "NothingIngestedError" in ran.stderr


def test_runs_before_any_run_and_an_unknown_run_say_so(command: Command) -> None:
    """Exit 1 and one line, not an empty table."""
    assert command("runs", "--json").stdout == "[]\n"
    first = command("runs", "show", "--json")
    assert (first.returncode, first.stdout) == (1, "")
    assert first.stderr == "Error: no run has written anything yet: run `market-pipeline ingest`\n"
    unknown = command("runs", "show", "5e61db24-ac63-46c3-bd30-cd0e7f5b726e")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert (
        "no run has an id that begins with 5e61db24-ac63-46c3-bd30-cd0e7f5b726e" in unknown.stderr
    )


def test_providers_are_listed_with_what_they_lack(command: Command) -> None:
    """JSON alone on stdout; a provider that lacks a setting names it."""
    listed = command("providers", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    rows = {row["provider"]: row for row in json.loads(listed.stdout)}
    assert {"mock", "coingecko", "yahoo", "file"} <= rows.keys()
    assert rows["mock"]["configured"] == "yes"
    assert "FILE_PROVIDER_PATH" in rows["file"]["configured"]
    assert "BTC-USD" in rows["coingecko"]["symbols"]


def test_providers_are_asked_whether_they_can_be_reached(
    command: Command, providers: ReplayServer, project_environment: dict[str, str]
) -> None:
    """One call each, counted in its budget; one of INGESTION_PROVIDER that fails is exit 3."""
    providers.misbehave(UNAUTHORISED, times=9, path="/coingecko")
    asked = command(
        "providers", "--check", "--json", **providers.environ, INGESTION_PROVIDER="coinbase,yahoo"
    )
    assert asked.returncode == 0, asked.stderr
    rows = {row["provider"]: row["reachable"] for row in json.loads(asked.stdout)}
    assert {rows[name] for name in ("mock", "coinbase", "yahoo")} == {"yes"}
    assert "HTTP 401" in rows["coingecko"]
    assert "HTTP 404" in rows["kraken"]
    assert (rows["file"], rows["ccxt"]) == ("", "")
    counted = read_rows(project_environment["DATABASE_URL"], "coinbase")
    assert counted == [1]
    chosen = command("providers", "--check", **providers.environ, INGESTION_PROVIDER="kraken")
    assert chosen.returncode == 3


def read_rows(database: str, provider: str) -> list[int]:
    """Return the calls that a provider's budget has counted today."""
    query = f"SELECT calls_today FROM market_data.provider_budget WHERE provider = '{provider}'"
    return [int(calls) for calls in read_column(database, query)]


def test_traded_bars_and_an_index_come_in_one_run(
    command: Command, project_environment: dict[str, str]
) -> None:
    """The README's quick start: BTC-USD from Coinbase's trades, SPX from Yahoo."""
    with ReplayServer(now=datetime(2014, 12, 31, 12, tzinfo=UTC)) as server:
        ran = command(
            "ingest", "--symbols", "BTC-USD,SPX", "--lookback-days", "30",
            "--window-end", "2014-12-31T12:00", "--json",
            **server.environ, INGESTION_PROVIDER="coinbase,yahoo",
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    kinds = read_column(
        project_environment["DATABASE_URL"],
        "SELECT DISTINCT provider || ' ' || source_kind || ' ' || volume_kind "
        "FROM market_data.market_aggregate JOIN market_data.market USING (market_id) ORDER BY 1",
    )
    assert kinds == ["coinbase traded base", "yahoo traded shares"]


def test_a_symbol_that_no_provider_serves_stops_no_other(command: Command) -> None:
    """The run is partial and names it; plan and backfill do the same; alone it is refused."""
    span = ("--from", "2024-03-01", "--to", "2024-03-10", "--symbols", "BTC-USD,X:FOO", "--json")
    planned = command("plan", *span)
    assert planned.returncode == 3, planned.stderr
    plan = json.loads(planned.stdout)
    assert {row["symbol"] for row in plan["markets"]} == {"BTC-USD"}
    assert plan["unserved"] == {"X:FOO": "mock: not in its catalogue"}
    for ran in (command("backfill", *span), command("ingest", *span[4:])):
        assert ran.returncode == 3, ran.stderr
        receipt = json.loads(ran.stdout)
        markets = {row["symbol"]: row for row in receipt["markets"]}
        assert (receipt["outcome"], receipt["error"]) == ("partial", None)
        assert markets["BTC-USD"]["outcome"] == "ok"
        assert markets["X:FOO"]["outcome"] == "failed"
        reason = "no provider serves it. Asked: mock: not in its catalogue"
        assert markets["X:FOO"]["reason"] == reason
        assert f"X:FOO: {reason}" in ran.stderr
    alone = command("ingest", "--symbols", "X:FOO")
    assert (alone.returncode, alone.stdout) == (1, "")
    assert "no provider serves X:FOO" in alone.stderr


def test_a_receipt_counts_fetched_bars_and_what_was_built_of_them_apart(command: Command) -> None:
    """Of the bars that came each was inserted, updated or unchanged; tables count both."""
    window = ("--window-end", "2024-03-15", "--lookback-days", "10", "--symbols", "BTC-USD")
    ran = command("ingest", *window, "--json")
    receipt = json.loads(ran.stdout)
    (market,) = receipt["markets"]
    fetched = market["inserted"] + market["updated"] + market["unchanged"]
    assert fetched == market["received"]
    assert market["derived_inserted"] > 0
    tables = {row["table_name"]: row["inserted"] for row in receipt["tables"]}
    assert tables["market_aggregate"] == market["inserted"] + market["derived_inserted"]
    (line,) = map(json.loads, ran.stderr.splitlines())
    assert f"{fetched:,} bars: {fetched:,} inserted" in line["event"]
    assert f"; {market['derived_inserted']} days and weeks built" in line["event"]
    (listed,) = json.loads(command("runs", "--json").stdout)
    assert listed["inserted"] == market["inserted"]
    assert listed["rows_written"] == sum(tables.values())
