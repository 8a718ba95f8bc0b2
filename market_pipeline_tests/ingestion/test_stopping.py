"""A run that is told to end does so, also if Python lost the exception by which it should."""

import signal
import time
from multiprocessing.connection import Connection

import pandas as pd
import pytest
from sqlalchemy import Engine

from market_pipeline.domain.columns import BarColumns
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window
from market_pipeline.providers.mock import MockProvider
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline_tests.children import start_child
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.ingestion.test_waves import NOON, WaveLimits, list_routes, open_stream

MARKETS = 200


class Slow(MockProvider):
    """The mock, which takes its time."""

    def fetch_bars(
        self, market: Market, interval: Interval, window: Window, now: pd.Timestamp
    ) -> BarColumns:
        """Answer after a while."""
        time.sleep(0.5)  # Not waiting for anything: this is how slow it is.
        return super().fetch_bars(market, interval, window, now)


def run_slowly(pipe: Connection, database_url: str) -> None:
    """Run, and say how it ended; the first signal's exception is lost, as in a callback."""
    lost: list[int] = []

    def interrupt(number: int, _: object) -> None:
        if lost:
            raise KeyboardInterrupt
        lost.append(number)

    signal.signal(signal.SIGTERM, interrupt)
    engine = open_engine(DatabaseAddress(database_url, is_embedded=True))
    limits = WaveLimits(markets=10)
    stream = open_stream(engine, list_routes(MARKETS, Slow({})), NOON, limits)
    pipe.send("begun")
    try:
        for _ in stream:
            pass
        pipe.send("ended")
    except KeyboardInterrupt:
        pipe.send("interrupted")


@pytest.mark.owner
def test_a_run_whose_interrupt_was_lost_ends_at_the_next_wave(
    database_url: str, engine: Engine
) -> None:
    """Python forgets what a handler raises in a callback of a weak reference or of C."""
    bars = "SELECT DISTINCT market_id FROM market_data.market_aggregate"
    with start_child(run_slowly, database_url) as child:
        assert child.hear() == "begun"
        while not read_column(engine, bars):
            assert child.process.is_alive(), child.read_log()
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        assert child.hear() == "interrupted"
    assert len(read_column(engine, bars)) < MARKETS
