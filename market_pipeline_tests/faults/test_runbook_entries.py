"""Entries of RUNBOOK.md that are followed with the fault that they are for: their act cures it.

``test_runbook.py`` causes the faults that are quick, and types the commands of all entries.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from market_pipeline_tests.databases import read_column
from market_pipeline_tests.receiver import serve_receiver
from market_pipeline_tests.storage.tcp_server import ROLE, run_tcp_server
from market_pipeline_tests.test_runbook import ENTRIES, WORDS, Stack, kill_at_work
from market_pipeline_tests.test_runbook import stack as stack  # noqa: PLC0414

pytestmark = pytest.mark.faults
INGEST = "market-pipeline ingest"
OPEN_ROWS = "SELECT count(*) FROM market_data.quarantined_row WHERE status = 'open'"
REASONS = """SELECT DISTINCT reason FROM market_data.market_roi_statistic
    WHERE as_of = (SELECT max(as_of) FROM market_data.market_roi_statistic)"""


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
    title = "A number changed"
    stack.type(INGEST)
    (first,) = read_column(database_url, "SELECT max(version) FROM market_data.dataset_version")
    stack.set(MOCK_FAULTS=f"BTC-USD:restated_bar=1.05@{days_ago(1)} 1d")
    stack.type(INGEST, (0, 3))
    revised = "SELECT count(*) FROM market_data.market_aggregate_revision"
    assert read_column(database_url, revised) != [0]
    (last,) = read_column(database_url, "SELECT max(version) FROM market_data.dataset_version")
    monkeypatch.setitem(WORDS, "V1..V2", f"{first}..{last}")
    monkeypatch.setitem(WORDS, "V1", str(first))
    assert days_ago(1) in stack.follow(title, "Check")
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
