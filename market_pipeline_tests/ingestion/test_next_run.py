"""What a run leaves undone the next one does, and nothing else: on a real database."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pandas as pd
import pytest
from sqlalchemy import Engine, text

from market_pipeline.ingestion import drive
from market_pipeline.ingestion.batches import Item, MarketStopped
from market_pipeline.ingestion.commit import commit_wave
from market_pipeline.ingestion.drive import BarStream
from market_pipeline.ingestion.outcomes import Landed
from market_pipeline.ingestion.receipts import Run
from market_pipeline.ingestion.request import build_request
from market_pipeline.providers.mock import MockProvider
from market_pipeline.storage.bulk.upsert import WriteCounts, upsert_frame
from market_pipeline.storage.tables import market_aggregate

NOON = datetime(2024, 3, 15, 12, tzinfo=UTC)
LATER = datetime(2024, 3, 15, 13, 20, tzinfo=UTC)
REQUESTS = """
    SELECT interval, starts_at, ends_at, purpose FROM market_data.ingestion_request
    WHERE run_id = :run_id ORDER BY 1, 2"""


class Pipeline:
    """Ingests from the mock provider, which may be told to misbehave."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(self, now: datetime, faults: str = "", symbol: str = "BTC-USD", days: int = 10) -> UUID:
        """Ingest one market as a run of its own."""
        stream = self.open_stream(now, faults, symbol, days)
        for _ in stream:
            pass
        return stream.run.run_id

    def open_stream(
        self, now: datetime, faults: str = "", symbol: str = "BTC-USD", days: int = 10
    ) -> BarStream:
        """Return what a run will get."""
        provider = MockProvider({"MOCK_FAULTS": faults})
        market = provider.find_market(symbol)
        assert market is not None
        request = build_request(datetime.now(UTC), [symbol], "mock", days, now.isoformat())
        run = Run(uuid4(), "manual", now, request)
        return BarStream(self.engine, run, [(provider, market)])

    def read(self, query: str, **values: object) -> list[dict[str, Any]]:
        """Return a query's rows."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(query), values).mappings()]

    def receipt(self, run_id: UUID) -> dict[str, Any]:
        """Return a run's receipt of its one market."""
        query = "SELECT * FROM market_data.ingestion_run_market WHERE run_id = :run_id"
        return self.read(query, run_id=run_id)[0]

    def bars(self) -> list[dict[str, Any]]:
        """Return every bar as its provider gave it."""
        return self.read("""
            SELECT interval, open_time, open, high, low, close, volume, is_final
            FROM market_data.market_aggregate ORDER BY 1, 2""")


@pytest.fixture
def pipeline(engine: Engine) -> Pipeline:
    """A pipeline on an empty database."""
    return Pipeline(engine)


def test_the_same_again_asks_for_the_tail_and_changes_nothing(pipeline: Pipeline) -> None:
    """Three final bars before the newest, and no version."""
    pipeline.run(NOON)
    before = pipeline.bars()
    again = pipeline.run(NOON)
    assert pipeline.bars() == before
    assert {row["purpose"] for row in pipeline.read(REQUESTS, run_id=again)} == {"tail"}
    receipt = pipeline.receipt(again)
    assert (receipt["outcome"], receipt["first_version"]) == ("ok", None)
    assert receipt["inserted"] + receipt["updated"] == 0


@pytest.mark.owner
def test_a_page_skipped_in_the_middle_is_filled_by_the_next_run(pipeline: Pipeline) -> None:
    """It is a hole at once, its week waits, and then everything is as if it never happened."""
    clean = Pipeline(pipeline.engine)
    fault = "BTC-USD:skipped_page@2024-03-06..2024-03-08"
    first = pipeline.receipt(pipeline.run(NOON, fault))
    assert first["outcome"] == "partial"
    assert first["holes_left"] == 2  # one each of hours and days
    second = pipeline.run(NOON)
    assert pipeline.receipt(second)["outcome"] == "ok"
    assert pipeline.read("SELECT * FROM market_data.coverage_hole") == []
    filled = clean.bars()
    with pipeline.engine.begin() as connection:
        connection.execute(text("TRUNCATE market_data.market CASCADE"))
    pipeline.run(NOON)
    assert pipeline.bars() == filled


def test_a_longer_look_back_asks_for_the_difference(pipeline: Pipeline) -> None:
    """What is settled is not asked for again."""
    pipeline.run(NOON, symbol="SPX")
    longer = pipeline.run(NOON, symbol="SPX", days=40)
    asked = pipeline.read(REQUESTS, run_id=longer)
    settled_from = datetime(2024, 2, 26, 14, 30, tzinfo=UTC)  # the session's open
    assert asked
    assert all(row["ends_at"] <= settled_from for row in asked)


