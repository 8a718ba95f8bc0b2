"""``market-pipeline``: the same job as Dagster's, the database's housekeeping, and listings."""

import os
import shutil
import sys
from pathlib import Path

import click

from market_pipeline.cli.agents import mcp
from market_pipeline.cli.agreement import agreement
from market_pipeline.cli.alerts import alerts
from market_pipeline.cli.database import db
from market_pipeline.cli.dev import dev
from market_pipeline.cli.events import events
from market_pipeline.cli.export import export
from market_pipeline.cli.ingest import ingest
from market_pipeline.cli.markets import markets
from market_pipeline.cli.plan import backfill, coverage, plan
from market_pipeline.cli.providers import providers
from market_pipeline.cli.quarantine import quarantine
from market_pipeline.cli.runs import runs
from market_pipeline.cli.shell import completion, open_dashboard
from market_pipeline.cli.web import dagster_dev, serve, web
from market_pipeline.cli.why import diff, why
from market_pipeline.domain.errors import (
    HistoryRequestError,
    PipelineError,
    SettingError,
    UnknownMarketError,
)
from market_pipeline.observability.logs import configure_logs
from market_pipeline.observability.redaction import redact
from market_pipeline.settings import find_project_dir, load_dotenv

_PROJECT_FILES = Path(__file__).resolve().parent.parent / "project"
_EPILOG = """\b
Examples:
  market-pipeline ingest
  market-pipeline ingest --symbols BTC-USD,SPX --provider yahoo --lookback-days 90
  market-pipeline db shell -- -c 'select * from market_roi_statistic'

Settings are environment variables, also read from .env in this folder; docs/settings.md lists them.
"""


_COMMAND_NAMED = "`market-pipeline"


class _Command(click.Group):
    """A group that lists its commands in the order of use, and ends deliberate errors in a line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            click.echo(f"Error: {_name_next(error, ctx.invoked_subcommand)}", err=True)
            ctx.exit(1)
        except Exception as error:
            if not _is_database_failure(error):
                raise
            click.echo(f"Error: {redact(str(error))}", err=True)
            ctx.exit(1)


def _name_next(error: PipelineError, command: str | None) -> str:
    """Return what an error says, with the command's help where it names no command to type."""
    is_asked_wrongly = isinstance(error, SettingError | HistoryRequestError | UnknownMarketError)
    if not is_asked_wrongly or _COMMAND_NAMED in str(error):
        return str(error)
    return f"{error} ({_COMMAND_NAMED} {command} --help`)"


def _is_database_failure(error: Exception) -> bool:
    """Tell whether an error is the database's; a command that did not use it loads no driver."""
    failures = sys.modules.get("market_pipeline.storage.server.failures")
    return failures is not None and isinstance(error, failures.DatabaseFailedError)


@click.group(cls=_Command, epilog=_EPILOG)
@click.version_option(package_name="market-pipeline", message="%(prog)s %(version)s")
def main() -> None:
    """Market data into PostgreSQL, with a record of what is missing."""
    load_dotenv()
    os.environ["DAGSTER_HOME"] = os.environ.get("DAGSTER_HOME") or str(find_project_dir())
    configure_logs("")


@main.command(short_help="Make this folder a project: Dagster's files and .env.")
def init() -> None:
    """Write dagster.yaml and workspace.yaml where they are missing, and DAGSTER_HOME into .env.

    Other lines of .env stay, and so does a file that is there. In a checkout only .env is written.
    """
    from dotenv import set_key

    file, home = Path.cwd() / ".env", find_project_dir()
    for brought in sorted(_PROJECT_FILES.glob("*.yaml")):  # A wheel has them; a checkout is one.
        if not (home / brought.name).exists():
            shutil.copy(brought, home)
            click.echo(f"Wrote {home / brought.name}")
    file.touch(mode=0o600)
    # Resolved, because the library would put a file in the place of a link.
    set_key(file.resolve(), "DAGSTER_HOME", str(home), quote_mode="auto")
    click.echo(f"DAGSTER_HOME in {file.name} is {home}")


for command in (
    ingest, plan, backfill, coverage, runs, diff, why, agreement, quarantine, events, export,
    markets, providers, alerts, serve, open_dashboard, mcp, web, dev, dagster_dev, db,
    completion,
):  # fmt: skip
    main.add_command(command)
