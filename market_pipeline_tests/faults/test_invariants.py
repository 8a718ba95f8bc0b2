"""The invariants hold after a good run, and each of them can be broken."""

from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from market_pipeline.storage.markets.registration import ensure_markets
from market_pipeline.storage.runs.claims import take_claim
from market_pipeline_tests.faults.installations import MARKETS, Disturbed
from market_pipeline_tests.faults.invariants import LASTING, assert_invariants, find_broken
from market_pipeline_tests.ingestion.installation import MARCH
from market_pipeline_tests.ingestion.test_waves import list_routes

BARS = "market_data.market_aggregate"
LAST = f"open_time = (SELECT max(open_time) FROM {BARS} WHERE interval = '1h' AND is_final)"
RESTATED = "*:rescaled=1.03"
# After one call nothing was asked for twice.
WAITING = """SELECT market_id FROM market_data.ingestion_run_market
    WHERE received > inserted + updated + unchanged + quarantined AND calls = 1"""
# By the invariant's name: what breaks it.
BREACHES = {
    "a bar is stored twice": (
        f"ALTER TABLE {BARS} DROP CONSTRAINT market_aggregate_pkey;"
        f"INSERT INTO {BARS} SELECT * FROM {BARS} LIMIT 1"
    ),
    "an index is not valid": (
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{BARS}_pkey'::regclass"
    ),
    "the ledger and the bars of a series disagree": (
        "UPDATE market_data.market_coverage SET watermark = watermark + interval '1 day'"
    ),
    "the receipts and the bars of a market disagree": (
        f"DELETE FROM {BARS} WHERE interval = '1h' AND {LAST}"
    ),
    "a bar was written by a run that has no receipt of it": (
        f"UPDATE {BARS} SET run_id = gen_random_uuid() WHERE {LAST}"
    ),
    "a request was noted without the receipt of its market": (
        "DELETE FROM market_data.ingestion_run_market"
    ),
    "a version of bars is not noted": "DELETE FROM market_data.dataset_version",
    "readers are not told of a market's newest bars": (
        "UPDATE market_data.market_stamp SET version = 0"
    ),
    "a watermark went back": (
        "UPDATE market_data.ingestion_run_market SET watermark_after = '2030-01-01Z'"
    ),
    "a revision replaces nothing": (
        "INSERT INTO market_data.market_aggregate_revision"
        f" SELECT *, now(), dataset_version, run_id FROM {BARS} LIMIT 1"
    ),
    "a bar is impossible": (
        f"ALTER TABLE {BARS} DROP CONSTRAINT high_is_highest;"
        f"UPDATE {BARS} SET high = low / 2 WHERE interval = '1h' AND {LAST}"
    ),
    "bars are neither stored, known nor in quarantine": (
        "UPDATE market_data.ingestion_run_market SET received = received + 1"
    ),
    "a value is no number": (
        "UPDATE market_data.market_roi_statistic SET max_drawdown = NULL;"
        "ALTER TABLE market_data.market_roi_statistic DROP CONSTRAINT sharpe_is_finite;"
        "UPDATE market_data.market_roi_statistic SET sharpe = 'NaN'"
    ),
    "a receipt has no end": "SELECT 1",
}


@pytest.fixture
def ingested(installation: Disturbed) -> Disturbed:
    """An installation after a good run."""
    installation.ingest(MARCH)
    return installation


def test_a_good_run_keeps_every_invariant(ingested: Disturbed) -> None:
    """And the second one too; numbers are recomputed, and everything served is stored."""
    assert assert_invariants(ingested.engine, is_repaired=True) > 100
    assert ingested.provider.served
    ingested.recover()


def test_a1_a_run_that_ends_before_it_knows_what_was_restated_tells_what_waits(
    installation: Disturbed,
) -> None:
    """Bars that came back at other prices are written once both ends of their span are known."""
    installation.ingest(MARCH.replace(day=8))
    installation.ingest(MARCH, RESTATED, commits=len(MARKETS))
    assert installation.read(WAITING)
    assert_invariants(installation.engine)
    installation.ingest(MARCH, RESTATED)
    assert_invariants(installation.engine, is_repaired=True)


@pytest.mark.owner
def test_a_breach_is_found_by_name(ingested: Disturbed) -> None:
    """An invariant that cannot be broken would prove nothing."""
    assert BREACHES.keys() == {*LASTING, "a value is no number", "a receipt has no end"}
    with ingested.engine.connect() as connection:
        for name, breach in BREACHES.items():
            connection.exec_driver_sql(breach)
            assert name in find_broken(connection, is_closed=True), name
            connection.rollback()
        assert set(find_broken(connection, is_closed=False)) == set()


def test_a_claim_that_was_left_is_found(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as a good run has ended, none is left."""
    monkeypatch.setattr("market_pipeline_tests.faults.invariants.SETTLE_SECONDS", 0.0)
    (market,) = list_routes(1)
    (market_id,) = ensure_markets(engine, [market[1]], claim_primary=True)
    take_claim(engine, market_id, uuid4(), timedelta(minutes=1))
    assert_invariants(engine)
    with pytest.raises(AssertionError, match="a claim was left"):
        assert_invariants(engine, is_repaired=True)


LEFT = {
    "a run still shows life": "SELECT pg_advisory_lock(1, 2)",
    "a transaction was left open": "BEGIN; SELECT 1",
    "a temporary table was left": "CREATE TEMP TABLE kept (number int)",
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_behind_is_found_by_name(
    name: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locks, transactions and temporary tables that outlive their run."""
    monkeypatch.setattr("market_pipeline_tests.faults.invariants.SETTLE_SECONDS", 0.0)
    autocommit = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with autocommit as session:
        session.exec_driver_sql(LEFT[name])
        with pytest.raises(AssertionError, match=name):
            assert_invariants(engine)


def test_a_lost_bar_is_found(ingested: Disturbed) -> None:
    """What the provider served and is not stored."""
    ingested.provider.served.add(("BTC-USD", "1d", MARCH, 1.0, 1.0, 1.0, 1.0))
    with pytest.raises(AssertionError, match="1 lost"):
        ingested.recover()


def test_an_invented_bar_is_found(ingested: Disturbed) -> None:
    """What is stored and the provider never served."""
    ingested.provider.served.pop()
    with pytest.raises(AssertionError, match="1 invented"):
        ingested.compare_with_served()
