"""Entries of RUNBOOK.md that are followed with the fault that they are for: their act cures it.

``test_runbook.py`` causes the faults that are quick, and types the commands of all entries.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import create_engine, make_url, text

from market_pipeline_tests import replay
from market_pipeline_tests.commands import SCRIPTS
from market_pipeline_tests.databases import create_database, hold_up_writers, read_column
from market_pipeline_tests.faults.test_http import WAITING
from market_pipeline_tests.old_database import LATER, REPLAYED_UNTIL, load_dump
from market_pipeline_tests.receiver import serve_receiver
from market_pipeline_tests.replay import DAY_SECONDS, ReplayServer, Reply, answer_with, edit_json
from market_pipeline_tests.storage.tcp_server import ROLE, run_tcp_server
from market_pipeline_tests.system.processes import run_in_background, wait_for
from market_pipeline_tests.test_runbook import (
    ENTRIES,
    START_SECONDS,
    WORDS,
    Stack,
    kill_at_work,
)
from market_pipeline_tests.test_runbook import stack as stack  # noqa: PLC0414

pytestmark = pytest.mark.faults
INGEST = "market-pipeline ingest"
OPEN_ROWS = "SELECT count(*) FROM market_data.quarantined_row WHERE status = 'open'"
OPEN_ALERTS = "SELECT message FROM market_data.alert WHERE cleared_at IS NULL"
REASONS = """SELECT DISTINCT reason FROM market_data.market_roi_statistic
    WHERE as_of = (SELECT max(as_of) FROM market_data.market_roi_statistic)"""
REASONS_IN_2014 = """SELECT DISTINCT reason FROM market_data.market_roi_statistic
    WHERE as_of = (SELECT max(as_of) FROM market_data.market_roi_statistic
        WHERE as_of < '2015-02-01')"""


class LiveServer(ReplayServer):
    """What was recorded of bitcoin, as if it had been traded until now."""

    def answer(self, path: str, query: Any) -> Reply:
        """Return the right answer of this moment."""
        self.now = datetime.now(UTC)
        return super().answer(path, query)


@pytest.fixture
def live(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    """Coinbase and Yahoo, which a project asks."""
    rows = replay.load_series("BTC-USD")[-800:]
    # To tomorrow, as midnight may come meanwhile; the server hides what has not happened.
    later = (int(time.time()) // DAY_SECONDS + 1) * DAY_SECONDS - rows[-1].start
    moved = tuple(replace(row, start=row.start + later) for row in rows)
    monkeypatch.setattr(replay, "load_series", lambda _: moved)
    replay._load_sessions.cache_clear()
    with LiveServer() as server:
        stack.set(**server.environ)
        yield server
    replay._load_sessions.cache_clear()


def days_ago(days: int) -> str:
    """Return a date."""
    return f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d}"


def find_command(title: str, part: str, words: str) -> str:
    """Return a part's one command with some words in it."""
    (command,) = (one for one in ENTRIES[title].list_commands(part) if words in one)
    return command


def test_a_market_came_short(stack: Stack) -> None:
    """A provider answers for another market; the next run, when it is well, brings the rest."""
    title = "Some markets came short (outcome `partial`)"
    stack.set(MOCK_FAULTS="ETH-USD:wrong_symbol")
    assert ": partial" in stack.type(INGEST, (3,))
    told = stack.follow(title, "Check")
    assert "ETH-USD" in told
    stack.set(MOCK_FAULTS="")
    stack.follow(title, "Act")
    assert stack.type(INGEST).rstrip().endswith(": ok")


def test_holes(stack: Stack) -> None:
    """The hours of a market cannot be had for a while; the first run afterwards fills the hole."""
    stack.set(MOCK_FAULTS="BTC-USD:timeout 1h")
    stack.type(INGEST, (3,))
    assert "fetch_failed" in stack.follow("Holes", "Check")
    stack.set(MOCK_FAULTS="")
    stack.follow("Holes", "Act")
    verified = stack.follow("Holes", "Verify")
    assert "The ledger and the bars agree." in verified
    assert "fetch_failed" not in stack.follow("Holes", "Check")


def test_rows_in_quarantine(stack: Stack, database_url: str) -> None:
    """A bar off its grid: still refused when it is replayed, and gone when it is discarded."""
    title = "Rows in quarantine"
    stack.set(MOCK_FAULTS="BTC-USD:off_grid 1d")
    stack.type(INGEST, (0, 3))
    before = read_column(database_url, OPEN_ROWS)
    assert "off_grid" in stack.follow(title, "Check")
    stack.follow(title, "Act", (0, 1))
    assert read_column(database_url, OPEN_ROWS) == [int(str(before[0])) - 1]
    stack.follow(title, "Verify")


