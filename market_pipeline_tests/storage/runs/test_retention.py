"""What old runs and prices leave behind goes, everything else stays; every table says its rule."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from market_pipeline.storage.ledgers import metadata
from market_pipeline.storage.runs import retention
from market_pipeline.storage.runs.retention import PrunedCounts, count_prunable, prune
from market_pipeline_tests.commands import ROOT
from market_pipeline_tests.databases import read_column

NOW = datetime(2024, 6, 1, 15, tzinfo=UTC)
OLD = NOW - timedelta(days=90, seconds=1)
YOUNG = NOW - timedelta(days=89, hours=23)
RUNS = "SELECT right(run_id::text, 2)::int FROM market_data.ingestion_run ORDER BY 1"
SNAPSHOTS = """
    SELECT format('%s %s', symbol, to_char(observed_at AT TIME ZONE 'UTC', 'MM-DD HH24:MI'))
    FROM market_data.market_snapshot JOIN market_data.market USING (market_id) ORDER BY 1"""
ADD_RUN = """
    INSERT INTO market_data.ingestion_run (run_id, trigger, provider, request, started_at,
        completed_at, outcome)
    VALUES (:id, 'schedule', 'mock', '{}', :started, :completed, 'ok');
    INSERT INTO market_data.ingestion_run_market (run_id, market_id, received, inserted, updated,
        unchanged, outcome)
    VALUES (:id, 1, 5, 0, :bars, 5, 'ok');
    INSERT INTO market_data.ingestion_run_table
    VALUES (:id, 'market_snapshot', :rows, 0, 3);
    INSERT INTO market_data.ingestion_request (run_id, market_id, interval, starts_at, ends_at,
        purpose, asked_at, seconds, received)
    VALUES (:id, 1, '1d', :started, :started, 'tail', :started, 0, 0)"""
CHILDREN = ("ingestion_run_market", "ingestion_run_table", "ingestion_request")


@pytest.fixture
def database(engine: Engine) -> Engine:
    """A database with two markets."""
    execute(
        engine,
        "INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base, quote,"
        " venue, calendar, intervals, price_basis) SELECT 'mock', symbol, symbol, symbol, 'X',"
        " 'USD', 'mock', '24/7', '{1h,1d}', 'unadjusted' FROM unnest(ARRAY['BTC', 'ETH']) symbol",
    )
    return engine


def execute(engine: Engine, statement: str, **values: object) -> None:
    """Change the database."""
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def add_run(
    engine: Engine,
    number: int,
    started_at: datetime = OLD,
    bars: int = 0,
    rows: int = 0,
    completed_at: datetime | None = None,
) -> None:
    """Insert a run's receipt with its children."""
    values = {
        "id": UUID(int=number), "started": started_at, "completed": completed_at, "bars": bars,
        "rows": rows,
    }  # fmt: skip
    for statement in ADD_RUN.split(";"):
        execute(engine, statement, **values)


def add_snapshots(engine: Engine, *observed: str) -> None:
    """Insert prices, each as ``BTC 2024-01-31 23:45``."""
    for one in observed:
        symbol, _, moment = one.partition(" ")
        execute(
            engine,
            "INSERT INTO market_data.market_snapshot (market_id, observed_at, price, fetched_at)"
            " SELECT market_id, :moment, 1, now() FROM market_data.market WHERE symbol = :symbol",
            symbol=symbol, moment=f"{moment}Z",
        )  # fmt: skip


def count(engine: Engine) -> PrunedCounts:
    """Return what would go."""
    return count_prunable(engine, NOW)


def test_old_receipts_of_runs_without_change_go_with_all_their_parts(database: Engine) -> None:
    """Ninety days after the last write; a second time finds nothing."""
    add_run(database, 1)
    add_run(database, 2, started_at=YOUNG)
    add_run(database, 3, completed_at=YOUNG)
    assert count(database) == PrunedCounts(receipts=1, snapshots=0)
    assert read_column(database, RUNS) == [1, 2, 3]
    assert prune(database, NOW) == PrunedCounts(receipts=1, snapshots=0)
    assert read_column(database, RUNS) == [2, 3]
    for child in CHILDREN:
        assert read_column(database, f"SELECT count(*) FROM market_data.{child}") == [2]
    assert prune(database, NOW) == PrunedCounts(0, 0)


