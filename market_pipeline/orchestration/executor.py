"""The executors, with one addition: a run has a receipt from its start to its end.

The executor is Dagster's only hook around a run that works for every job, also for the jobs behind
the UI's buttons. ``Definitions`` sets it for all of them.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import dagster as dg
from dagster import DagsterRunStatus
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from market_pipeline.domain.errors import PipelineError, WrongClockError
from market_pipeline.domain.ticks import VERSION_TAG, parse_part
from market_pipeline.domain.triggers import find_trigger
from market_pipeline.ingestion.closing import INTERRUPTED, close_run
from market_pipeline.ingestion.receipts import describe_request
from market_pipeline.ingestion.request import build_request
from market_pipeline.ingestion.ticks import ASSETS, check_code_version, check_tick_known
from market_pipeline.orchestration.causes import Cause, find_cause
from market_pipeline.orchestration.months import read_month
from market_pipeline.orchestration.run_connections import keep_connection
from market_pipeline.settings import EXECUTORS, read_choice, read_variable, split_list
from market_pipeline.storage.runs.claims import hold_liveness_lock
from market_pipeline.storage.runs.closing import find_dead_runs
from market_pipeline.storage.runs.recording import RecordedRequest, open_receipt
from market_pipeline.storage.server.database import open_database
from market_pipeline.storage.server.engine import check_clock

# What jobs select: Dagster's record of a run does not say.
_JOBS: Mapping[str, Sequence[str]] = {
    "ingest": ASSETS,
    "backfill_history": ("market_aggregates",),
    "statistics": ("market_comparisons", "market_roi_statistics"),
}
_INTERRUPTED = "interrupted; what was already committed stays"
logger = logging.getLogger("market_pipeline.runs")


class StepsEnding:
    """What becomes of a run's steps.

    Attributes:
        error: What the receipt says ended the run; None: no step failed.
    """

    def __init__(self) -> None:
        self.error: str | None = _INTERRUPTED

    def follow(self, events: Iterable[dg.DagsterEvent]) -> Iterator[dg.DagsterEvent]:
        """Pass events on; the first step that failed says what ended the run."""
        causes: list[Cause] = []
        for event in events:
            if event.is_step_failure:
                causes.append(find_cause(event))
            yield event
        self.error = f"{causes[0].step}: {causes[0].text}" if causes else None


class ReceiptExecutor(dg.Executor):
    """Runs steps as another executor does, within the run's receipt."""

    def __init__(self, inner: dg.Executor) -> None:
        """Take the executor that does the work."""
        self._inner = inner

    @property
    def retries(self) -> Any:
        """Return how it retries."""
        return self._inner.retries

    @property
    def step_dependency_config(self) -> Any:
        """Return what it waits for."""
        return self._inner.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """Run the steps; one that fails, or an interruption, makes the receipt ``failed``."""
        run = plan_context.dagster_run
        check_code_version(run.tags.get(VERSION_TAG))
        assets = _order(execution_plan.step_keys_to_execute)
        began = _find_beginning(plan_context.instance, run.run_id)
        asked = describe_asked(run.run_id, run.tags, run.run_config, assets, began)
        if asked.part is not None:
            with open_database() as engine:
                check_tick_known(engine, asked.part.tick_id)
        events = self._inner.execute(plan_context, execution_plan)
        with keep_connection(plan_context.instance):
            if not assets:
                yield from events
                return
            with keep_receipt(plan_context.instance, asked) as ending:
                yield from ending.follow(events)


@contextmanager
def keep_receipt(instance: dg.DagsterInstance, asked: RecordedRequest) -> Iterator[StepsEnding]:
    """Open a run's receipt, show that the run lives, and close the receipt after the block.

    Receipts of runs that died are closed as well. A database that is away must not change what
    becomes of the run.

    Raises:
        WrongClockError: The run could not tell which bars are final; there is no receipt.
    """
    ending = StepsEnding()
    with ExitStack() as stack:
        engine = _begin_receipt(stack, instance, asked)
        try:
            yield ending
        finally:
            _end_receipt(engine, asked, ending.error)


def close_receipt(connection: Connection, run: dg.DagsterRun, error: str | None) -> None:
    """Close the receipt of a run that Dagster says has ended; other jobs' runs have none.

    Args:
        connection: In a transaction.
        run: As Dagster has it.
        error: What ended it; None: no step failed.
    """
    assets = list_assets(run)
    if assets:
        config = run.run_config
        open_receipt(
            connection, describe_asked(run.run_id, run.tags, config, assets, datetime.now(UTC))
        )
    close_run(connection, UUID(run.run_id), error)


