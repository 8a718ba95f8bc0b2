"""Running a job in this process, recorded in Dagster like any other run."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import dagster as dg

from market_pipeline.cli.database import open_database
from market_pipeline.domain.errors import DatabaseUnreachableError, PipelineError
from market_pipeline.domain.triggers import BEATS_WITHIN_SECONDS, TRIGGER_TAG
from market_pipeline.ingestion.request import build_request
from market_pipeline.ingestion.ticks import open_tick
from market_pipeline.observability.logs import LineHandler, RunHandler
from market_pipeline.orchestration.causes import describe_run_failure, find_cause
from market_pipeline.settings import read_log_level, read_shards, read_variable
from market_pipeline.storage.runs.receipts import read_run
from market_pipeline.storage.runs.ticks import read_parts
from market_pipeline.storage.server.failures import explain_failure, find_failure

if TYPE_CHECKING:
    from market_pipeline.cli.progress import RunDisplay

_LOOK_SECONDS = 1.0


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


def run_tick(
    options: Mapping[str, Any], tick_id: UUID, trigger: str, say: Callable[[str], None]
) -> FinishedRun:
    """Open a tick and wait for its end; Dagster's daemon launches its runs.

    Raises:
        PipelineError: The daemon does not run, or the database cannot be used.
    """
    request = build_request(datetime.now(UTC), **options)
    with open_database() as engine:
        with dg.DagsterInstance.get() as instance:
            _check_daemon(instance)
        open_tick(engine, tick_id, request, trigger, read_shards())
        say(f"Tick {tick_id} is open. Its runs go on without this command")
        receipt, told = None, ""
        while receipt is None or not receipt["ended_at"]:
            time.sleep(_LOOK_SECONDS)
            with engine.connect() as connection:
                receipt, parts = read_run(connection, tick_id), read_parts(connection, tick_id)
            told, before = _describe_parts(parts), told
            if told != before:
                say(told)
        has_failed = receipt["outcome"] == "failed"
        return FinishedRun(tick_id, not has_failed, (receipt["error"],) if has_failed else ())


def _check_daemon(instance: dg.DagsterInstance) -> None:
    beats = [beat.timestamp for beat in instance.get_daemon_heartbeats().values()]
    if max(beats, default=0.0) < time.time() - BEATS_WITHIN_SECONDS:
        raise PipelineError(
            f"INGESTION_SHARDS={read_shards()}: Dagster's daemon launches the runs of shards, and "
            "it does not run. Start it with `make scheduler`, or set INGESTION_SHARDS=1 to ingest "
            "in this process. Nothing was started"
        )


def _describe_parts(parts: Sequence[Mapping[str, Any]]) -> str:
    named = [f"{part['shard'] or 'derive'} {part['outcome']}" for part in parts]
    return f"Shards: {', '.join(named)}"


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
    runs = [describe_run_failure(event) for event in result.all_events if event.is_job_failure]
    return tuple(steps or runs)
