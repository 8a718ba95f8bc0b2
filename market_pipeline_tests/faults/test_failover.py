"""A primary that dies with a standby beside it, and a standby that is taken for the primary."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import quote

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from market_pipeline.domain.errors import ReadOnlyDatabaseError
from market_pipeline.storage.server.engine import DatabaseAddress, check_database, open_engine
from market_pipeline.storage.server.schema import upgrade_schema
from market_pipeline.storage.server.urls import normalise_database_url
from market_pipeline_tests.databases import hold_up_writers, read_column
from market_pipeline_tests.faults.installations import Disturbed
from market_pipeline_tests.faults.invariants import assert_invariants
from market_pipeline_tests.ingestion.installation import MARCH
from market_pipeline_tests.storage.tcp_server import (
    PASSWORD,
    ROLE,
    TcpServer,
    run_standby,
    run_tcp_server,
)
from market_pipeline_tests.system.processes import wait_for

pytestmark = pytest.mark.faults
WAIT_SECONDS = 300.0
EARLIER = MARCH.replace(day=8)
STORED = "SELECT count(*)::int FROM market_data.market_aggregate"
DIGEST = "SELECT md5(string_agg(bar::text, ',' ORDER BY bar)) FROM market_data.market_aggregate bar"
LAG = "SELECT pg_current_wal_lsn() = replay_lsn FROM pg_stat_replication"
WAITING = """SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'"""


@pytest.fixture
def primary() -> Iterator[TcpServer]:
    """A server with the market tables, in its database postgres."""
    with run_tcp_server() as running:
        engine = open_engine(DatabaseAddress(address_of(running), is_embedded=False))
        upgrade_schema(engine)
        engine.dispose()
        yield running


@pytest.fixture
def standby(primary: TcpServer) -> Iterator[TcpServer]:
    """A server that follows it."""
    with run_standby(primary) as running:
        yield running


@pytest.fixture
def pair(primary: TcpServer, standby: TcpServer) -> Iterator[Engine]:
    """An engine on whichever of both accepts writes; the standby is asked first."""
    hosts = f"127.0.0.1:{standby.port},127.0.0.1:{primary.port}"
    url = f"postgresql://{ROLE}:{quote(PASSWORD, safe='')}@{hosts}/postgres"
    opened = open_engine(DatabaseAddress(normalise_database_url(url), is_embedded=False))
    yield opened
    opened.dispose()


def address_of(server: TcpServer) -> str:
    """Return the address under which SQLAlchemy opens it."""
    return server.make_url(scheme="postgresql+psycopg2")


def tell(server: TcpServer, *statements: str) -> None:
    """Change what a server does."""
    engine = create_engine(address_of(server), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def wait_for_standby(primary: TcpServer) -> None:
    """Wait until the standby has everything."""
    engine = create_engine(address_of(primary))
    wait_for(lambda: read_column(engine, LAG) == [True], WAIT_SECONDS, "the standby")
    engine.dispose()


def fail_over(primary: TcpServer, standby: TcpServer) -> None:
    """Kill the primary with -9, and promote the standby."""
    primary.end(signal.SIGKILL)
    tell(standby, "SELECT pg_promote()")


def test_b13_with_a_synchronous_standby_nothing_that_was_committed_is_lost(
    primary: TcpServer, standby: TcpServer, pair: Engine
) -> None:
    """The run in the middle ends in words, and the next goes on at the other server."""
    tell(
        primary,
        "ALTER SYSTEM SET synchronous_standby_names = '*'",
        "ALTER SYSTEM SET synchronous_commit = 'remote_apply'",
        "SELECT pg_reload_conf()",
    )
    installation = Disturbed(pair)
    installation.ingest(EARLIER)
    (before,) = read_column(pair, DIGEST)
    # Whoever holds the lock loses its session too.
    with (
        ThreadPoolExecutor(1) as pool,
        suppress(OperationalError),
        hold_up_writers(address_of(primary)),
    ):
        run = pool.submit(installation.ingest, MARCH)
        admin = create_engine(address_of(primary))
        wait_for(lambda: read_column(admin, WAITING), WAIT_SECONDS, "the run's wave")
        admin.dispose()
        fail_over(primary, standby)
        error = run.exception(WAIT_SECONDS)
    assert isinstance(error, OperationalError)
    assert "what was already committed stays" in str(error)
    assert read_column(pair, DIGEST) == [before]
    installation.recover()


def test_b13_what_an_asynchronous_standby_missed_is_fetched_again(
    primary: TcpServer, standby: TcpServer, pair: Engine
) -> None:
    """Lost bars are lost together with their ledger, so the next run asks for them again."""
    installation = Disturbed(pair)
    installation.ingest(EARLIER)
    wait_for_standby(primary)
    (kept,) = read_column(pair, DIGEST)
    # From here on it gets nothing: the network between them is cut.
    tell(standby, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
    admin = create_engine(address_of(primary))
    gone = "SELECT count(*) FROM pg_stat_replication"
    wait_for(lambda: read_column(admin, gone) == [0], WAIT_SECONDS, "the cut")
    admin.dispose()
    installation.ingest(MARCH)
    (lost,) = read_column(pair, DIGEST)
    fail_over(primary, standby)
    assert lost != kept
    pair.dispose()
    assert read_column(pair, DIGEST) == [kept]
    installation.recover()


def test_b14_a_standby_is_refused_with_what_to_do(standby: TcpServer) -> None:
    """Nothing is written there, and the message says where to point DATABASE_URL."""
    engine = open_engine(DatabaseAddress(address_of(standby), is_embedded=False))
    with pytest.raises(ReadOnlyDatabaseError, match="point it at the primary server") as caught:
        check_database(engine)
    engine.dispose()
    assert PASSWORD not in str(caught.value)


def test_b15_no_decision_to_write_is_made_from_a_standby_that_lags(
    primary: TcpServer, standby: TcpServer, pair: Engine
) -> None:
    """Its name stands first in the address; what it does not know yet is not fetched twice."""
    wait_for_standby(primary)
    tell(standby, "SELECT pg_wal_replay_pause()")
    installation = Disturbed(pair)
    installation.ingest(MARCH)
    lagging = create_engine(address_of(standby))
    assert read_column(lagging, STORED) == [0]
    lagging.dispose()
    before = read_column(pair, DIGEST)
    installation.recover()
    assert read_column(pair, DIGEST) == before
    assert_invariants(pair, is_repaired=True)
