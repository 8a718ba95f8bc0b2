"""``market-pipeline``: the same job as Dagster's, the database's housekeeping, and listings."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from market_pipeline.domain.errors import PipelineError
from market_pipeline.settings import find_project_dir, load_dotenv, read_choice

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
EXIT_PARTIAL = 3


class _Command(click.Group):
    """A group whose deliberate errors end in one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Command)
def main() -> None:
    """Market data into PostgreSQL, by a pipeline that knows what it knows."""
    load_dotenv()
    os.environ["DAGSTER_HOME"] = os.environ.get("DAGSTER_HOME") or str(find_project_dir())
    level = read_choice("LOG_LEVEL", ("debug", "info", "warning", "error"))
    logging.basicConfig(level=level.upper(), format="%(message)s", stream=sys.stderr)
    for noisy in ("dagster", "httpx", "httpcore", "alembic", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@main.command()
def init() -> None:
    """Write an absolute DAGSTER_HOME into .env of this folder; other lines stay."""
    from dotenv import set_key

    file = Path.cwd() / ".env"
    file.touch(mode=0o600)
    set_key(file, "DAGSTER_HOME", str(find_project_dir()), quote_mode="auto")
    click.echo(f"DAGSTER_HOME in {file.name} is {find_project_dir()}")


@main.command()
@click.option(
    "--symbols", default="", help="Symbols separated by commas; default INGESTION_MARKETS."
)
@click.option(
    "--provider", default="", help="Provider or ordered list; default INGESTION_PROVIDER."
)
@click.option("--lookback-days", type=int, help="Days of history; default INGESTION_LOOKBACK_DAYS.")
@click.option("--window-end", default="", help="ISO 8601 time taken as now, such as 2019-01-01.")
@AS_JSON
@click.pass_context
def ingest(
    ctx: click.Context,
    symbols: str,
    provider: str,
    lookback_days: int | None,
    window_end: str,
    as_json: bool,
) -> None:
    """Run Dagster's ingest job here; exits 3 when some markets came short."""
    from market_pipeline.cli.run import run_ingest_job

    options: dict[str, object] = {
        "symbols": [part for part in symbols.split(",") if part.strip()],
        "provider": provider,
        "window_end": window_end,
    }
    if lookback_days is not None:
        from market_pipeline.settings import parse_lookback_days

        options["lookback_days"] = parse_lookback_days(str(lookback_days))
    run_id, succeeded = run_ingest_job(options)
    outcome = _show_run(UUID(run_id), as_json)
    ctx.exit(
        1 if not succeeded or outcome == "failed" else EXIT_PARTIAL if outcome == "partial" else 0
    )


@main.command()
@click.argument("run_id", required=False, type=click.UUID)
@AS_JSON
def runs(run_id: UUID | None, as_json: bool) -> None:
    """Show what a run wrote; without RUN_ID, the last one."""
    from market_pipeline.storage.queries import read_last_run_id

    with _open_database().connect() as connection:
        chosen = run_id or read_last_run_id(connection)
    if chosen is None:
        raise PipelineError("no run has written anything yet: run `market-pipeline ingest`")
    _show_run(chosen, as_json)


@main.command()
@AS_JSON
def providers(as_json: bool) -> None:
    """List providers, what each serves, and whether it is configured."""
    from market_pipeline.providers.registry import list_provider_names, load_provider

    loaded = [load_provider(name, os.environ) for name in list_provider_names()]
    rows = [
        {
            "provider": one.name,
            "serves": one.summary,
            "symbols": ", ".join(one.list_symbols()[:6]),
            "configured": one.explain_missing_settings() or "yes",
        }
        for one in loaded
    ]
    _print_rows("Providers", rows, as_json)


@main.group()
def db() -> None:
    """Create, migrate and look into the database."""


@db.command()
def upgrade() -> None:
    """Apply the migrations that are missing."""
    from market_pipeline.storage.schema import read_revision, upgrade_schema

    engine = _open_database(with_schema=False)
    upgrade_schema(engine)
    click.echo(f"The market tables are at revision {read_revision(engine)}")


@db.command()
@click.argument("message")
def revision(message: str) -> None:
    """Write a new migration from the difference between tables.py and the database."""
    from alembic import command

    from market_pipeline.storage.schema import make_alembic_config

    with _open_database().begin() as connection:
        command.revision(make_alembic_config(connection), message, autogenerate=True)


@db.command()
@AS_JSON
def status(as_json: bool) -> None:
    """Show where the database is and at which revision."""
    from market_pipeline.storage.engine import find_database
    from market_pipeline.storage.schema import read_newest_revision, read_revision
    from market_pipeline.storage.urls import hide_password

    address, engine = find_database(), _open_database(with_schema=False)
    row = {
        "database": hide_password(address.url),
        "kind": "embedded" if address.is_embedded else "DATABASE_URL",
        "revision": read_revision(engine) or "none",
        "newest": read_newest_revision(),
    }
    _print_rows("Database", [row], as_json)


@db.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def shell(ctx: click.Context, arguments: Sequence[str]) -> None:
    """Open psql on the database in use; ARGUMENTS after -- are psql's."""
    from market_pipeline.storage.embedded import psql_path
    from market_pipeline.storage.engine import find_database
    from market_pipeline.storage.urls import set_search_path

    _open_database().dispose()
    url = set_search_path(find_database().url, "market_data,public").replace("+psycopg2", "", 1)
    # A child, not exec: this process holds the embedded server up while psql runs.
    ctx.exit(subprocess.call([str(psql_path()), url, *arguments]))  # noqa: S603 - psql itself


def _open_database(with_schema: bool = True):  # type: ignore[no-untyped-def]  # noqa: ANN202 - loaded late
    from market_pipeline.storage.engine import check_database, find_database, open_engine
    from market_pipeline.storage.schema import ensure_schema

    address = find_database()
    engine = open_engine(address)
    check_database(engine)
    if with_schema:
        ensure_schema(engine, address.is_embedded)
    return engine


def _show_run(run_id: UUID, as_json: bool) -> str | None:
    from market_pipeline.storage import queries

    with _open_database().connect() as connection:
        outcome = queries.read_run_outcome(connection, run_id)
        markets = queries.read_run_markets(connection, run_id).to_dict("records")
        tables = queries.read_run_tables(connection, run_id).to_dict("records")
    if as_json:
        click.echo(
            json.dumps(
                {"run_id": str(run_id), "outcome": outcome, "markets": markets, "tables": tables}
            )
        )
        return outcome
    _print_rows("Bars by market", markets, as_json)
    _print_rows("Rows by table", tables, as_json)
    click.echo(f"Run {run_id}: {outcome or 'no receipt'}")
    return outcome


def _print_rows(title: str, rows: Sequence[Mapping[Any, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, default=str))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ():
        table.add_column(str(name))
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
