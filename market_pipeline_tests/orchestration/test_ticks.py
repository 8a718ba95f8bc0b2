"""Ticks: several runs share a request, and one receipt speaks of them."""

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._core.events import EngineEventData
from dagster._utils.error import SerializableErrorInfo, serializable_error_info_from_exc_info
from sqlalchemy import Engine

from market_pipeline.definitions import build_definitions
from market_pipeline.domain.errors import PipelineError, SettingError
from market_pipeline.domain.ticks import SHARD_TAG, TICK_TAG, VERSION_TAG, choose_shard
from market_pipeline.ingestion.request import build_request
from market_pipeline.ingestion.ticks import (
    check_code_version,
    check_tick_known,
    open_tick,
    read_code_version,
)
from market_pipeline.orchestration.executor import describe_asked, keep_receipt
from market_pipeline.orchestration.instance_storage import SharedStorage
from market_pipeline.storage.runs.receipts import (
    read_run,
    read_run_markets,
    read_run_tables,
    read_run_totals,
    read_run_with_totals,
)
from market_pipeline.storage.runs.ticks import read_open_ticks, read_parts
from market_pipeline_tests.databases import read_column

pytestmark = pytest.mark.usefixtures("without_pictures")

SYMBOLS = tuple(f"M{number:03}-USD" for number in range(8))
ALERTS = "SELECT message FROM market_data.alert WHERE cleared_at IS NULL AND kind = 'run_failed'"


class Daemon:
    """What Dagster's daemon does for ticks: looks, and runs what the look asks for."""

    def __init__(self, engine: Engine, instance: dg.DagsterInstance) -> None:
        self.engine, self.instance = engine, instance
        self._definitions = build_definitions()
        self._job = self._definitions.resolve_job_def("ingest")

    def look(self) -> list[dg.RunRequest]:
        """Evaluate the sensor, and return the runs that it asks for."""
        context = dg.build_sensor_context(instance=self.instance)
        sensor = self._definitions.get_repository_def().get_sensor_def("tick_watch")
        return list(sensor.evaluate_tick(context).run_requests or ())

    def run(self, request: dg.RunRequest, **changes: object) -> UUID:
        """Carry out one run, with its receipt; ``changes`` are made to its request."""
        config = dict(request.run_config)
        config["resources"]["request"]["config"] |= changes
        run_id = str(uuid4())
        assets = [key.path[-1] for key in request.asset_selection or ()]
        asked = describe_asked(run_id, request.tags, config, assets, datetime.now(UTC))
        with keep_receipt(self.instance, asked) as ending:
            done = self._job.execute_in_process(
                config, instance=self.instance, raise_on_error=False, run_id=run_id,
                tags=request.tags, asset_selection=list(request.asset_selection or ()),
            )  # fmt: skip
            ending.error = None if done.success else "its database was on fire"
        return UUID(run_id)

    def record(
        self, request: dg.RunRequest, status: DagsterRunStatus, **tags: str
    ) -> dg.DagsterRun:
        """Record a run that never came to a receipt."""
        return self.instance.add_run(
            dg.DagsterRun(
                "ingest", str(uuid4()), dict(request.run_config), status=status,
                tags={**request.tags, **tags},
            )
        )  # fmt: skip

    def carry_out(self) -> None:
        """Look and run until nothing is asked for any more."""
        while requests := self.look():
            for request in requests:
                self.run(request)


