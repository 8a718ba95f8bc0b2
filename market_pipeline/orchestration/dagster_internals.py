"""Everything used of Dagster that Dagster does not publish, and why.

Dagster may change these names in any release, so its version is pinned. Before an upgrade run
``test_dagster_internals.py``: it uses each of them and names what no longer works. Not here:
Dagster's public names, which every module of this room imports as ``dg``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import dagster as dg
from dagster._core.definitions.run_request import InstigatorType

# Dagster raises it for the checks of assets, and alerts know it; of an op's checks we raise it.
from dagster._core.errors import DagsterAssetCheckFailedError
from dagster._core.scheduler.instigation import InstigatorStatus
from dagster._core.storage.root import LocalArtifactStorage

# Dagster calls ``from_config_value`` of every class that dagster.yaml names with it.
from dagster._serdes import ConfigurableClassData

# A setting must be refused by Dagster's own rule for cron expressions, and missed ticks must be
# counted by its own calendar; Dagster publishes neither.
from dagster._utils.schedules import is_valid_cron_string, reverse_cron_string_iterator
from sqlalchemy import Connection, Engine, NullPool, delete, func, select

if TYPE_CHECKING:
    from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

ENGINE = "_engine"
__all__ = [
    "ENGINE",
    "ConfigurableClassData",
    "DagsterAssetCheckFailedError",
    "LocalArtifactStorage",
    "LocalComputeLogManager",
    "delete_check_results",
    "guard_dev_processes",
    "guard_webserver_app",
    "is_valid_cron_string",
    "iterate_past_ticks",
    "list_newest_check_runs",
    "list_unpooled_storages",
    "read_schedule_switch",
]


def __getattr__(name: str) -> Any:
    """Return the class that ``instance_storage.py`` extends, loaded when an instance is opened.

    It loads a library that watches files, which definitions do not need. dagster.yaml has neither
    defaults nor relative paths, so subclasses of this and of LocalArtifactStorage say where files
    go.
    """
    if name != "LocalComputeLogManager":
        raise AttributeError(name)
    from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

    return LocalComputeLogManager


def iterate_past_ticks(cron_expression: str, now: datetime) -> Iterator[datetime]:
    """Return the times (UTC) before now at which a schedule was due, the newest first."""
    ticks = reverse_cron_string_iterator(now.timestamp(), cron_expression, "UTC")
    return (tick.astimezone(UTC) for tick in ticks)


def read_schedule_switch(instance: dg.DagsterInstance, schedule: str) -> bool | None:
    """Return how the UI's switch of a schedule stands; None: nobody has touched it.

    Dagster publishes only the default of a definition, not what the UI stored over it.
    """
    states = instance.all_instigator_state(instigator_type=InstigatorType.SCHEDULE)
    statuses = {state.status for state in states if state.name == schedule}
    if InstigatorStatus.RUNNING in statuses:
        return True
    return False if InstigatorStatus.STOPPED in statuses else None


def list_newest_check_runs(instance: dg.DagsterInstance) -> set[str]:
    """Return the runs that hold the newest result of an asset check.

    Dagster publishes a check's results one check at a time, and only for known definitions.
    """
    # Imported when first needed: Dagster's storage costs 0.15 s.
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable

    checks = AssetCheckExecutionsTable.c
    ids = select(func.max(checks.id)).group_by(checks.asset_key, checks.check_name)
    with _connect(instance) as connection:
        return {*connection.scalars(select(checks.run_id).where(checks.id.in_(ids)))}


def delete_check_results(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete a run's check results, which Dagster leaves behind when it deletes the run."""
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable

    with _connect(instance) as connection:
        table = AssetCheckExecutionsTable
        connection.execute(delete(table).where(table.c.run_id == run_id))


def list_unpooled_storages(instance: dg.DagsterInstance) -> list[dict[str, Any]]:
    """Return the attributes of an instance's storages on PostgreSQL whose ``ENGINE`` has no pool.

    They ask it for each connection. Dagster publishes no way to give them another engine, and sets
    the same attribute when it opens a pool for its webserver.
    """
    storages = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
    attributes = [getattr(storage, "__dict__", {}) for storage in storages]  # Tuples have none.
    return [own for own in attributes if _has_no_pool(own.get(ENGINE))]


def _has_no_pool(engine: object) -> bool:
    return (
        isinstance(engine, Engine)
        and engine.dialect.name == "postgresql"
        and isinstance(engine.pool, NullPool)
    )


def guard_webserver_app(wrap: Callable[[Any], Any]) -> click.Command:
    """Return the command ``dagster-webserver`` that serves the wrapped app.

    Dagster offers no way to put anything before its app. The name is the one by which its command
    finds the function that builds the app.
    """
    from dagster_webserver import cli

    module: Any = cli
    build_app = module.create_app_from_workspace_process_context

    def build_wrapped(*given: Any, **options: Any) -> Any:
        return wrap(build_app(*given, **options))

    module.create_app_from_workspace_process_context = build_wrapped
    command: click.Command = module.cli
    return command


def guard_dev_processes(change: Callable[[Sequence[str]], list[str]]) -> click.Command:
    """Return the command ``dagster dev`` that starts changed commands as its processes.

    It starts the webserver's command by a fixed name, which would be without the guard.
    """
    from dagster._cli import dev

    module: Any = dev
    open_process = module.open_ipc_subprocess

    def open_changed(parts: Sequence[str], **options: Any) -> Any:
        return open_process(change(parts), **options)

    module.open_ipc_subprocess = open_changed
    command: click.Command = module.dev_command
    return command


def _connect(instance: dg.DagsterInstance) -> AbstractContextManager[Connection]:
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise TypeError(f"cannot prune a {type(storage).__name__}: expected an SQL storage")
    return storage.index_connection()