def test_a_provisional_bar_becomes_final_once(pipeline: Pipeline) -> None:
    """The running hour is written over without a revision; its known_at is when it was final."""
    pipeline.run(datetime(2024, 3, 15, 12, 20, tzinfo=UTC))
    hour = """SELECT is_final, known_at FROM market_data.market_aggregate
        WHERE interval = '1h' AND open_time = '2024-03-15T12:00Z'"""
    (running,) = pipeline.read(hour)
    pipeline.run(LATER)
    (final,) = pipeline.read(hour)
    pipeline.run(LATER)
    assert (running["is_final"], final["is_final"]) == (False, True)
    assert final["known_at"] > running["known_at"]
    assert pipeline.read(hour) == [final]
    assert pipeline.read("SELECT * FROM market_data.market_aggregate_revision") == []


def test_e5_a_corrected_bar_leaves_its_old_values_as_a_revision(pipeline: Pipeline) -> None:
    """The row is replaced as a whole, the old one is kept with who replaced it."""
    pipeline.run(NOON)
    with pipeline.engine.begin() as connection:
        connection.execute(
            text("""
            UPDATE market_data.market_aggregate SET close = close * 1.01, high = high * 1.02
            WHERE interval = '1h' AND open_time = '2024-03-15T10:00Z'""")
        )
    old = pipeline.bars()
    corrected = pipeline.run(LATER)
    revisions = pipeline.read("SELECT * FROM market_data.market_aggregate_revision")
    assert pipeline.receipt(corrected)["revised"] == len(revisions) == 1
    assert revisions[0]["replaced_by_run"] == corrected
    replaced = [bar for bar in old if bar["open_time"] == revisions[0]["open_time"]]
    assert revisions[0]["close"] in [bar["close"] for bar in replaced]


def test_a_split_reloads_the_market_in_the_same_run(pipeline: Pipeline) -> None:
    """One event, resolved; every bar is in the new scale, and the old ones are revisions."""
    pipeline.run(NOON)
    with pipeline.engine.begin() as connection:
        connection.execute(
            text("""
            UPDATE market_data.market_aggregate
            SET open = open * 2, high = high * 2, low = low * 2, close = close * 2""")
        )
    split = pipeline.run(LATER)
    (event,) = pipeline.read("SELECT * FROM market_data.market_event")
    assert event["ratio"] == pytest.approx(0.5)
    assert event["resolved_at"] is not None
    assert "reload" in {row["purpose"] for row in pipeline.read(REQUESTS, run_id=split)}
    closes = pd.Series([bar["close"] for bar in pipeline.bars()])
    assert closes.max() / closes.min() < 1.9  # no trace of both scales side by side


def test_duplicates_do_not_lose_the_batch(pipeline: Pipeline) -> None:
    """The same bar twice, equal or not: one lands, and the rest with it."""
    receipt = pipeline.receipt(pipeline.run(NOON, "BTC-USD:duplicate"))
    assert receipt["inserted"] > 200
    assert receipt["outcome"] in ("ok", "partial")


STEAL = """UPDATE market_data.fetch_claim
    SET token = nextval('market_data.fetch_claim_seq'), run_id = gen_random_uuid()"""


def test_e6_a_batch_whose_claim_another_run_took_writes_nothing(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run fetched before it slept past its claim is not stored over newer bars."""

    def commit_late(engine: Engine, run: Run, items: list[Item]) -> list[Landed]:
        with pipeline.engine.begin() as connection:
            connection.execute(text(STEAL))
        return commit_wave(engine, run, items)

    monkeypatch.setattr(drive, "commit_wave", commit_late)
    ((landed,),) = pipeline.open_stream(NOON)
    assert isinstance(landed.item, MarketStopped)
    assert "was claimed by run" in str(landed.result.reason)
    assert pipeline.bars() == []
    assert pipeline.read("SELECT * FROM market_data.market_coverage") == []
    assert pipeline.read("SELECT * FROM market_data.fetch_claim") != []  # the other run's


def test_a_stored_final_bar_never_becomes_provisional_again(pipeline: Pipeline) -> None:
    """Whoever sends it late as provisional, with other values too, changes nothing."""
    pipeline.run(NOON)
    before = pipeline.bars()
    query = """SELECT market_id, interval, open_time, close_time, open, high, low, close, volume,
        volume_kind, trades, source_kind, is_final FROM market_data.market_aggregate
        WHERE is_final"""
    late = pd.DataFrame(pipeline.read(query)).assign(is_final=False, volume=1.0)
    stamps = {"known_at": LATER, "dataset_version": 9_999, "run_id": uuid4()}
    with pipeline.engine.begin() as connection:
        counts = upsert_frame(connection, market_aggregate, late, stamps)
    assert counts == WriteCounts(unchanged=len(late))
    assert pipeline.bars() == before
    assert pipeline.read("SELECT * FROM market_data.market_aggregate_revision") == []
