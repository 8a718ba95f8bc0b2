"""``market-pipeline db``: create, migrate and look into the database."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from market_pipeline.cli.show import AS_JSON, print_rows

if TYPE_CHECKING:
    from sqlalchemy import Engine

_SHELL_EPILOG = """\b
Examples:
  market-pipeline db shell
  market-pipeline db shell -- -c 'select symbol, roi from market_roi_statistic
                                  join market using (market_id)'
  market-pipeline db shell -- --csv -f report.sql
"""


@contextmanager
def open_database(with_schema: bool = True) -> "Iterator[Engine]":
    """Open the database in use as ``storage.server.database`` does, which is slow to import."""
    from market_pipeline.storage.server import database

    with database.open_database(with_schema) as engine:
        yield engine


@click.group(short_help="Migrate and look into the database.")
def db() -> None:
    """Create, migrate and look into the database: DATABASE_URL, or the embedded one."""


@db.command()
def upgrade() -> None:
    """Apply the migrations that are missing."""
    from market_pipeline.storage.server.schema import read_revision, upgrade_schema

    with open_database(with_schema=False) as engine:
        upgrade_schema(engine)
        click.echo(f"The market tables are at revision {read_revision(engine)}")


@db.command()
@click.argument("message")
def revision(message: str) -> None:
    """Write a new migration, called MESSAGE, for what differs between tables.py and the database.

    Read it before `market-pipeline db upgrade` applies it: a renamed column looks like a lost and
    a new one.
    """
    from market_pipeline.storage.server.schema import write_revision

    with open_database() as engine:
        file = write_revision(engine, message)
    click.echo(f"Wrote {file}" if file else "Nothing to write: the database equals tables.py")


@db.command()
@AS_JSON
def status(as_json: bool) -> None:
    """Show where the database is, and at which revision."""
    from market_pipeline.storage.server.engine import find_database
    from market_pipeline.storage.server.schema import read_newest_revision, read_revision
    from market_pipeline.storage.server.urls import hide_password

    address = find_database()
    with open_database(with_schema=False) as engine:
        row = {
            "database": hide_password(address.url),
            "kind": "embedded" if address.is_embedded else "DATABASE_URL",
            "revision": read_revision(engine) or "none",
            "newest": read_newest_revision(),
        }
    print_rows("Database", [row], as_json)


@db.command()
@click.option("--dry-run", is_flag=True, help="Count only.")
def prune(dry_run: bool) -> None:
    """Remove receipts of runs without change, old snapshots, and Dagster's own old runs.

    Of snapshots older than 90 days the last of each market and UTC day stays; Dagster's runs go
    after DAGSTER_RETENTION_DAYS, but for the newest of each asset. Bars, revisions and receipts of
    runs that changed anything are kept for good.
    """
    from market_pipeline.storage.runs import retention

    now = datetime.now(UTC)
    with open_database() as engine:
        counts = (retention.count_prunable if dry_run else retention.prune)(engine, now)
    done = "would be removed" if dry_run else "removed"
    rows = f"{counts.receipts} receipts, {counts.snapshots} snapshots and {counts.alerts} alerts"
    click.echo(f"{rows} {done}")
    click.echo(f"{_prune_dagster(now, dry_run)} of Dagster's runs {done}")


def _prune_dagster(now: datetime, dry_run: bool) -> int:
    import dagster as dg

    from market_pipeline.orchestration import dagster_history

    cutoff = dagster_history.find_cutoff(now)
    if cutoff is None:
        return 0
    with dg.DagsterInstance.get() as instance:
        if dry_run:
            return len(dagster_history.list_prunable_runs(instance, cutoff))
        return dagster_history.prune_runs(instance, cutoff)


@db.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def dump(file: Path) -> None:
    """Write a backup of the market tables and Dagster's storage to FILE, while runs go on."""
    from market_pipeline.storage.server.backup import dump_database

    with open_database(with_schema=False) as engine:
        size = dump_database(engine, file)
    click.echo(f"Wrote {file} ({size / 1e6:,.1f} MB)")


@db.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Replace the data that the database holds.")
def restore(file: Path, replace: bool) -> None:
    """Put the backup FILE into the database in use: all of it, or nothing.

    Stop the daemon, the webserver and the API first. A backup of an older version is migrated by
    `market-pipeline db upgrade` afterwards (the embedded database: by itself).
    """
    from market_pipeline.domain.errors import StorageError
    from market_pipeline.storage.server.backup import has_tables, restore_database

    with open_database(with_schema=False) as engine:
        if has_tables(engine) and not replace:
            raise StorageError(
                f"restoring {file}: the database holds tables already; --replace puts the backup "
                "in their place"
            )
        restore_database(engine, file)
    click.echo(f"Restored {file}")


@db.command()
@click.option("--prefix", default="market", show_default=True, help="The beginning of their names.")
def roles(prefix: str) -> None:
    """Create an owner, a writer and a reader with the least rights each needs.

    They have no login: make one a member. `market-pipeline db upgrade` is the owner's from then on.
    """
    import dagster as dg

    from market_pipeline.storage.server.roles import create_roles, name_roles

    names = name_roles(prefix)
    with open_database() as engine, dg.DagsterInstance.get():  # so that its tables are there
        create_roles(engine, names)
    click.echo(f"{names.owner} owns the tables, {names.writer} runs the pipeline, ", nl=False)
    click.echo(f"{names.reader} reads the market tables")
    click.echo(f"A login: CREATE ROLE pipeline LOGIN PASSWORD '...' IN ROLE {names.writer}")


@db.command(context_settings={"ignore_unknown_options": True}, epilog=_SHELL_EPILOG)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def shell(ctx: click.Context, arguments: Sequence[str]) -> None:
    """Open psql on the database in use; ARGUMENTS after -- are psql's."""
    from market_pipeline.storage.server.engine import find_database
    from market_pipeline.storage.server.programs import psql_path
    from market_pipeline.storage.server.urls import build_psql_address, set_search_path

    with open_database():
        url = set_search_path(find_database().url, "market_data,public")
        address, secrets = build_psql_address(url)
        command = [str(psql_path()), address, *arguments]
        # A child, not exec: this process holds the embedded server up while psql runs.
        code = subprocess.call(command, env={**os.environ, **secrets})  # noqa: S603 - psql itself
    ctx.exit(code)
