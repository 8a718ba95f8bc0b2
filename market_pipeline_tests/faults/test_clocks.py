"""Clocks and time zones: the same rows wherever a process runs, and whatever its clock says."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from market_pipeline_tests.cli.conftest import Command
from market_pipeline_tests.databases import read_column
from market_pipeline_tests.faults.installations import Disturbed
from market_pipeline_tests.faults.invariants import assert_invariants
from market_pipeline_tests.ingestion.installation import MARCH

RUN = ("ingest", "--symbols", "BTC-USD,SPX,ETH-USD", "--window-end", "2024-03-15T12:00", "--lookback-days", "40")
DIGEST = """SELECT md5(string_agg(bar::text, ',' ORDER BY bar)) FROM (
    SELECT (symbol, interval, open_time AT TIME ZONE 'UTC', close_time AT TIME ZONE 'UTC', open,
        close, volume, is_final) AS bar
    FROM market_data.market_aggregate JOIN market_data.market USING (market_id)) bars"""
NUMBERS = """SELECT md5(string_agg(statistic::text, ',' ORDER BY statistic)) FROM (
    SELECT (symbol, horizon, as_of AT TIME ZONE 'UTC', roi, sharpe, max_drawdown) AS statistic
    FROM market_data.market_roi_statistic JOIN market_data.market USING (market_id)) numbers"""


@pytest.mark.owner
def test_h5_any_time_zone_of_a_process_stores_the_same(command: Command, engine: Engine) -> None:
    """Also one with odd minutes, and one that does not exist."""
    digests = set()
    for zone in ("UTC", "Asia/Kathmandu", ":/nonexistent", "America/New_York"):
        done = command(*RUN, TZ=zone, PGTZ="Asia/Kathmandu")
        assert done.returncode == 0, done.stderr
        assert_invariants(engine, is_repaired=True, is_closed=True)
        digests.add((*read_column(engine, DIGEST), *read_column(engine, NUMBERS)))
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE market_data.market, market_data.ingestion_run CASCADE"))
    assert len(digests) == 1
