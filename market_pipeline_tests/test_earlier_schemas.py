"""What each earlier version of the tables left behind is upgraded, read on, and brought back.

The dumps were made by the code of each version (``old_database.py``).
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from market_pipeline.api.app import build_app
from market_pipeline.readers.aggregates import read_aggregates
from market_pipeline.readers.latest import read_latest
from market_pipeline.storage.server.backup import dump_database, restore_database
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.schema import read_revision, upgrade_schema
from market_pipeline_tests.api.conftest import make_services
from market_pipeline_tests.conftest import make_database
from market_pipeline_tests.databases import DESCRIPTIONS, read_column
from market_pipeline_tests.ingestion.installation import Installation
from market_pipeline_tests.old_database import (
    CORRECTION,
    SMALL_HOLE,
    list_revisions,
    load_dump,
)

# Its mock provider had none.
BEFORE_FAULTS = "0001"
NOW = datetime(2024, 3, 15, 16, 20, tzinfo=UTC)
COLUMNS = """SELECT format('SELECT row(%s)::text FROM market_data.%I ORDER BY 1',
        string_agg(quote_ident(column_name), ', ' ORDER BY ordinal_position), table_name)
    FROM information_schema.columns WHERE table_schema = 'market_data'
        AND table_name <> 'alembic_version' GROUP BY table_name ORDER BY table_name"""
RENAMED = (" rejected,", " quarantined,")
FINAL = """SELECT row(interval, open_time, open, high, low, close, volume)::text
    FROM market_data.market_aggregate WHERE is_final AND market_id = (SELECT market_id
        FROM market_data.market WHERE symbol = 'BTC-USD' AND provider = 'mock')"""


@pytest.fixture(params=list_revisions()[:-1])
def old(request: pytest.FixtureRequest, server_url: str) -> Iterator[Engine]:
    """A database as a version left it."""
    with make_database(server_url, "template0") as url:
        load_dump(url, request.param)
        engine = open_engine(DatabaseAddress(url, is_embedded=True))
        assert read_revision(engine) == request.param
        yield engine
        engine.dispose()


def test_i5_what_a_version_left_is_upgraded_read_on_and_brought_back(
    old: Engine, server_url: str, template: str, tmp_path: Path
) -> None:
    """No row is lost or changed; readers, pages and runs go on; a dump of before brings it back."""
    file = tmp_path / "BEFORE.dump"
    queries, revision = read_column(old, COLUMNS), read_revision(old)
    rows = read_rows(old, queries)
    dump_database(old, file)
    upgrade_schema(old)
    fresh = server_url.replace("/market_pipeline?", f"/{template}?")
    assert [read_column(old, one) for one in DESCRIPTIONS] == [
        read_column(fresh, one) for one in DESCRIPTIONS
    ]
    assert read_rows(old, [str(one).replace(*RENAMED) for one in queries]) == rows
    check_reading(old)
    check_ingesting(old, "" if revision == BEFORE_FAULTS else f"{SMALL_HOLE}, {CORRECTION}")
    old.dispose()
    restore_database(old, file)
    assert (read_revision(old), read_column(old, COLUMNS)) == (revision, queries)
    assert read_rows(old, queries) == rows


def read_rows(engine: Engine, queries: list[object]) -> list[list[object]]:
    """Return the rows of each query."""
    with engine.connect() as connection:
        return [list(connection.execute(text(str(one))).scalars()) for one in queries]


def check_reading(engine: Engine) -> None:
    """Readers and pages have the bars and prices of before."""
    bars = read_aggregates("mock:BTC-USD", "1h", "2024-03-13", "2024-03-16", engine=engine)
    assert len(bars) >= 13
    assert bars["close"].notna().all()
    latest = read_latest(["mock:BTC-USD"], engine=engine)
    assert latest["price"].notna().all()
    services = make_services(engine)
    with TestClient(build_app(services), "http://127.0.0.1") as client:
        assert "BTC-USD" in client.get("/").text
        page = client.get("/markets/mock:BTC-USD")
        assert page.status_code == 200
        assert f'value="{float(latest["price"].iloc[0])!r}"' in page.text
    services.cache.close()


def check_ingesting(engine: Engine, faults: str) -> None:
    """A run adds bars, and every final bar of before stays as it was."""
    before = read_column(engine, FINAL)
    installation = Installation(engine, ["BTC-USD", "SPX"])
    installation.ingest(NOW, faults, days=2)
    after = read_column(engine, FINAL)
    assert set(before) <= set(after)
    assert len(after) > len(before)
