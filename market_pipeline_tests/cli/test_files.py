"""Files of one's own through the real command: what is assumed, told, kept and changed."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result
from sqlalchemy import Engine

from market_pipeline_tests.databases import read_column

Command = Callable[..., Result]
FACTS = "SELECT concat_ws(' ', calendar, quote, price_basis) FROM market_data.market"
END = "2024-03-29T12:00Z"


@pytest.fixture
def command(
    invoke: Command, engine: Engine, database_url: str, tmp_path: Path
) -> Callable[..., Result]:
    """Runs ``market-pipeline`` on a folder of files in this process."""
    assert engine
    folder = tmp_path / "files"
    folder.mkdir()
    dates = pd.bdate_range("2024-01-02", "2024-03-28")
    rows = "".join(f"{date:%Y-%m-%d},{1 + at / 1000}\n" for at, date in enumerate(dates))
    (folder / "EURUSD.csv").write_text("date,close\n" + rows)
    places = {"DATABASE_URL": database_url, "FILE_PROVIDER_PATH": str(folder)}
    return lambda *arguments: invoke(*arguments, **places)


def ingest(command: Command) -> Result:
    """Ingest the one file."""
    return command(
        "ingest", "--provider", "file", "--symbols", "EURUSD", "--lookback-days", "60",
        "--window-end", END,
    )  # fmt: skip


def test_the_receipt_says_what_was_assumed_and_what_was_kept(
    command: Command, engine: Engine, tmp_path: Path
) -> None:
    """In a sentence; what is told later changes nothing under the stored bars."""
    assumed = "calendar 24/5 and quote USD assumed: markets.csv does not name EURUSD"
    first = ingest(command)
    assert f"file:EURUSD: {assumed}" in first.output
    assert read_column(engine, FACTS) == ["24/5 USD unadjusted"]
    [market] = json.loads(command("runs", "show", "--json").stdout)["markets"]
    assert (market["assumed"], market["outcome"]) == (assumed, "ok")

    table = "symbol,calendar,quote,price_basis\nEURUSD,XNYS,USD,adjusted\n"
    (tmp_path / "files" / "markets.csv").write_text(table)
    assert ingest(command).exit_code == 0
    assert read_column(engine, FACTS) == ["24/5 USD unadjusted"]
    shown = command("runs", "show").output
    assert (
        "file:EURUSD: calendar 24/5 and price basis unadjusted are kept as stored, though file "
        "says XNYS and adjusted: `market-pipeline markets reload file:EURUSD` would change them"
    ) in shown
    assert ": ok" in shown


def test_a_table_that_cannot_be_meant_stops_the_run_before_it_fetches(
    command: Command, engine: Engine, tmp_path: Path
) -> None:
    """One line on stderr, with the file, the line, the value and the cure."""
    table = tmp_path / "files" / "markets.csv"
    table.write_text("symbol,calendar\nEURUSD,XNOPE\n")
    refused = ingest(command)
    assert refused.exit_code == 1
    assert f"{table} line 2: calendar 'XNOPE' is unknown: expected 24/7, or" in refused.stderr
    assert read_column(engine, FACTS) == []