@pytest.fixture
def daemon(
    engine: Engine, database_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Daemon:
    """The daemon of an installation whose markets are shared by three runs."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("INGESTION_SHARDS", "3")
    monkeypatch.setenv("INGESTION_MARKETS", ",".join(SYMBOLS))
    monkeypatch.setenv("INGESTION_LOOKBACK_DAYS", "2")
    return Daemon(engine, instance)


def ask(engine: Engine, shards: int = 3, symbols: Sequence[str] = SYMBOLS) -> UUID:
    """Open a tick as the schedule, HTTP and the command do."""
    tick_id = uuid4()
    request = build_request(datetime.now(UTC), symbols, "mock", 2)
    open_tick(engine, tick_id, request, "manual", shards)
    return tick_id


def read(engine: Engine, reader: Callable[..., Any], *arguments: object) -> Any:
    """Return what a reader says."""
    with engine.connect() as connection:
        return reader(connection, *arguments)


def get_config(request: dg.RunRequest) -> dict[str, Any]:
    """Return the request that a run is given."""
    config: dict[str, Any] = request.run_config["resources"]["request"]["config"]
    return config


def test_every_market_falls_to_one_shard_for_good() -> None:
    """By its symbol alone: the numbers are written down, and hold on every machine."""
    assert [choose_shard(symbol, 4) for symbol in ("BTC-USD", "ETH-USD", "SPX")] == [1, 2, 2]
    assert {choose_shard(f"S{number}", 4) for number in range(100)} == {1, 2, 3, 4}
    assert {choose_shard(f"S{number}", 1) for number in range(100)} == {1}


def test_a_tick_is_carried_out_by_its_shards_and_a_run_that_derives(daemon: Daemon) -> None:
    """Each symbol is in one shard; comparisons and the cache wait for all; one receipt has all."""
    tick_id = ask(daemon.engine)
    shards = daemon.look()
    assert sorted(name for one in shards for name in get_config(one)["symbols"]) == list(SYMBOLS)
    assert [one.run_key for one in shards] == [f"{tick_id}:{shard}" for shard in (1, 2, 3)]
    for request in shards[:2]:
        daemon.run(request)
    assert [one.run_key for one in daemon.look()] == [f"{tick_id}:3"]
    assert read(daemon.engine, read_run, tick_id)["outcome"] == "running"
    daemon.run(shards[2])
    (derive,) = daemon.look()
    assert derive.run_key == f"{tick_id}:derive"
    daemon.run(derive)
    assert daemon.look() == []
    receipt = read(daemon.engine, read_run_with_totals, tick_id)
    assert (receipt["outcome"], receipt["markets"], receipt["ok"]) == ("ok", 8, 8)
    assert receipt["error"] is None
    tables = {row["table_name"]: row for row in read(daemon.engine, read_run_tables, tick_id)}
    assert tables["market_aggregate"]["inserted"] > 8 * 24
    assert tables["market_comparison"]["inserted"] == 28 * 4
    parts = read(daemon.engine, read_parts, tick_id)
    assert [(one["shard"], one["outcome"]) for one in parts] == [
        (1, "ok"), (2, "ok"), (3, "ok"), (0, "ok")
    ]  # fmt: skip
    assert [one["run_id"] for one in read(daemon.engine, read_run_totals, 9)] == [tick_id]


def test_a_tick_stores_what_one_run_stores(daemon: Daemon) -> None:
    """However many runs share it: bars, coverage, statistics and comparisons are the same rows."""
    daemon.run(dg.RunRequest(run_config=_configure(SYMBOLS, window_end="2024-03-15T12:00Z")))
    tables = [
        "market_aggregate", "market_coverage", "market_comparison", "market_roi_statistic"
    ]  # fmt: skip
    alone = {table: _digest(daemon.engine, table) for table in tables}
    emptied = ", ".join(f"market_data.{table}" for table in (*tables, "computed_input"))
    with daemon.engine.begin() as connection:
        connection.exec_driver_sql(f"TRUNCATE {emptied}")
    request = build_request(datetime.now(UTC), SYMBOLS, "mock", 2, "2024-03-15T12:00Z")
    open_tick(daemon.engine, uuid4(), request, "manual", 3)
    daemon.carry_out()
    assert {table: _digest(daemon.engine, table) for table in tables} == alone


def test_shards_do_what_was_asked_and_not_what_their_environment_says(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request was resolved once; another provider and other markets are nothing to them."""
    tick_id = ask(daemon.engine)
    monkeypatch.setenv("INGESTION_PROVIDER", "coingecko")
    monkeypatch.setenv("INGESTION_MARKETS", "SPX")
    monkeypatch.setenv("INGESTION_SHARDS", "7")
    daemon.carry_out()
    lines = read(daemon.engine, read_run_markets, tick_id)
    assert {(row["provider"], row["outcome"]) for row in lines} == {("mock", "ok")}
    assert sorted(row["symbol"] for row in lines) == list(SYMBOLS)
    primary = "SELECT count(*) FROM market_data.market WHERE is_primary"
    assert read_column(daemon.engine, primary) == [8]


def test_an_empty_shard_has_no_run(daemon: Daemon) -> None:
    """No symbols would mean those of INGESTION_MARKETS."""
    tick_id = ask(daemon.engine, shards=50, symbols=SYMBOLS[:2])
    assert len(daemon.look()) == 2
    daemon.carry_out()
    assert read(daemon.engine, read_run, tick_id)["outcome"] == "ok"


def test_a_shard_that_failed_makes_the_tick_partial_and_names_it(daemon: Daemon) -> None:
    """Its markets are missing by name, one alert speaks of the tick, and the next tick repairs."""
    tick_id = ask(daemon.engine)
    first, *others = daemon.look()
    lost = get_config(first)["symbols"]
    broken = daemon.run(first, symbols=["no such symbol"])
    for request in others:
        daemon.run(request)
    daemon.carry_out()
    receipt = read(daemon.engine, read_run_with_totals, tick_id)
    assert (receipt["outcome"], receipt["markets"]) == ("partial", 8)
    assert receipt["error"] == "shard 1: its database was on fire"
    lines = read(daemon.engine, read_run_markets, tick_id)
    assert [row["symbol"] for row in lines if row["outcome"] == "missing"] == lost
    assert read_column(daemon.engine, ALERTS) == [
        f"tick {tick_id}: 1 of 4 runs failed: 1: its database was on fire"
    ]
    assert read(daemon.engine, read_run, broken)["outcome"] == "failed"
    ask(daemon.engine)
    daemon.carry_out()
    assert read_column(daemon.engine, ALERTS) == []
    bars = "SELECT count(DISTINCT market_id) FROM market_data.market_aggregate"
    assert read_column(daemon.engine, bars) == [8]


def test_a_run_that_never_began_is_told_with_its_reason(daemon: Daemon) -> None:
    """As when the broker is away: the tick ends, says so, and later ones go on."""
    tick_id = ask(daemon.engine)
    for request in daemon.look():
        daemon.record(request, DagsterRunStatus.FAILURE)
    daemon.carry_out()
    receipt = read(daemon.engine, read_run, tick_id)
    assert receipt["outcome"] == "failed"
    assert receipt["error"].count("failure") == 3
    assert len(read_column(daemon.engine, ALERTS)) == 1
    later = ask(daemon.engine)
    daemon.carry_out()
    assert read(daemon.engine, read_run, later)["outcome"] == "ok"


def call_broker() -> None:
    """Fail as a client does whose broker is away."""
    raise ConnectionError("no broker at 127.0.0.1:1") from OSError("refused")


def catch_error(act: Callable[[], object]) -> SerializableErrorInfo:
    """Return Dagster's record of what something fails of."""
    try:
        act()
    except ConnectionError:
        return serializable_error_info_from_exc_info(sys.exc_info())
    raise AssertionError("it did not fail")


def test_a_run_that_could_not_be_handed_over_says_what_was_away(daemon: Daemon) -> None:
    """Dagster marks it as failed without a reason; the reason is in the event before that."""
    tick_id = ask(daemon.engine, shards=2)
    for request in daemon.look():
        run = daemon.record(request, DagsterRunStatus.STARTING)
        told = EngineEventData.engine_error(catch_error(call_broker))
        daemon.instance.report_engine_event("Caught an error", run, told)
        daemon.instance.report_run_failed(run)
    daemon.carry_out()
    error = read(daemon.engine, read_run, tick_id)["error"]
    said = "ConnectionError: no broker at 127.0.0.1:1; cause: OSError: refused"
    assert error == f"shard 1: {said}; shard 2: {said}"


def test_a_retry_takes_its_originals_place(daemon: Daemon) -> None:
    """A tick waits for it, its outcome counts, and what both wrote is counted."""
    tick_id = ask(daemon.engine)
    first, *others = daemon.look()
    for request in others:
        daemon.run(request)
    daemon.record(first, DagsterRunStatus.FAILURE, **{"dagster/will_retry": "true"})
    assert daemon.look() == []
    daemon.run(first)
    daemon.carry_out()
    assert read(daemon.engine, read_run, tick_id)["outcome"] == "ok"


@pytest.mark.faults
def test_a_daemon_that_dies_between_launches_goes_on_where_it_was(daemon: Daemon) -> None:
    """A run that was only created is asked for again under its key, and submitted then."""
    tick_id = ask(daemon.engine)
    first, second, third = daemon.look()
    daemon.run(first)
    daemon.record(second, DagsterRunStatus.NOT_STARTED)
    asked = daemon.look()
    assert [one.run_key for one in asked] == [second.run_key, third.run_key]
    for request in asked:
        daemon.run(request)
    daemon.carry_out()
    assert read(daemon.engine, read_run, tick_id)["outcome"] == "ok"


def test_two_ticks_that_overlap_both_end_well(daemon: Daemon) -> None:
    """The second finds the work of the first done; shards of both are told apart."""
    ticks = [ask(daemon.engine), ask(daemon.engine, shards=2)]
    asked = daemon.look()
    assert len(asked) == 5
    for request in (asked[0], asked[4], asked[1], asked[3], asked[2]):
        daemon.run(request)
    daemon.carry_out()
    assert [read(daemon.engine, read_run, one)["outcome"] for one in ticks] == ["ok", "ok"]
    repeated = """SELECT count(*) FROM (SELECT FROM market_data.market_aggregate
        GROUP BY market_id, "interval", open_time HAVING count(*) > 1) twice"""
    assert read_column(daemon.engine, repeated) == [0]


def test_the_schedule_opens_one_tick_for_a_moment(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is evaluated twice, and with the number of shards of that time."""
    moment = datetime(2024, 3, 15, 12, tzinfo=UTC)
    for shards in ("3", "2"):
        monkeypatch.setenv("INGESTION_SHARDS", shards)
        schedule = build_definitions().get_repository_def().get_schedule_def("ingest_schedule")
        context = dg.build_schedule_context(
            instance=daemon.instance, scheduled_execution_time=moment
        )
        evaluated = schedule.evaluate_tick(context)
        assert not evaluated.run_requests
        assert "tick_watch launches its runs" in str(evaluated.skip_message)
    (tick,) = read(daemon.engine, read_open_ticks)
    assert (tick.shards, tick.trigger) == (3, "schedule")
    assert len(daemon.look()) == 3


def test_what_a_shard_is_asked_is_what_the_job_accepts(daemon: Daemon) -> None:
    """Config, tags and assets; each run says whose part it is, and which code it needs."""
    tick_id = ask(daemon.engine)
    for number, request in enumerate(daemon.look(), start=1):
        dg.validate_run_config(
            build_definitions().resolve_job_def("ingest"), dict(request.run_config)
        )
        assert request.tags[TICK_TAG] == str(tick_id)
        assert request.tags[SHARD_TAG] == str(number)
        assert request.tags[VERSION_TAG] == read_code_version()
        assert get_config(request)["tick"] == f"{tick_id}:{number}/3"


def test_a_worker_of_another_version_refuses_by_name() -> None:
    """A run without a wish runs anywhere."""
    check_code_version(None)
    check_code_version(read_code_version())
    with pytest.raises(PipelineError, match=r"the run asks for 0\.0\.9-abc: install one version"):
        check_code_version("0.0.9-abc")


def test_a_worker_of_another_database_refuses_by_name(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without DATABASE_URL has a database of its own, which does not know the tick."""
    tick_id = ask(engine)
    check_tick_known(engine, tick_id)
    for url, told in (("", "DATABASE_URL is not set"), ("postgresql://b/c", "another one")):
        monkeypatch.setenv("DATABASE_URL", url)
        with pytest.raises(PipelineError, match=f"not in the database of this worker.*{told}"):
            check_tick_known(engine, uuid4())


def test_an_instance_of_several_machines_starts_no_server_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The storage that deploy/celery names refuses where DATABASE_URL is missing."""
    monkeypatch.setenv("DATABASE_URL", "")
    with pytest.raises(SettingError, match="DATABASE_URL is not set: the machines"):
        SharedStorage.from_config_value(None, {})


@pytest.mark.parametrize("text", ["0", "-1", "257", "two", "1.5"])
def test_shards_that_are_no_number_are_refused_at_load(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the variable and what it was."""
    monkeypatch.setenv("INGESTION_SHARDS", text)
    with pytest.raises(SettingError) as refused:
        build_definitions()
    assert f"INGESTION_SHARDS={text!r}: expected a whole number from 1 to 256" in str(refused.value)


def _configure(symbols: Sequence[str], **request: object) -> dict[str, Any]:
    asked = {"symbols": list(symbols), "provider": "mock", "lookback_days": 2, **request}
    return {"resources": {"request": {"config": asked}}}


def _digest(engine: Engine, table: str) -> object:
    """Return what a table holds, without what says when and by whom it was written."""
    left_out = "run_id,known_at,fetched_at,dataset_version,refreshed_at,refreshed_by,round,verified"
    (found,) = read_column(
        engine,
        f"""SELECT jsonb_agg(line ORDER BY line::text) FROM (
            SELECT to_jsonb(t) - '{{{left_out}}}'::text[] AS line
            FROM market_data.{table} t) lines""",
    )
    assert found
    return found
