"""Upgrades of the tables while runs write, and one that is killed in the middle."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import Engine, create_engine, text

from market_pipeline.domain.errors import StorageError
from market_pipeline.storage.server import schema
from market_pipeline.storage.server.engine import DatabaseAddress, open_engine
from market_pipeline.storage.server.schema import read_newest_revision, read_revision
from market_pipeline_tests.cli.conftest import Command
from market_pipeline_tests.code_copies import add_migration, copy_package
from market_pipeline_tests.commands import SCRIPTS
from market_pipeline_tests.databases import DESCRIPTIONS, hold_up_writers, read_column
from market_pipeline_tests.faults.installations import Disturbed
from market_pipeline_tests.faults.invariants import find_broken
from market_pipeline_tests.ingestion.installation import MARCH
from market_pipeline_tests.old_database import list_revisions, load_dump
from market_pipeline_tests.second_opinion import check_numbers
from market_pipeline_tests.system.processes import run_in_background, wait_for

WAIT_SECONDS = 300.0
UPGRADE = [str(SCRIPTS / "market-pipeline"), "db", "upgrade"]
WAITING = """SELECT pid FROM pg_stat_activity WHERE datname = current_database()
    AND wait_event_type = 'Lock'"""
COLUMNS = """SELECT format('%s.%s %s', table_name, column_name, data_type)
    FROM information_schema.columns WHERE table_schema = 'market_data' ORDER BY 1"""


# After a database's setting ``halt.at`` an upgrade waits: behind the first statement of the step
# that follows this version, or with ``noted VERSION`` behind the last one of the step to it.
HALT = """
    CREATE FUNCTION public.halt_inside() RETURNS event_trigger LANGUAGE plpgsql AS $$
    DECLARE version text := 'none';
    BEGIN
        IF to_regclass('market_data.alembic_version') IS NOT NULL THEN
            SELECT coalesce(max(version_num), 'none') INTO version FROM market_data.alembic_version;
        END IF;
        IF version = current_setting('halt.at', true) AND tg_tag <> 'CREATE SCHEMA' THEN
            PERFORM pg_sleep(600);
        END IF;
    END $$;
    CREATE FUNCTION public.halt_noted() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF 'noted ' || NEW.version_num = current_setting('halt.at', true) THEN
            PERFORM pg_sleep(600);
        END IF;
        RETURN NEW;
    END $$;
    CREATE EVENT TRIGGER halt ON ddl_command_end EXECUTE FUNCTION public.halt_inside()"""
HALT_NOTED = """CREATE TRIGGER halt AFTER UPDATE ON market_data.alembic_version
    FOR EACH ROW EXECUTE FUNCTION public.halt_noted()"""
HALTED = """SELECT pid FROM pg_stat_activity WHERE datname = current_database()
    AND wait_event = 'PgSleep'"""
REVISIONS = list_revisions()
# Forked from one that has imported everything: a fresh interpreter for each kill takes a minute.
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "alembic.command"])


@pytest.fixture
def old(database_url: str) -> Iterator[Engine]:
    """A database that version 0008 left behind."""
    load_dump(database_url)
    opened = create_engine(database_url)
    yield opened
    opened.dispose()


@pytest.mark.faults
def test_i2_an_upgrade_that_is_killed_half_way_leaves_the_old_tables_and_goes_on_when_repeated(
    old: Engine, database_url: str, template: str, command: Command, server_url: str,
    project_environment: dict[str, str], tmp_path: Path,
) -> None:  # fmt: skip
    """All steps are one transaction: the first are done, a later one waits, and then kill -9."""
    before, columns = read_revision(old), read_column(old, COLUMNS)
    bars = read_column(old, "SELECT count(*) FROM market_data.market_aggregate")
    with (
        hold_up_writers(database_url, "market_data.market"),
        run_in_background(UPGRADE, project_environment, tmp_path) as child,
    ):
        wait_for(lambda: read_column(old, WAITING), WAIT_SECONDS, "a step that waits", child)
        child.process.kill()
        child.process.wait(WAIT_SECONDS)
    wait_for(lambda: not read_column(old, WAITING), WAIT_SECONDS, "the end of its session")
    assert (read_revision(old), read_column(old, COLUMNS)) == (before, columns)
    assert command("db", "upgrade").returncode == 0
    assert read_revision(old) == read_newest_revision() != before
    fresh = server_url.replace("/market_pipeline?", f"/{template}?")
    assert read_column(old, COLUMNS) == read_column(fresh, COLUMNS)
    assert read_column(old, "SELECT count(*) FROM market_data.market_aggregate") == bars
    with old.connect() as connection:
        broken = find_broken(connection, is_closed=True)
    # Version 0008 counted the days and weeks that it built among the fetched bars.
    assert broken.keys() <= {"bars are neither stored, known nor in quarantine"}
    assert check_numbers(old) > 0


def upgrade(url: str) -> None:
    """Apply what is missing, in a process of its own."""
    schema.upgrade_schema(open_engine(DatabaseAddress(url, is_embedded=True)))


def kill_at(address: Engine, point: str) -> None:
    """Kill an upgrade with -9 while it is at a point, and wait for the end of its session."""
    url = address.url.render_as_string(hide_password=False)
    with address.begin() as connection:
        connection.execute(text(f"ALTER DATABASE {address.url.database} SET halt.at = '{point}'"))
    child = PROCESSES.Process(target=upgrade, args=(url,), daemon=True)
    child.start()
    try:
        wait_for(lambda: read_column(address, HALTED), WAIT_SECONDS, f"an upgrade at {point}")
    finally:
        child.kill()
        child.join()
    wait_for(lambda: not read_column(address, HALTED), WAIT_SECONDS, "the end of its session")


def read_state(address: Engine) -> tuple[object, ...]:
    """Return the version of the tables, and what PostgreSQL says of them."""
    return (read_revision(address), *(read_column(address, one) for one in DESCRIPTIONS))


@pytest.mark.faults
def test_i2_an_upgrade_that_is_killed_within_any_step_leaves_the_old_tables(
    database_url: str, server_url: str, template: str
) -> None:
    """From the first version's rows: at the first and the last statement of each step, -9."""
    load_dump(database_url, REVISIONS[0])
    address = create_engine(database_url)
    with address.begin() as connection:
        connection.execute(text(HALT))
        connection.execute(text(HALT_NOTED))
    rows = "SELECT bar::text FROM market_data.market_aggregate AS bar ORDER BY 1"
    bars, before = read_column(address, rows), read_state(address)
    for earlier, later in pairwise(REVISIONS):
        for point in (earlier, f"noted {later}"):
            kill_at(address, point)
            assert read_state(address) == before, point
            assert read_column(address, rows) == bars, point
    go_on(address, server_url.replace("/market_pipeline?", f"/{template}?"))
    counted = "SELECT count(*) FROM market_data.market_aggregate"
    assert read_column(address, counted) == [len(bars)]
    address.dispose()


