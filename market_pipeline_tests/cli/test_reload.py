"""``market-pipeline markets reload``: what it shows, what it does, and what waits for it."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.schema import upgrade_schema
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.old_database import LATER, REPLAYED_UNTIL, ingest_again, load_dump
from market_pipeline_tests.replay import ReplayServer

Command = Callable[..., "subprocess.CompletedProcess[str]"]
FLAT = """
    SELECT count(*) FROM market_data.market_aggregate JOIN market_data.market USING (market_id)
    WHERE provider = 'coingecko' AND interval = '1h' AND is_final AND open = close"""
REVISIONS = "SELECT count(*) FROM market_data.market_aggregate_revision"
NAME = "coingecko:BTC-USD"


@pytest.fixture
def providers(database_url: str) -> Iterator[ReplayServer]:
    """The providers, after a first run on a database of the version before."""
    load_dump(database_url)
    engine = open_engine(DatabaseAddress(database_url, is_embedded=True))
    upgrade_schema(engine)
    with ReplayServer(now=REPLAYED_UNTIL + LATER) as replay:
        ingest_again(engine, replay)
        engine.dispose()
        yield replay


@pytest.mark.faults
def test_what_waits_is_told_previewed_and_done(
    command: Command, providers: ReplayServer, database_url: str, tmp_path: Path
) -> None:
    """From the coverage's hint over the preview to a series that is read in one way."""
    flat = read_column(database_url, FLAT)
    hint = command("coverage", "--symbols", NAME)
    assert f"market-pipeline markets reload {NAME}" in hint.stdout

    shown = command("markets", "reload", "BTC-USD", "--provider", "coingecko", **providers.environ)

    assert shown.returncode == 0, shown.stderr
    assert f"Nothing was changed. To do it: market-pipeline markets reload {NAME} --yes" in (
        " ".join(shown.stdout.split())
    )
    told = json.loads(command("markets", "reload", NAME, "--json", **providers.environ).stdout)
    assert [row["interval"] for row in told["requests"]] == ["1h", "1d"]
    assert told["cost"]["calls"] == 2
    hours = told["sample"][0]
    assert hours["would change"] > hours["compared"] / 2
    assert (told["out of reach"], told["facts"]) == ([], [])
    assert read_column(database_url, FLAT) == flat
    assert read_column(database_url, REVISIONS) == [2]

    done = command(
        "markets", "reload", NAME, "--yes", "--json", STATE_DIR=str(tmp_path), **providers.environ
    )

    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "reloads").iterdir()
    assert str(file) in done.stderr
    # To the microsecond: two reloads of a second kept one dump, the later.
    assert re.fullmatch(r"coingecko_BTC-USD_\d{8}T\d{6}_\d{6}\.sql\.gz", file.name)
    receipt = json.loads(done.stdout)
    assert receipt["outcome"] == "ok"
    assert receipt["markets"][0]["revised"] > 500
    assert read_column(database_url, FLAT) < flat
    listed = {row["run_id"]: row for row in json.loads(command("runs", "--json").stdout)}
    assert listed[receipt["run_id"]]["trigger"] == "reload"
    left = json.loads(command("coverage", "--symbols", NAME, "--json").stdout)
    assert left["older_parsings"] == []


def test_a_market_that_is_not_stored_cannot_be_read_again(
    command: Command, database_url: str
) -> None:
    """The error names it; nothing is asked and nothing dumped."""
    del database_url
    refused = command("markets", "reload", "coingecko:ETH-USD")
    assert refused.returncode == 1
    assert "no stored market is called COINGECKO:ETH-USD" in refused.stderr
