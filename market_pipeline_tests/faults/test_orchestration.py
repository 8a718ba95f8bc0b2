"""A step that is retried, a run that is executed again, a storage that is away."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import pytest
from sqlalchemy import Engine

from market_pipeline.definitions import build_definitions
from market_pipeline.orchestration.automation import ingest_job
from market_pipeline_tests.databases import BARS, read_column
from market_pipeline_tests.faults.invariants import assert_invariants
from market_pipeline_tests.faults.proxy import COMMIT, RESET, Proxy
from market_pipeline_tests.faults.test_lost_commits import BARS as BARS_RECEIPT
from market_pipeline_tests.orchestration.conftest import Materialise

REQUEST = {"symbols": ["BTC-USD", "SPX"], "lookback_days": 20, "window_end": "2024-03-15T12:00"}
CONFIG = {"resources": {"request": {"config": REQUEST}}}
STORED = f"SELECT count(*)::int FROM {BARS}"
ALERTS = "SELECT count(*)::int FROM market_data.alert"
REFUSE = """
    CREATE FUNCTION market_data.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'injected' USING ERRCODE = 'disk_full';
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON market_data.market_roi_statistic
        FOR EACH STATEMENT EXECUTE FUNCTION market_data.refuse();
"""


def make_job() -> dg.JobDefinition:
    """Return the main job; Dagster wants a function when a run is executed again."""
    return build_definitions().resolve_job_def("ingest")


def list_started(instance: dg.DagsterInstance, run_id: str) -> set[str]:
    """Return the steps that a run began."""
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START)
    return {str(one.step_key) for one in events}


def test_a8_a_step_that_is_tried_again_after_it_wrote_writes_nothing_twice(
    engine: Engine, instance: dg.DagsterInstance, proxy: Proxy, proxied_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The wave was committed, its answer was lost, and Dagster's own policy repeats the step."""
    monkeypatch.setenv("DATABASE_URL", proxied_url)
    patient = dg.define_asset_job(
        "patient", selection=ingest_job.selection, op_retry_policy=dg.RetryPolicy(max_retries=2)
    )
    definitions = dg.Definitions.merge(build_definitions(), dg.Definitions(jobs=[patient]))
    proxy.lose_answer(COMMIT, RESET, BARS_RECEIPT)
    done = definitions.resolve_job_def("patient").execute_in_process(CONFIG, instance=instance)
    assert done.success
    assert proxy.lost.is_set()
    assert [one.step_key for one in done.all_events if one.is_step_up_for_retry] == [
        "market_aggregates"
    ]
    assert_invariants(engine, is_repaired=True)
    assert read_column(engine, ALERTS) == [0]
    assert definitions.resolve_job_def("ingest").execute_in_process(CONFIG, instance=instance)
    assert_invariants(engine, is_repaired=True)


@pytest.mark.faults
@pytest.mark.owner
def test_a9_a_run_that_is_executed_again_from_its_failure_does_what_was_left(
    engine: Engine, database_url: str, instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Steps that ended well stay as they were, and the rows are those of a whole run."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    with refuse_statistics(engine):
        first = make_job().execute_in_process(CONFIG, instance=instance, raise_on_error=False)
    assert not first.success
    before = read_column(engine, STORED)
    assert_invariants(engine)
    with dg.execute_job(
        dg.reconstructable(make_job), instance, CONFIG,
        reexecution_options=dg.ReexecutionOptions.from_failure(first.run_id, instance),
    ) as second:  # fmt: skip
        assert second.success
        assert "market_aggregates" not in list_started(instance, second.run_id)
    assert read_column(engine, STORED) == before
    assert read_column(engine, "SELECT count(*) > 0 FROM market_data.market_roi_statistic") == [
        True
    ]
    assert_invariants(engine, is_repaired=True, is_closed=True)


@contextmanager
def refuse_statistics(engine: Engine) -> Iterator[None]:
    """Let the database refuse statistics until the block ends."""
    with engine.begin() as connection:
        connection.exec_driver_sql(REFUSE)
    yield
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP FUNCTION market_data.refuse() CASCADE")


@pytest.mark.faults
def test_a14_with_dagsters_storage_up_and_the_data_gone_the_run_is_recorded_as_failed(
    engine: Engine, instance: dg.DagsterInstance, proxy: Proxy, proxied_url: str,
    materialise: Materialise, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every connection to the data breaks in the middle; the cause is in Dagster's record."""
    monkeypatch.setenv("DATABASE_URL", proxied_url)
    proxy.lose_answer(b"INSERT INTO market_data.dataset_version", RESET)
    failed = materialise(**REQUEST)
    assert not failed.success
    run = instance.get_run_by_id(failed.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert read_column(engine, STORED) == [0]
    assert_invariants(engine)
    assert materialise(**REQUEST).success
    assert_invariants(engine, is_repaired=True)


@pytest.mark.faults
def test_a14_with_the_data_up_and_dagsters_storage_gone_nothing_that_was_committed_is_lost(
    engine: Engine, instance: dg.DagsterInstance, materialise: Materialise,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Dagster cannot note that the bars were written: the run fails, the bars stay."""
    storage = instance.event_log_storage
    store = storage.store_event

    def refuse(entry: dg.EventLogEntry) -> None:
        happened = entry.dagster_event
        if happened is not None and happened.is_step_materialization:
            raise OSError("the storage of events is away")
        store(entry)

    with monkeypatch.context() as broken:
        broken.setattr(storage, "store_event", refuse)
        failed = _run_to_its_end(materialise)
    assert failed
    before = read_column(engine, STORED)
    assert_invariants(engine)
    assert materialise(**REQUEST).success
    assert read_column(engine, STORED) >= before
    assert_invariants(engine, is_repaired=True)


def _run_to_its_end(materialise: Materialise) -> bool:
    """Return whether a run failed, also if Dagster itself did."""
    try:
        return not materialise(**REQUEST).success
    except OSError:
        return True