def test_i2_a_first_upgrade_that_is_killed_leaves_nothing(
    database_url: str, server_url: str, template: str
) -> None:
    """No table stands in the way of the next one."""
    address = create_engine(database_url)
    with address.begin() as connection:
        connection.execute(text(HALT))
    for point in ("none", REVISIONS[0]):
        kill_at(address, point)
        tables = "SELECT 1 FROM pg_tables WHERE schemaname = 'market_data'"
        assert read_column(address, tables) == []
    go_on(address, server_url.replace("/market_pipeline?", f"/{template}?"))
    address.dispose()


def go_on(address: Engine, fresh: str) -> None:
    """Upgrade undisturbed; the tables are then those of a new installation."""
    with address.begin() as connection:
        connection.execute(text(f"ALTER DATABASE {address.url.database} RESET halt.at"))
        connection.execute(text("DROP EVENT TRIGGER halt"))
    url = address.url.render_as_string(hide_password=False)
    schema.upgrade_schema(open_engine(DatabaseAddress(url, is_embedded=True)))
    expected = create_engine(fresh)
    assert read_state(address) == read_state(expected)
    expected.dispose()


@pytest.mark.faults
@pytest.mark.owner
def test_i1_an_upgrade_while_runs_write_stops_neither(
    engine: Engine, project_environment: dict[str, str], tmp_path: Path
) -> None:
    """Four runs at a time go on by the code of before; the upgrade gets its turn and ends."""
    newer = copy_package(tmp_path / "newer")
    add_migration(newer, read_newest_revision(), "9998")
    runs = [Disturbed(engine, [symbol]) for symbol in ("BTC-USD", "ETH-USD", "SPX", "VOD@XLON")]
    is_over = Event()

    def work(one: Disturbed) -> int:
        days = 0
        while not is_over.is_set():
            days += 1
            one.ingest(MARCH.replace(day=min(days, 14)), days=20)
        return days

    environment = {**project_environment, "PYTHONPATH": str(newer)}
    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, one) for one in runs]
        try:
            stored = "SELECT 1 FROM market_data.market_aggregate LIMIT 1"
            wait_for(lambda: read_column(engine, stored), WAIT_SECONDS, "the first bars")
            with run_in_background(UPGRADE, environment, tmp_path) as upgrade:
                code = upgrade.process.wait(WAIT_SECONDS)
                assert code == 0, upgrade.read_last_words()
        finally:
            is_over.set()
        assert all(one.result(WAIT_SECONDS) for one in working)
    assert read_revision(engine) == "9998"
    remark = "SELECT count(remark) FROM market_data.market"
    assert read_column(engine, remark) == [0]
    whole = Disturbed(engine, [symbol for one in runs for symbol in one._symbols])
    whole.provider.served = set().union(*(one.provider.served for one in runs))
    whole.recover()


@pytest.mark.faults
def test_i1_an_upgrade_that_waits_for_a_lock_holds_up_no_page_and_ends_when_it_is_free(
    old: Engine, database_url: str, project_environment: dict[str, str], tmp_path: Path
) -> None:
    """Whoever reads queues behind it: for less time than a page waits for an answer."""
    pages = open_engine(DatabaseAddress(database_url, is_embedded=True), patience="page")
    with old.connect() as export:
        export.execute(text("SELECT count(*) FROM market_data.market"))
        with run_in_background(UPGRADE, project_environment, tmp_path) as upgrade:
            wait_for(lambda: read_column(old, WAITING), WAIT_SECONDS, "its wait", upgrade)
            assert read_column(pages, "SELECT 1 FROM market_data.market LIMIT 1") == [1]
            upgrade.check_running()
            export.rollback()
            assert upgrade.process.wait(WAIT_SECONDS) == 0, upgrade.read_last_words()
    pages.dispose()
    assert read_revision(old) == read_newest_revision()


def test_i1_an_upgrade_that_gets_no_lock_gives_up_in_words_and_changes_nothing(
    old: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a minute of short waits."""
    monkeypatch.setattr(schema, "_TRIES", 2)
    before = read_revision(old)
    with old.connect() as export:
        export.execute(text("SELECT count(*) FROM market_data.market"))
        with pytest.raises(StorageError, match=r"nothing was changed: .* lock timeout"):
            schema.upgrade_schema(old)
    assert read_revision(old) == before
