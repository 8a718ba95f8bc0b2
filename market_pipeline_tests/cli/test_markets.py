"""``market-pipeline markets``: switched off a market is skipped, purged it leaves nothing."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, create_engine, text

from market_pipeline.cli.main import main
from market_pipeline.storage.ledgers import metadata
from market_pipeline.storage.markets import admin
from market_pipeline.storage.runs.claims import hold_liveness_lock, take_claim
from market_pipeline_tests.commands import ROOT, run_command
from market_pipeline_tests.databases import create_database, read_column

Command = Callable[..., Result]
BARS = (
    "SELECT format('%s %s', symbol, count(*)) FROM market_data.market_aggregate"
    " JOIN market_data.market USING (market_id) GROUP BY symbol ORDER BY symbol"
)
KEYED = [
    (table.name, column.name)
    for table in metadata.sorted_tables
    for column in table.columns
    if column.name.endswith("market_id") and column.name != "provider_market_id"
]


@pytest.fixture(scope="module")
def ingested(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database that holds two markets of a real run, the second with a revision."""
    folder = tmp_path_factory.mktemp("markets")
    with create_database(server_url) as address:
        environment = {
            "DATABASE_URL": address,
            "DAGSTER_HOME": str(ROOT),
            "PATH": os.environ["PATH"],
            "STATE_DIR": str(folder),
        }
        done = run_command(
            "market-pipeline", "ingest", "--symbols", "BTC-USD,ETH-USD", "--lookback-days", "3",
            "--window-end", "2024-03-15", environment=environment, folder=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield address


@pytest.fixture
def command(ingested: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Command:
    """Runs ``market-pipeline`` in this process, on that database."""
    variables = {
        "DATABASE_URL": ingested,
        "DAGSTER_HOME": str(ROOT),
        "STATE_DIR": str(tmp_path),
        "INGESTION_MARKETS": "BTC-USD,ETH-USD",
        "INGESTION_LOOKBACK_DAYS": "3",
    }
    monkeypatch.chdir(str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return lambda *words, text="": CliRunner().invoke(main, words, input=text)


def list_active(command: Command) -> dict[str, bool]:
    """Return whether each stored market is active."""
    told = json.loads(command("markets", "list", "--json").stdout)
    return {f"{row['provider']}:{row['symbol']}": row["active"] for row in told["markets"]}


def test_a_deactivated_market_is_skipped_keeps_its_data_and_comes_back(
    command: Command, ingested: str
) -> None:
    """The run is ok without it, and asks nothing of it; `add` takes it back."""
    before = read_column(ingested, BARS)
    said = command("markets", "deactivate", "ETH-USD")
    assert said.output == "mock:ETH-USD is deactivated; its data stay\n"
    assert command("markets", "deactivate", "ETH-USD").exit_code == 0
    assert list_active(command) == {"mock:BTC-USD": True, "mock:ETH-USD": False}

    plan = json.loads(command("plan", "--json").stdout)
    assert {row["symbol"] for row in plan["markets"]} == {"BTC-USD"}
    ran = command("ingest", "--window-end", "2024-03-15", "--json")
    assert ran.exit_code == 0, ran.output
    receipt = json.loads(ran.stdout)
    assert [row["symbol"] for row in receipt["markets"]] == ["BTC-USD"]
    assert receipt["outcome"] == "ok"
    assert read_column(ingested, BARS) == before

    command("markets", "deactivate", "BTC-USD")
    refused = command("ingest", "--window-end", "2024-03-15")
    assert refused.exit_code == 1
    assert "deactivated, and no other market was asked for" in refused.output

    for symbol in ("ETH-USD", "BTC-USD"):
        assert command("markets", "add", symbol).exit_code == 0
    assert list_active(command) == {"mock:BTC-USD": True, "mock:ETH-USD": True}
    assert len(read_column(ingested, "SELECT market_id FROM market_data.market")) == 2


def test_add_says_what_to_set_and_refuses_what_nobody_serves(command: Command) -> None:
    """Registered at once; runs read the environment, which no command can change."""
    added = command("markets", "add", "SOL-USD")
    assert added.exit_code == 0, added.output
    assert "set INGESTION_MARKETS=BTC-USD,ETH-USD,SOL-USD" in added.output
    assert list_active(command)["mock:SOL-USD"]
    refused = command("markets", "add", "SPX", "--provider", "coingecko")
    assert refused.exit_code == 1
    assert "no provider serves SPX" in refused.output
    unknown = command("markets", "deactivate", "NOBODY-USD")
    assert "no stored market is called NOBODY-USD" in unknown.output


def test_prefer_changes_what_a_symbol_means_and_leaves_a_trace(
    command: Command, ingested: str
) -> None:
    """The next run keeps it; the list says since when; a deactivated market is refused."""
    with create_engine(ingested).begin() as connection:
        connection.execute(
            text("""INSERT INTO market_data.market (provider, provider_market_id, symbol, name,
                base, quote, venue, calendar, intervals, price_basis) SELECT 'yahoo', 'BTC-USD',
                symbol, name, base, quote, venue, calendar, intervals, price_basis
                FROM market_data.market WHERE symbol = 'BTC-USD'""")
        )
    said = command("markets", "prefer", "yahoo:BTC-USD")
    assert said.output == "BTC-USD means yahoo:BTC-USD from now on; it meant mock:BTC-USD\n"
    assert command("ingest", "--window-end", "2024-03-15").exit_code == 0
    assert find_primary(command) == ("yahoo", True)
    undone = command("markets", "prefer", "yahoo:BTC-USD", "--undo")
    assert "BTC-USD means yahoo:BTC-USD until a run" in undone.output
    assert find_primary(command) == ("yahoo", False)
    assert command("ingest", "--window-end", "2024-03-15").exit_code == 0
    assert find_primary(command) == ("mock", False)
    command("markets", "deactivate", "yahoo:BTC-USD")
    refused = command("markets", "prefer", "yahoo:BTC-USD")
    assert refused.exit_code != 0
    assert "market-pipeline markets add BTC-USD --provider yahoo" in refused.output
    assert command("markets", "purge", "yahoo:BTC-USD", "--yes").exit_code == 0


def find_primary(command: Command) -> tuple[str, bool]:
    """Return the provider that BTC-USD means, and whether somebody preferred it."""
    told = json.loads(command("markets", "list", "--json").stdout)["markets"]
    [row] = [row for row in told if row["symbol"] == "BTC-USD" and row["primary"]]
    return row["provider"], row["preferred_at"] is not None


def test_purge_asks_and_then_leaves_nothing(
    command: Command, ingested: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever table named the market; a batch smaller than its rows; the other one untouched."""
    monkeypatch.setattr(admin, "PURGE_ROWS", 7)
    [gone] = read_column(
        ingested, "SELECT market_id FROM market_data.market WHERE symbol = 'ETH-USD'"
    )
    kept = [line for line in read_column(ingested, BARS) if "BTC" in str(line)]
    asked = command("markets", "purge", "ETH-USD", text="n\n")
    assert asked.exit_code == 1
    assert "Remove mock:ETH-USD and these rows for good?" in asked.output
    assert len(read_column(ingested, BARS)) == 2

    with make_engine(ingested) as engine, engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO market_data.market_aggregate_revision SELECT *, now(), 1, NULL"
            " FROM market_data.market_aggregate WHERE market_id = %(gone)s",
            {"gone": gone},
        )
    done = command("markets", "purge", "ETH-USD", "--yes", "--json")
    assert done.exit_code == 0, done.output
    removed = {row["table"]: row["rows"] for row in json.loads(done.stdout)}
    assert removed["market"] == 1
    assert removed["market_aggregate"] == removed["market_aggregate_revision"] > 7
    assert count_rows_of(ingested, gone) == {}
    assert read_column(ingested, BARS) == kept


def test_purge_waits_for_nobody_and_disturbs_no_run(command: Command, ingested: str) -> None:
    """A market in work is switched off, and not removed under the run's feet."""
    [key] = read_column(
        ingested, "SELECT market_id FROM market_data.market WHERE symbol = 'BTC-USD'"
    )
    run_id = uuid4()
    with make_engine(ingested) as engine, hold_liveness_lock(engine, run_id):
        assert take_claim(engine, int(str(key)), run_id, timedelta(hours=1))
        refused = command("markets", "purge", "BTC-USD", "--yes")
    assert refused.exit_code == 1
    assert "is being fetched by a run" in refused.output
    assert "market_aggregate" in count_rows_of(ingested, key)
    assert list_active(command)["mock:BTC-USD"] is False


@contextmanager
def make_engine(address: str) -> Iterator[Engine]:
    """Yield an engine that is disposed in the end."""
    engine = create_engine(address)
    try:
        yield engine
    finally:
        engine.dispose()


def count_rows_of(address: str, market_id: object) -> dict[str, object]:
    """Return the tables that still name a market."""
    ask = partial(read_column, address)
    counts = {
        f"{table}.{column}": ask(
            f"SELECT count(*) FROM market_data.{table} WHERE {column} = {market_id}"
        )[0]
        for table, column in KEYED
    }
    return {name.split(".")[0]: count for name, count in counts.items() if count}