def close_dead_receipts(engine: Engine, instance: dg.DagsterInstance) -> None:
    """Close the receipts of runs whose process is gone, each in a transaction of its own."""
    with engine.connect() as connection:
        dead = find_dead_runs(connection)
    for run_id in dead:
        run = instance.get_run_by_id(str(run_id))
        # It ended well, but its database was away at that moment.
        is_good = run is not None and run.status is DagsterRunStatus.SUCCESS
        with engine.begin() as connection:
            close_run(connection, run_id, None if is_good else INTERRUPTED)


def list_assets(run: dg.DagsterRun) -> tuple[str, ...]:
    """Return which of our assets a run was to materialise; none for runs of other jobs."""
    if run.asset_selection:
        chosen: Iterable[str] = [key.path[-1] for key in run.asset_selection]
    else:
        chosen = list_job_assets(run.job_name)
    steps = run.step_keys_to_execute
    return _order(chosen if steps is None else set(chosen).intersection(steps))


def list_job_assets(name: str) -> Sequence[str]:
    """Return the assets of one of our jobs; none of another."""
    return _JOBS.get(name, ())


def describe_asked(
    run_id: str,
    tags: Mapping[str, str],
    run_config: Mapping[str, Any],
    assets: Sequence[str],
    began: datetime,
) -> RecordedRequest:
    """Return what a run was asked; a request that is invalid stands as it was given."""
    given = dict(run_config.get("resources", {}).get("request", {}).get("config") or {})
    provider = str(given.get("provider") or read_variable("INGESTION_PROVIDER"))
    part = None
    try:
        part = parse_part(given.pop("tick", ""))
        month = {} if given.get("history_from") else read_month(tags)
        request = build_request(began, **{**given, **month})
        read, provider = describe_request(request), ",".join(request.providers)
    except (PipelineError, TypeError, ValueError, AttributeError):
        symbols = given.get("symbols") or split_list(read_variable("INGESTION_MARKETS"))
        read = {**given, "symbols": list(symbols)}
    asked = {**read, "assets": list(assets)}
    return RecordedRequest(UUID(run_id), find_trigger(tags), began, provider, asked, part)


def choose_executor() -> dg.ExecutorDefinition:
    """Return the executor of INGESTION_EXECUTOR.

    Raises:
        SettingError: It is neither.
    """
    # Six light steps do not deserve five interpreter starts; set here, the UI's buttons follow.
    choice = read_choice("INGESTION_EXECUTOR", EXECUTORS)
    return _wrap(dg.multiprocess_executor if choice == "multiprocess" else dg.in_process_executor)


def _wrap(inner: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    create: Any = inner.executor_creation_fn
    schema: Any = inner.config_schema
    return dg.ExecutorDefinition(
        name=inner.name,
        config_schema=schema,
        requirements=inner.get_requirements,
        executor_creation_fn=lambda context: ReceiptExecutor(create(context)),
        description=inner.description,
    )


def _order(chosen: Iterable[str]) -> tuple[str, ...]:
    """Return those that are our assets, in the graph's order."""
    names = set(chosen)
    return tuple(name for name in ASSETS if name in names)


def _find_beginning(instance: dg.DagsterInstance, run_id: str) -> datetime:
    record = instance.get_run_record_by_id(run_id)
    return (record.create_timestamp if record else datetime.now(UTC)).astimezone(UTC)


def _begin_receipt(
    stack: ExitStack, instance: dg.DagsterInstance, asked: RecordedRequest
) -> Engine | None:
    try:
        engine = stack.enter_context(open_database())
        stack.enter_context(hold_liveness_lock(engine, asked.run_id))
        with engine.begin() as connection:
            check_clock(connection)
            open_receipt(connection, asked)
        close_dead_receipts(engine, instance)
    except WrongClockError:
        raise
    except (SQLAlchemyError, PipelineError) as error:
        logger.warning("run %s: its receipt could not be opened: %s", asked.run_id, error)
        return None
    return engine


def _end_receipt(engine: Engine | None, asked: RecordedRequest, error: str | None) -> None:
    try:
        with ExitStack() as stack:
            engine = engine or stack.enter_context(open_database())
            engine.dispose()  # A server that was restarted meanwhile gets new connections.
            with engine.begin() as connection:
                open_receipt(connection, asked)
                close_run(connection, asked.run_id, error)
    except (SQLAlchemyError, PipelineError) as failure:
        logger.warning("run %s: its receipt could not be closed: %s", asked.run_id, failure)