def test_runs_that_explain_something_are_kept(database: Engine) -> None:
    """Changed bars, changed rows, a quarantined row, a split: somebody may ask who did that."""
    add_run(database, 1, bars=1)
    add_run(database, 2, rows=1)
    add_run(database, 3)
    add_run(database, 4)
    execute(
        database,
        "INSERT INTO market_data.quarantined_row (market_id, interval, rule, detail, payload,"
        " payload_hash, run_id, first_seen_at, last_seen_at, times_seen)"
        " VALUES (1, '1d', 'off_grid', '', '{}', '', :id, now(), now(), 1)",
        id=UUID(int=3),
    )
    execute(
        database,
        "INSERT INTO market_data.market_event (market_id, kind, detail, detected_at, run_id)"
        " VALUES (1, 'split', '', now(), :id)",
        id=UUID(int=4),
    )
    assert prune(database, NOW) == PrunedCounts(0, 0)
    assert read_column(database, RUNS) == [1, 2, 3, 4]


def test_old_snapshots_are_thinned_to_the_last_of_each_market_and_day(database: Engine) -> None:
    """Days are UTC's; the day in which the ninety days end, and later ones, stay whole."""
    kept = [
        "BTC 2024-01-31 23:45", "BTC 2024-02-01 00:00", "BTC 2024-03-02 22:00",
        "BTC 2024-03-03 01:00", "BTC 2024-03-03 02:00", "BTC 2024-05-31 01:00",
        "BTC 2024-05-31 02:00", "ETH 2024-01-31 10:00",
    ]  # fmt: skip
    add_snapshots(database, *kept)
    add_snapshots(database, "BTC 2024-01-31 00:00", "BTC 2024-01-31 23:30", "BTC 2024-03-02 00:00")
    assert count(database) == PrunedCounts(receipts=0, snapshots=3)
    assert prune(database, NOW) == PrunedCounts(receipts=0, snapshots=3)
    expected = [one.replace("2024-", "") for one in kept]
    assert read_column(database, SNAPSHOTS) == expected
    assert prune(database, NOW) == PrunedCounts(0, 0)


@pytest.mark.parametrize("rows", [2, 3, 4, 100])
def test_many_rows_go_in_small_transactions(
    database: Engine, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Whatever a batch holds, all of them go."""
    monkeypatch.setattr(retention, "BATCH_ROWS", rows)
    for number in range(6):
        add_run(database, number)
    add_snapshots(database, *(f"BTC 2024-01-31 0{hour}:00" for hour in range(7)))
    assert prune(database, NOW) == PrunedCounts(receipts=6, snapshots=6)
    assert read_column(database, RUNS) == []
    assert read_column(database, SNAPSHOTS) == ["BTC 01-31 06:00"]


def test_every_table_states_grain_growth_and_retention() -> None:
    """A table that grows without anybody having thought of it has no line here."""
    lines = (ROOT / "docs/tables.md").read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| `")
    ]
    assert sorted(row[0] for row in rows) == sorted(
        f"`{table.name}`" for table in metadata.sorted_tables
    )
    assert all(len(row) == 4 and all(row) for row in rows)


def test_alerts_that_ended_long_ago_go_with_their_messages(database: Engine) -> None:
    """An open one stays, however old it is."""
    for number, ended in enumerate((OLD, YOUNG, None)):
        execute(
            database,
            """WITH made AS (INSERT INTO market_data.alert (alert_id, fingerprint, kind, severity,
                message, raised_at, seen_at, times, resolved_at)
                VALUES (gen_random_uuid(), :name, 'custom', 'info', :name, :old, :old, 1, :ended)
                RETURNING alert_id)
            INSERT INTO market_data.alert_delivery (message_id, receiver, alert_id, body,
                created_at, next_try_at)
            SELECT gen_random_uuid(), '', alert_id, '{}', :old, :old FROM made""",
            name=str(number),
            old=OLD,
            ended=ended,
        )
    assert prune(database, NOW) == PrunedCounts(receipts=0, snapshots=0, alerts=1)
    left = "SELECT message FROM market_data.alert_delivery JOIN market_data.alert USING (alert_id)"
    assert sorted(map(str, read_column(database, left))) == ["1", "2"]
