"""Dagster's own storage: records in a schema of the database, logs in the state folder.

``dagster.yaml`` names these classes, because that file has neither defaults for unset variables nor
paths relative to itself.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from dagster_postgres import DagsterPostgresStorage
from sqlalchemy import text

from market_pipeline.domain.errors import SettingError
from market_pipeline.orchestration.dagster_internals import (
    ConfigurableClassData,
    LocalArtifactStorage,
    LocalComputeLogManager,
)
from market_pipeline.orchestration.tick_logs import find_logs_dir
from market_pipeline.settings import find_state_dir, read_variable
from market_pipeline.storage.server.engine import check_database, find_database, open_engine
from market_pipeline.storage.server.urls import name_application, set_search_path
from market_pipeline.storage.server.watchdog import DAGSTER

logger = logging.getLogger("market_pipeline.logs")
DAGSTER_SCHEMA = "dagster"
_TABLES = ("runs", "instance_info", "event_logs", "jobs")
"""Dagster's three storages are set up where these are."""
_FIND_TABLES = text(
    "SELECT to_regnamespace(:schema), (SELECT count(*) FROM pg_tables "
    "WHERE schemaname = :schema AND tablename = ANY(:tables))"
).bindparams(schema=DAGSTER_SCHEMA, tables=list(_TABLES))


class _Unconfigured:
    """What dagster.yaml names without configuration: the environment says the rest."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}


class PipelineStorage(_Unconfigured, DagsterPostgresStorage):
    """dagster-postgres on DATABASE_URL, or on the embedded server when that is unset."""

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: object
    ) -> Self:
        """Open the storage, creating its schema where it is missing.

        Raises:
            StorageError: The database cannot be reached or does not accept writes.
        """
        del config_value
        address = find_database()
        engine = open_engine(address)
        check_database(engine)
        with engine.begin() as connection:
            schema, tables = connection.execute(_FIND_TABLES).one()
            if schema is None:
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {DAGSTER_SCHEMA}"))
        engine.dispose()
        # By this name its connections are watched, though Dagster makes the engines itself.
        url = name_application(set_search_path(address.url, DAGSTER_SCHEMA), DAGSTER)
        # Where all is there, Dagster need not look: it opens six connections for that.
        return cls(url, should_autocreate_tables=tables < len(_TABLES), inst_data=inst_data)


class SharedStorage(PipelineStorage):
    """The storage of an instance on several machines, none of which has a server of its own."""

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: object
    ) -> Self:
        """Open the storage of DATABASE_URL.

        Raises:
            SettingError: It is not set here.
        """
        if not read_variable("DATABASE_URL"):
            raise SettingError(
                "DATABASE_URL is not set: the machines of this instance share one PostgreSQL, and "
                "this one would start its own. Set it to the same address on all of them"
            )
        return super().from_config_value(inst_data, config_value)


class StateArtifactStorage(_Unconfigured, LocalArtifactStorage):
    """Dagster's local files, in the state folder wherever a command was started."""

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: object
    ) -> "StateArtifactStorage":
        """Return the storage in the state folder."""
        del config_value
        return cls(str(_make_private(find_state_dir() / "dagster")), inst_data)


class StateComputeLogs(_Unconfigured, LocalComputeLogManager):
    """What runs print, in the state folder wherever a command was started."""

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: object
    ) -> "StateComputeLogs":
        """Return the log manager of the state folder."""
        del config_value
        return cls(str(_make_private(find_logs_dir())), inst_data=inst_data)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Iterator[Any]:
        """Write what is printed to the log as well, until the block ends."""
        try:
            with _restore_output(), super().capture_logs(log_key) as captured:
                yield captured
        except OSError as error:
            logger.warning("what was printed is not in the log in %s: %s", find_logs_dir(), error)
            raise


@contextmanager
def _restore_output() -> Iterator[None]:
    """Let stdout and stderr be at the end what they were.

    Dagster leaves them in the log where that lies on a full disk. What a command says afterwards
    would be lost, and its exit code would be 120, which Python gives for output that is lost.
    """
    with ExitStack() as stack:
        for number in (1, 2):
            with suppress(OSError):  # It is closed.
                copy = stack.enter_context(os.fdopen(os.dup(number), "wb"))
                stack.callback(os.dup2, copy.fileno(), number)
        yield


def _make_private(folder: Path) -> Path:
    """Make a folder that its owner alone can read, also where it is there already.

    Runs print what providers answer, and Dagster opens its folders to everybody.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(PermissionError):  # Another user's: who made it has closed it.
        folder.chmod(0o700)
    return folder
