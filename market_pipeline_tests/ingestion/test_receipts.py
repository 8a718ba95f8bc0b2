"""Receipts that several processes of one run write at the same time."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import Engine

from market_pipeline.ingestion.receipts import begin_receipt
from market_pipeline.storage.bulk.upsert import WriteCounts
from market_pipeline.storage.runs.recording import add_to_table, worsen_outcome
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.readers.writing import make_run

NAMES = ("market_comparison", "market_roi_statistic")
OUTCOME = "SELECT outcome FROM market_data.ingestion_run"


@pytest.mark.parametrize("outcomes", [("ok", "ok"), ("ok", "partial"), ("failed", "partial")])
def test_two_steps_note_their_outcomes_together(engine: Engine, outcomes: tuple[str, str]) -> None:
    """Both share the run's row by their foreign keys before either changes it; the worst stays."""
    run, both = make_run(), Barrier(2)
    with engine.begin() as connection:
        begin_receipt(connection, run)

    def note(name: str, outcome: str) -> None:
        with engine.begin() as connection:
            add_to_table(connection, run.run_id, name, WriteCounts())
            both.wait(300)
            worsen_outcome(connection, run.run_id, outcome)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(note, NAMES, outcomes))
    worst = max(outcomes, key=["ok", "partial", "failed"].index)
    assert read_column(engine, OUTCOME) == [worst]
