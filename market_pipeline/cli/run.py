"""Running a job in this process, recorded in Dagster like any other run."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import dagster as dg

from market_pipeline.cli.database import open_database
from market_pipeline.domain.errors import DatabaseUnreachableError
from market_pipeline.domain.triggers import TRIGGER_TAG
from market_pipeline.observability.logs import LineHandler, RunHandler
from market_pipeline.orchestration.causes import describe_error, find_cause
from market_pipeline.settings import read_log_level, read_variable
from market_pipeline.storage.server.failures import explain_failure, find_failure

if TYPE_CHECKING:
    from market_pipeline.cli.progress import RunDisplay


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that ended: whether Dagster calls it a success, and what its failed steps died of."""

    run_id: UUID
    succeeded: bool
    causes: tuple[str, ...]


def run_job(
    name: str,
    options: Mapping[str, Any],
    run_id: UUID | None = None,
    trigger: str = "manual",
    display: "RunDisplay | None" = None,
) -> FinishedRun:
    """Run a job to its end, with a line on stderr for each market, or a display instead.

    Options are fields of ``IngestionRequest``. The trigger is what the receipt says started it.

    Raises:
        PipelineError: A setting is wrong, or the database cannot be used, now or in the middle.
    """
    from market_pipeline.definitions import defs
    from market_pipeline.orchestration.executor import describe_asked, keep_receipt, list_job_assets
    from market_pipeline.orchestration.run_connections import keep_connection

    if display:
        display.say(
            "Opening the database" if read_variable("DATABASE_URL") else "Starting PostgreSQL"
        )
    with open_database():  # A misfit is told in one line here, before Dagster opens its storage.
        pass
    loggers = {"console": dg.colored_console_logger, "progress": _make_logger(display)}
    job = defs.resolve_job_def(name).with_logger_defs(loggers)
    tags = {TRIGGER_TAG: trigger}
    is_debug = read_log_level() == "debug"
    logger = {"console": {"config": {"log_level": "DEBUG"}}} if is_debug else {"progress": {}}
    config = {"resources": {"request": {"config": dict(options)}}, "loggers": logger}
    asked = describe_asked(
        str(run_id or uuid4()), tags, config, list_job_assets(name), datetime.now(UTC)
    )
    # In this process Dagster takes an executor of its own, which keeps no receipt.
    with (
        dg.DagsterInstance.get() as instance,
        keep_connection(instance),
        keep_receipt(instance, asked) as ending,
        _told_in_a_sentence(),
    ):
        result = job.execute_in_process(
            run_config=config,
            instance=instance,
            raise_on_error=False,
            run_id=str(asked.run_id),
            tags=tags,
        )
        causes = _find_causes(result)
        ending.error = None if result.success else "; ".join(causes)
    return FinishedRun(asked.run_id, result.success, causes)


@contextmanager
def _told_in_a_sentence() -> Iterator[None]:
    """Raise what the database failed of where Dagster could not even record it."""
    try:
        yield
    except Exception as error:
        failure = find_failure(error)
        if failure is None:
            raise
        raise DatabaseUnreachableError(explain_failure(failure)) from None


class _Progress(LineHandler):
    """Writes what steps say in their own words; Dagster's events and stack traces stay out."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Errors are told once, as the run's causes."""
        about = getattr(record, "dagster_meta", {})
        return about.get("dagster_event") is None and record.levelno < logging.ERROR


def _make_logger(display: "RunDisplay | None") -> dg.LoggerDefinition:
    """Return a logger of the steps' own messages, to a display or as lines at LOG_LEVEL."""

    @dg.logger
    def show_steps(init_context: dg.InitLoggerContext) -> logging.Logger:
        del init_context
        RunHandler.is_silent = True
        logger = logging.getLogger("market_pipeline.progress")
        logger.setLevel(logging.DEBUG if display else read_log_level().upper())
        logger.propagate = False
        logger.handlers = [display or _Progress()]
        return logger

    return show_steps


def _find_causes(result: dg.ExecuteInProcessResult) -> tuple[str, ...]:
    """Return why each failed step failed; why the run did, when no step came to that."""
    failed = [find_cause(event) for event in result.all_events if event.is_step_failure]
    steps = [f"{cause.step}: {cause.text}" for cause in failed]
    runs = [
        _describe(getattr(event.event_specific_data, "error", None)) or str(event.message)
        for event in result.all_events
        if event.is_job_failure
    ]
    return tuple(steps or runs)


def _describe(error: Any) -> str:
    return "" if error is None else describe_error(error)[1]