def test_a_number_changed(stack: Stack, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar is corrected: `diff` lists it, and the old value is kept."""
    title, yesterday = "A number changed", days_ago(1)
    stack.type(INGEST)
    (first,) = read_column(database_url, "SELECT max(version) FROM market_data.dataset_version")
    stack.set(MOCK_FAULTS=f"BTC-USD:restated_bar=1.05@{yesterday} 1d")
    stack.type(INGEST, (0, 3))
    revised = "SELECT count(*) FROM market_data.market_aggregate_revision"
    assert read_column(database_url, revised) != [0]
    (last,) = read_column(database_url, "SELECT max(version) FROM market_data.dataset_version")
    monkeypatch.setitem(WORDS, "V1..V2", f"{first}..{last}")
    monkeypatch.setitem(WORDS, "V1", str(first))
    assert yesterday in stack.follow(title, "Check")
    stack.follow(title, "Verify")


def test_the_provider_restated_its_history(stack: Stack) -> None:
    """All prices are others: runs follow the difference to its ends and repair the bars."""
    title = "The provider restated its history"
    stack.type(INGEST)
    stack.set(MOCK_FAULTS="BTC-USD:rescaled=1.03")
    assert "restated its history" in " ".join(stack.type(INGEST, (0, 3)).split())
    told = stack.follow(title, "Check", (0, 1))
    for _ in range(4):
        stack.type(find_command(title, "Act", INGEST), (0, 3))
        told = stack.follow(title, "Verify")
        if "repaired" in told:
            break
    assert "repaired" in told


def test_a_split_is_suspected(stack: Stack, database_url: str) -> None:
    """Somebody finds that the company did split: the bars before are multiplied."""
    title = "A split is suspected"
    stack.set(INGESTION_MARKETS="SPX", INGESTION_LOOKBACK_DAYS="60")
    stack.set(MOCK_FAULTS=f"SPX:rescaled=0.25@{days_ago(10)}")
    stack.type(INGEST, (0, 3))
    assert "suspected_split" in read_column(database_url, REASONS)
    assert "SPX" in stack.follow(title, "Check")
    confirm = find_command(title, "Act", "confirm")
    assert "Nothing was changed" in " ".join(stack.type(confirm).split())
    stack.type(f"{confirm} --yes")
    stack.follow(title, "Verify", (0, 3))
    assert "suspected_split" not in read_column(database_url, REASONS)


def test_a_backfill_that_was_killed(stack: Stack, database_url: str, tmp_path: Path) -> None:
    """The plan shows what is left; started again, the same command ends with nothing left."""
    title = "A backfill that does not end"
    span = ["--from", "2024-03-01", "--to", "2024-03-10"]
    kill_at_work(database_url, tmp_path, "backfill", *span)
    left = stack.follow(title, "Check")
    assert "BTC-USD" in left
    stack.type(f"market-pipeline backfill {' '.join(span)}")
    assert "BTC-USD" not in stack.follow(title, "Verify")


def test_a_secret_that_was_changed(stack: Stack) -> None:
    """The database's password: the old one is refused without being shown, the new one works."""
    title = "A secret has to be changed"
    with run_tcp_server() as server:
        old = make_url(server.make_url())
        stack.set(DATABASE_URL=old.render_as_string(hide_password=False))
        stack.type(INGEST)
        admin = create_engine(server.make_url(scheme="postgresql+psycopg2"))
        with admin.begin() as connection:
            connection.execute(text(f"ALTER ROLE {ROLE} PASSWORD 'an0ther-pw'"))
        admin.dispose()
        refused = stack.type("market-pipeline db status", (1,))
        assert "password authentication failed" in refused
        assert str(old.password) not in refused
        new = old.set(password="an0ther-pw")  # noqa: S106 - above
        stack.set(DATABASE_URL=new.render_as_string(hide_password=False))
        stack.follow(title, "Verify")


def test_an_alert_came(stack: Stack, monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    """It is sent, acknowledged, and resolved after the next good run."""
    title = "An alert came, or none did"
    with serve_receiver() as receiver:
        stack.set(ALERT_WEBHOOK_URL=receiver.address, ALERT_ALLOW_PRIVATE="true")
        stack.set(ALERT_COOLDOWN_MINUTES="0", MOCK_FAULTS="BTC-USD:timeout,ETH-USD:timeout")
        stack.type(INGEST, (1,))
        (alert,) = read_column(database_url, "SELECT alert_id FROM market_data.alert")
        monkeypatch.setitem(WORDS, "ALERT_ID", str(alert))
        told = stack.follow(title, "Check", (0, 1))  # 1: no daemon runs
        assert "-USD" in told
        assert "alert.raised" in {one["type"] for one in receiver.bodies}
        stack.follow(title, "Act")
        stack.set(MOCK_FAULTS="")
        stack.type(INGEST)
        stack.type(find_command(title, "Check", "alerts deliver"))
        assert receiver.bodies[-1]["type"] == "alert.resolved"
        stack.follow(title, "Verify")


def test_two_sources_disagree(
    stack: Stack, live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has a wrong close, and corrects it: read again, both agree, and none was averaged."""
    title = "Two sources disagree"
    monkeypatch.setitem(WORDS, "MARKET", "coinbase:BTC-USD")
    stack.set(INGESTION_PROVIDER="yahoo,coinbase", INGESTION_MARKETS="BTC-USD")
    day = days_ago(9)
    wrong = {int(datetime.fromisoformat(f"{day}T00:00Z").timestamp())}

    def spoil(candles: Any) -> Any:
        return [
            [start, low, high * 1.2, first, last * 1.2, volume] if start in wrong
            else [start, low, high, first, last, volume]
            for start, low, high, first, last, volume in candles
        ]  # fmt: skip

    live.misbehave(edit_json(spoil), times=999, path="/coinbase/products/BTC-USD/candles")
    stack.set(INGESTION_LOOKBACK_DAYS="30")
    for provider in ("yahoo", "coinbase"):
        stack.type(f"{INGEST} --provider {provider}", (0, 3))
    assert not has_passed("sources_agree")
    told = stack.follow(title, "Check")
    assert "single closes of one may be wrong" in told
    assert day in told
    wrong.clear()
    assert "would change" in stack.follow(title, "Act")
    assert "differ" in stack.follow(title, "Verify")
    stack.type(f"{find_command(title, 'Act', 'reload')} --yes")
    stack.type(f"{find_command(title, 'Act', 'prefer')} --undo")
    verified = stack.follow(title, "Verify")
    assert "agree" in verified
    assert "differ" not in verified.lower()
    stack.type(INGEST)
    assert has_passed("sources_agree")


def has_passed(check: str) -> bool:
    """Tell whether the newest run found a check to hold."""
    key = dg.AssetCheckKey(dg.AssetKey("market_aggregates"), check)
    with dg.DagsterInstance.get() as instance:
        (last,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    assert last.event is not None
    assert last.event.dagster_event is not None
    return last.event.dagster_event.asset_check_evaluation_data.passed


def test_an_answer_is_read_differently_now(
    stack: Stack, server_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Tables of the version before are upgraded; a killed reload is started again."""
    title = "An answer is read differently now"
    market = "coingecko:BTC-USD"
    monkeypatch.setitem(WORDS, "MARKET", market)
    # The day's bar comes of the new version, those before it are of the old one.
    now = REPLAYED_UNTIL + LATER * 4
    with create_database(server_url) as url, ReplayServer(now=now + LATER * 8) as server:
        load_dump(url)
        stack.set(DATABASE_URL=url, **server.environ)
        stack.type("market-pipeline db upgrade")
        stack.type(ingest_in_2014(now), (0, 3))
        assert "mixed_parsing" in read_column(url, REASONS_IN_2014)
        assert f"market-pipeline markets reload {market}" in stack.follow(title, "Check")
        (first,) = read_column(url, "SELECT max(version) FROM market_data.dataset_version")
        command = [str(SCRIPTS / "market-pipeline"), "markets", "reload", market, "--yes"]
        writes = hold_up_writers(url, mode="SHARE")
        with writes, run_in_background(command, os.environ, tmp_path) as run:
            wait_for(lambda: read_column(url, WAITING), START_SECONDS, "the first write", run)
            run.process.kill()
        assert stack.follow(title, "Act").rstrip().endswith(": ok")
        assert len(list((stack.folder / "reloads").iterdir())) == 2
        (last,) = read_column(url, "SELECT max(version) FROM market_data.dataset_version")
        monkeypatch.setitem(WORDS, "V1..V2", f"{first}..{last}")
        verified = stack.follow(title, "Verify")
        assert "reload" not in verified
        assert "2014-12" in verified
        stack.type(ingest_in_2014(now + LATER * 8), (0, 3))
        assert "mixed_parsing" not in read_column(url, REASONS_IN_2014)


def ingest_in_2014(now: datetime) -> str:
    """Return the command that ingests what was recorded, at a moment of then."""
    asked = "--provider coingecko --symbols BTC-USD --lookback-days 30"
    return f"{INGEST} {asked} --window-end {now:%Y-%m-%dT%H:%M}"


def test_a_market_is_to_go(
    stack: Stack, live: LiveServer, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exchange has delisted it: switched off it disturbs no run, and then nothing is left."""
    title = "A market is to go"
    monkeypatch.setitem(WORDS, "MARKET", "BTC-USD")
    stack.set(INGESTION_PROVIDER="coinbase,mock", INGESTION_MARKETS="BTC-USD,SPX")
    stack.type(INGEST)
    unknown = answer_with(replay.read_recording("coinbase/error_not_found_404.json"), 404)
    live.misbehave(unknown, times=999, path="/coinbase/products/BTC-USD")
    assert ": partial" in stack.type(INGEST, (3,))
    assert any("BTC-USD" in str(one) for one in read_column(database_url, OPEN_ALERTS))
    assert "coinbase" in stack.follow(title, "Check")
    stack.type(find_command(title, "Act", "deactivate"))
    assert stack.type(INGEST).rstrip().endswith(": ok")
    stack.type("market-pipeline alerts deliver")
    assert not any("BTC-USD" in str(one) for one in read_column(database_url, OPEN_ALERTS))
    assert "coinbase" in stack.follow(title, "Verify")
    stack.set(INGESTION_MARKETS="SPX")
    stack.type(find_command(title, "Act", "purge"))
    assert "BTC-USD" not in stack.follow(title, "Verify")
    assert stack.type(INGEST).rstrip().endswith(": ok")
