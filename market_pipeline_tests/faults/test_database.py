"""Faults of a database that lives: locks, timeouts and slots in the middle of runs.

Each ends with the invariants, one good run, and the invariants again.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from sqlalchemy import Connection, Engine, event, make_url, text
from sqlalchemy.exc import OperationalError

from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, PriceSnapshot, Window
from market_pipeline.ingestion import commit
from market_pipeline.storage.server import engine as engine_module
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline_tests.api.conftest import MakeClient
from market_pipeline_tests.databases import BARS, hold_up_writers, read_column
from market_pipeline_tests.faults.installations import Disturbed, Watched, go_through
from market_pipeline_tests.faults.invariants import assert_invariants
from market_pipeline_tests.ingestion.installation import MARCH
from market_pipeline_tests.system.processes import wait_for

WAIT_SECONDS = 300.0
STORED = f"SELECT count(*)::int FROM {BARS}"
WAITING = """SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'"""


@contextmanager
def set_options(
    database_url: str, monkeypatch: pytest.MonkeyPatch, *options: str
) -> Iterator[Engine]:
    """Open the database as every door does, with other limits of the server."""
    changed = " ".join(f"-c {option}" for option in options)
    monkeypatch.setattr(
        engine_module, "SERVER_OPTIONS", f"{engine_module.SERVER_OPTIONS} {changed}"
    )
    opened = open_engine(DatabaseAddress(database_url, is_embedded=True))
    yield opened
    opened.dispose()


@contextmanager
def begin(installation: Disturbed, now: datetime = MARCH) -> Iterator["Future[UUID]"]:
    """Let a run work in another thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(installation.ingest, now)


def wait_for_lock(engine: Engine) -> int:
    """Return the session that waits for a lock, as soon as one does."""
    found = wait_for(lambda: read_column(engine, WAITING), WAIT_SECONDS, "a session that waits")
    return int(str(found[0]))


def test_b5_a_lock_that_is_held_for_a_while_costs_a_wave_a_second_try(
    installation: Disturbed, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement is given up at lock_timeout, and the whole wave is written again."""
    given_up = note_refusals(monkeypatch)
    installation.prepare()
    with set_options(database_url, monkeypatch, "lock_timeout=2s") as engine:
        with go_through(installation, engine), begin_under_lock(installation, database_url) as run:
            wait_for(lambda: given_up or run.done(), WAIT_SECONDS, "the first try to be given up")
        assert run.result(WAIT_SECONDS)
    assert given_up == ["55P03"]
    installation.recover()


