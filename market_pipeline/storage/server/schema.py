"""Migrations: bringing the market tables to this code's version, and refusing what does not fit."""

import time
from argparse import Namespace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from market_pipeline.domain.errors import SchemaOutdatedError, StorageError
from market_pipeline.storage.server.engine import describe_database_error
from market_pipeline.storage.server.watchdog import allow
from market_pipeline.storage.tables import SCHEMA

if TYPE_CHECKING:
    from alembic.operations.ops import MigrationScript

MIGRATION_LOCK = 0x4D50_4D49
# A step that waits for a table in use holds up all who come after it, and a page waits for 4 s.
_LOCK_SECONDS, _PAUSE_SECONDS, _TRIES = 2, 1.0, 20


def ensure_schema(engine: Engine, is_embedded: bool) -> None:
    """Create the tables where there are none, migrate the embedded database, refuse a misfit.

    Raises:
        SchemaOutdatedError: The database is older or newer than this code; names the command.
    """
    current, newest = read_revision(engine), read_newest_revision()
    if current == newest:
        return
    _refuse_unknown(current)
    if current is not None and not is_embedded:
        raise SchemaOutdatedError(
            f"the market tables are at revision {current}, this version needs {newest}: "
            "run `market-pipeline db upgrade`"
        )
    upgrade_schema(engine)


@allow("bulk")
def upgrade_schema(engine: Engine) -> None:
    """Apply what is missing; two at once take turns, and a killed one leaves nothing half done.

    Raises:
        SchemaOutdatedError: The database is newer than this code.
        StorageError: The server refused a statement, such as for lack of a right.
    """
    _refuse_unknown(read_revision(engine))
    try:
        _apply_unlocked(engine)
    except DBAPIError as error:
        address = engine.url.render_as_string(hide_password=False)
        raise StorageError(
            "the market tables could not be migrated, nothing was changed: "
            f"{describe_database_error(error, address)}"
        ) from error


def _apply_unlocked(engine: Engine) -> None:
    """Apply what is missing, and begin anew where a table is in use, so that no queue forms."""
    for left in reversed(range(_TRIES)):
        try:
            _apply(engine)
        except OperationalError as error:
            if not left or getattr(error.orig, "pgcode", None) != "55P03":
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def _apply(engine: Engine) -> None:
    from alembic import command

    with engine.begin() as connection:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        command.upgrade(make_alembic_config(connection), "head")


def write_revision(engine: Engine, message: str) -> Path | None:
    """Write a migration for what differs between tables.py and the database, and return its file.

    It stands beside the other migrations, under the next number. None: nothing differs.
    """
    from alembic import command

    numbers = [int(script.revision) for script in _read_scripts().walk_revisions()]
    options: dict[str, Any] = {"autogenerate": True, "rev_id": f"{max(numbers) + 1:04d}"}
    options["process_revision_directives"] = _drop_empty
    with engine.begin() as connection:
        written = command.revision(make_alembic_config(connection), message, **options)
    return None if written is None or isinstance(written, list) else Path(written.path)


def _drop_empty(context: object, revision: object, directives: "list[MigrationScript]") -> None:
    del context, revision
    if all(operations.is_empty() for operations in directives[0].upgrade_ops_list):
        directives.clear()


def _refuse_unknown(current: str | None) -> None:
    known = (script.revision for script in _read_scripts().walk_revisions())
    if current is not None and current not in known:
        raise SchemaOutdatedError(
            f"the market tables are at revision {current}, which this version does not know: "
            "upgrade market-pipeline"
        )


def read_revision(engine: Engine) -> str | None:
    """Return the revision the database is at, None before the first migration."""
    with engine.connect() as connection:
        table = connection.execute(text(f"SELECT to_regclass('{SCHEMA}.alembic_version')")).scalar()
        if table is None:
            return None
        query = text(f"SELECT version_num FROM {SCHEMA}.alembic_version")
        return connection.execute(query).scalar()


@lru_cache(maxsize=1)
def read_newest_revision() -> str:
    """Return the revision this code needs; its files are read once in a process."""
    return str(_read_scripts().get_current_head())


def make_alembic_config(connection: Connection | None = None) -> Any:
    """Return the settings under which Alembic finds this project's migrations."""
    from alembic.config import Config

    config = Config(cmd_opts=Namespace(quiet=True))  # The command says itself what was done.
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _read_scripts() -> Any:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(make_alembic_config())
