"""Migrations: bringing the market tables to this code's version, and refusing what does not fit."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from market_pipeline.domain.errors import SchemaOutdatedError
from market_pipeline.storage.tables import SCHEMA

MIGRATION_LOCK = 0x4D50_4D49


def ensure_schema(engine: Engine, is_embedded: bool) -> None:
    """Create the tables where there are none, migrate the embedded database, refuse a misfit.

    Raises:
        SchemaOutdatedError: The database is older or newer than this code; names the command.
    """
    current, newest = read_revision(engine), read_newest_revision()
    if current == newest:
        return
    if current is not None and not is_known_revision(current):
        raise SchemaOutdatedError(
            f"the market tables are at revision {current}, which this version does not know: "
            "upgrade market-pipeline"
        )
    if current is not None and not is_embedded:
        raise SchemaOutdatedError(
            f"the market tables are at revision {current}, this version needs {newest}: "
            "run `market-pipeline db upgrade`"
        )
    upgrade_schema(engine)


def upgrade_schema(engine: Engine) -> None:
    """Apply what is missing; two at once take turns, and a killed one leaves nothing half done."""
    from alembic import command

    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        command.upgrade(make_alembic_config(connection), "head")


def read_revision(engine: Engine) -> str | None:
    """Return the revision the database is at, None before the first migration."""
    with engine.connect() as connection:
        table = connection.execute(text(f"SELECT to_regclass('{SCHEMA}.alembic_version')")).scalar()
        if table is None:
            return None
        query = text(f"SELECT version_num FROM {SCHEMA}.alembic_version")  # noqa: S608 - a constant
        return connection.execute(query).scalar()


def read_newest_revision() -> str:
    """Return the revision this code needs."""
    head = _read_scripts().get_current_head()
    return str(head)


def is_known_revision(revision: str) -> bool:
    """Tell whether this code ships a revision."""
    return any(script.revision == revision for script in _read_scripts().walk_revisions())


def make_alembic_config(connection: Connection | None = None) -> Any:
    """Return the settings under which Alembic finds this project's migrations."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _read_scripts() -> Any:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(make_alembic_config())