def note_refusals(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gather the SQLSTATEs that waves are refused with."""
    states: list[str] = []
    write = commit.write_batches

    def note(*wave: Any) -> Any:
        try:
            return write(*wave)
        except OperationalError as error:
            states.append(error.orig.pgcode)  # type: ignore[union-attr]
            raise

    monkeypatch.setattr(commit, "write_batches", note)
    return states


@contextmanager
def begin_under_lock(installation: Disturbed, database_url: str) -> Iterator["Future[UUID]"]:
    """Let a run begin while the bars are locked; the lock ends with the block, the run later."""
    with ThreadPoolExecutor(1) as pool:
        with hold_up_writers(database_url):
            run = pool.submit(installation.ingest, MARCH)
            yield run
        run.exception(WAIT_SECONDS)


@pytest.mark.faults
def test_b5_a_lock_that_stays_ends_the_run_in_words_and_readers_of_the_cache_go_on(
    installation: Disturbed, database_url: str, monkeypatch: pytest.MonkeyPatch,
    make_client: MakeClient,
) -> None:  # fmt: skip
    """After three tries, each as long as lock_timeout; what was cached is served meanwhile."""
    installation.ingest(MARCH.replace(day=14))
    client, path = make_client(), "/api/markets/BTC-USD/latest"
    before = client.get(path).json()
    with (
        set_options(database_url, monkeypatch, "lock_timeout=300ms") as engine,
        go_through(installation, engine),
        begin_under_lock(installation, database_url) as run,
    ):
        error = run.exception(WAIT_SECONDS)
        assert client.get(path).json()["bars"] == before["bars"]
    assert isinstance(error, OperationalError)
    assert "another session held a lock for too long" in str(error)
    installation.recover()


SLOW = """
    CREATE FUNCTION market_data.dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_sleep(1);
        RETURN NEW;
    END $$;
    CREATE TRIGGER dawdle BEFORE INSERT ON {table}
        FOR EACH ROW WHEN (NEW.interval = '1w') EXECUTE FUNCTION market_data.dawdle();
"""


@pytest.mark.owner
def test_b6_a_statement_that_takes_too_long_leaves_nothing_of_its_wave(
    installation: Disturbed, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written again as a whole, three times; then the run ends with the cure."""
    with installation.engine.begin() as connection:
        connection.exec_driver_sql(SLOW.format(table=BARS))
    with (
        set_options(database_url, monkeypatch, "statement_timeout=900ms") as engine,
        go_through(installation, engine),
        pytest.raises(OperationalError) as caught,
    ):
        installation.ingest(MARCH)
    assert "raise it for this role" in str(caught.value)
    assert read_column(installation.engine, STORED) == [0]
    with installation.engine.begin() as connection:
        connection.exec_driver_sql("DROP FUNCTION market_data.dawdle() CASCADE")
    installation.recover()


class Listener(Watched):
    """The mock, which notes what the thread that asks it has open in the database."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.asked = 0
        self.open: dict[int, int] = {}
        event.listen(engine, "begin", self._count)
        event.listen(engine, "commit", self._forget)
        event.listen(engine, "rollback", self._forget)

    def _count(self, connection: Connection) -> None:
        if connection.get_isolation_level() != "AUTOCOMMIT":
            self.open[threading.get_ident()] = 1

    def _forget(self, _: Connection) -> None:
        self.open.pop(threading.get_ident(), None)

    def fetch_bars(self, market: Market, interval: Interval, window: Window, now: datetime) -> Any:
        """Answer, unless a transaction waits for that."""
        self._check()
        return super().fetch_bars(market, interval, window, now)

    def fetch_snapshots(self, markets: Any, now: datetime) -> list[PriceSnapshot]:
        """Answer, unless a transaction waits for that."""
        self._check()
        return list(super().fetch_snapshots(markets, now))

    def _check(self) -> None:
        self.asked += 1
        assert threading.get_ident() not in self.open, "asked inside of a transaction"


def test_b7_no_provider_is_asked_inside_of_a_transaction(installation: Disturbed) -> None:
    """Whatever it is asked for, by whichever thread: no lock waits for a network."""
    installation.provider = Listener(installation.engine)
    installation.ingest(MARCH.replace(day=10))
    installation.recover()
    assert installation.provider.asked >= 8
    with installation.engine.begin() as connection:
        connection.execute(text("SELECT 1"))
        with pytest.raises(AssertionError, match="inside of a transaction"):
            installation.provider.fetch_snapshots([], MARCH)


def test_b7_a_slow_provider_costs_no_session_that_may_not_idle_in_a_transaction(
    installation: Disturbed, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends such sessions (25P03); a provider may take longer, as none waits for it."""
    fetch = installation.provider.fetch_bars

    def dawdle(*asked: Any) -> Any:
        time.sleep(6)
        return fetch(*asked)

    monkeypatch.setattr(installation.provider, "fetch_bars", dawdle)
    limit = "idle_in_transaction_session_timeout=5s"
    with set_options(database_url, monkeypatch, limit) as engine, go_through(installation, engine):
        installation.ingest(MARCH)
    installation.recover()


@pytest.mark.owner
def test_b18_versions_follow_the_order_of_commits_not_of_beginnings(engine: Engine) -> None:
    """A run whose transaction began first and ended last is newer to readers than the other."""
    early, late = Disturbed(engine, ["BTC-USD"]), Disturbed(engine, ["ETH-USD"])
    early.prepare()
    late.prepare()
    with engine.begin() as connection:
        connection.exec_driver_sql(HALT)
    with engine.connect() as session:
        session.execute(text("SELECT pg_advisory_lock(42)"))
        session.commit()
        with begin(early) as waiting:
            pid = wait_for_lock(engine)
            began = f"SELECT xact_start FROM pg_stat_activity WHERE pid = {pid}"
            (began_at,) = read_column(engine, began)
            late.ingest(MARCH)
            (seen,) = read_column(engine, "SELECT max(version) FROM market_data.dataset_version")
            session.execute(text("SELECT pg_advisory_unlock(42)"))
            waiting.result(WAIT_SECONDS)
    order = """SELECT symbol, min(version), min(known_at) FROM market_data.dataset_version
        JOIN market_data.market USING (market_id) GROUP BY 1 ORDER BY 2"""
    with engine.connect() as connection:
        first, last = connection.execute(text(order)).all()
    assert (first[0], last[0]) == ("ETH-USD", "BTC-USD")
    assert first[2] < last[2]
    assert began_at < first[2]  # type: ignore[operator]
    assert last[1] > seen  # Who has read up to there misses nothing.
    assert_invariants(engine, is_repaired=True)


HALT = """
    CREATE FUNCTION market_data.halt() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF (SELECT symbol FROM market_data.market WHERE market_id = NEW.market_id) = 'BTC-USD' THEN
            PERFORM pg_advisory_xact_lock_shared(42);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER halt BEFORE INSERT ON market_data.ingestion_request
        FOR EACH ROW EXECUTE FUNCTION market_data.halt();
"""


@contextmanager
def take_all_slots(database_url: str) -> Iterator[int]:
    """Take every connection that the server gives, until the block ends."""
    address = make_url(database_url).set(drivername="postgresql")
    taken = []
    try:
        while True:
            taken.append(psycopg2.connect(address.render_as_string(hide_password=False)))
    except psycopg2.OperationalError:
        yield len(taken)
    finally:
        for connection in taken:
            connection.close()


@pytest.mark.faults
def test_b8_without_a_free_slot_the_api_says_503_and_a_run_ends_in_words(
    installation: Disturbed, database_url: str, engine: Engine, make_client: MakeClient
) -> None:
    """Nobody waits for ever, nothing is kept afterwards."""
    client = make_client()
    engine.dispose()
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    before = read_column(database_url, sessions)
    with take_all_slots(database_url) as taken:
        assert taken > 10
        refused = client.get("/api/runs")
        with pytest.raises(OperationalError, match="PostgreSQL takes no more connections"):
            installation.ingest(MARCH)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    # A session ends a moment after its connection was closed.
    wait_for(lambda: client.get("/api/runs").status_code == 200, WAIT_SECONDS, "a free slot")
    installation.recover()
    engine.dispose()
    wait_for(lambda: read_column(database_url, sessions) <= before, WAIT_SECONDS, "no leak")


def injure(state: str) -> str:
    """Return SQL that raises a SQLSTATE at the first wave alone."""
    return f"""
    CREATE SEQUENCE market_data.tries;
    CREATE FUNCTION market_data.hurt() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('market_data.tries') = 1 THEN
            RAISE EXCEPTION 'injected' USING ERRCODE = '{state}';
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER hurt AFTER INSERT ON {BARS}
        FOR EACH STATEMENT EXECUTE FUNCTION market_data.hurt();
    """


HEAL = "DROP FUNCTION market_data.hurt() CASCADE; DROP SEQUENCE market_data.tries"


@pytest.mark.owner
@pytest.mark.parametrize("state", ["40001", "40P01", "55P03", "57014"])
def test_b4_a_wave_that_lost_a_conflict_is_written_again_as_a_whole(
    state: str, installation: Disturbed
) -> None:
    """Serialisation, deadlock, lock and statement: what passes is tried again, and is in."""
    with installation.engine.begin() as connection:
        connection.exec_driver_sql(injure(state))
    installation.ingest(MARCH)
    (tries,) = read_column(installation.engine, "SELECT last_value FROM market_data.tries")
    assert tries == 2
    with installation.engine.begin() as connection:
        connection.exec_driver_sql(HEAL)
    installation.recover()


def test_b4_two_runs_of_the_same_markets_in_any_order_do_not_deadlock(engine: Engine) -> None:
    """Both take locks in the order of keys: both end, and the tables are those of one run."""
    symbols = ["BTC-USD", "ETH-USD", "SPX", "VOD@XLON"]
    both = [Disturbed(engine, symbols), Disturbed(engine, symbols[::-1])]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = read_column(engine, deadlocks)
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda one: one.ingest(MARCH), both):
            pass
    assert read_column(engine, deadlocks) == before
    both[0].provider.served |= both[1].provider.served
    both[0].recover()
