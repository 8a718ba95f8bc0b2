"""The executors, with one thing added: when the steps are done, the run's receipt is closed.

Dagster has no hook at the end of a run that holds for every job, the buttons' included, but its
executor, which ``Definitions`` sets for all of them.
"""

import logging
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from market_pipeline.domain.errors import PipelineError
from market_pipeline.domain.triggers import find_trigger
from market_pipeline.ingestion.closing import close_run
from market_pipeline.settings import EXECUTORS, read_choice
from market_pipeline.storage.database import open_database

_FETCHES = "market_aggregates"
logger = logging.getLogger("market_pipeline.runs")


class ClosingExecutor(dg.Executor):
    """Runs steps as another executor does, and closes the receipt after them."""

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
        has_failed = True
        try:
            failed = False
            for event in self._inner.execute(plan_context, execution_plan):
                failed |= event.is_step_failure
                yield event
            has_failed = failed
        finally:
            close_receipt(plan_context.dagster_run, has_failed)


def close_receipt(run: dg.DagsterRun, has_failed: bool) -> None:
    """Close a run's receipt; a database that is away must not change what becomes of the run."""
    is_ingestion = run.asset_selection is None or dg.AssetKey(_FETCHES) in run.asset_selection
    keys = run.step_keys_to_execute
    is_ingestion &= keys is None or _FETCHES in keys
    trigger = find_trigger(run.tags)
    try:
        with open_database() as engine, engine.begin() as connection:
            close_run(connection, UUID(run.run_id), trigger, has_failed, is_ingestion)
    except (SQLAlchemyError, PipelineError) as error:
        logger.warning("run %s: its receipt could not be closed: %s", run.run_id, error)


def choose_executor() -> dg.ExecutorDefinition:
    """Return the executor of INGESTION_EXECUTOR.

    Raises:
        SettingError: It is neither.
    """
    # Six light steps do not deserve five interpreter starts; set here, the UI's buttons follow.
    choice = read_choice("INGESTION_EXECUTOR", EXECUTORS)
    return _close_after(
        dg.multiprocess_executor if choice == "multiprocess" else dg.in_process_executor
    )


def _close_after(inner: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    create: Any = inner.executor_creation_fn
    schema: Any = inner.config_schema
    return dg.ExecutorDefinition(
        name=inner.name,
        config_schema=schema,
        requirements=inner.get_requirements,
        executor_creation_fn=lambda context: ClosingExecutor(create(context)),
        description=inner.description,
    )
