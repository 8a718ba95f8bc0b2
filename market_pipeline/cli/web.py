"""``market-pipeline serve`` and ``web``: the API, and Dagster's webserver behind a guard."""

import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

_PASSED_ON: dict[str, Any] = {
    "context_settings": {"ignore_unknown_options": True, "help_option_names": []},
    "add_help_option": False,
}
_ARGUMENTS = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
_WEBSERVER = ("-m", "dagster_webserver")
# Requests in progress may end first.
_DRAIN_SECONDS = 20
_IDLE_SECONDS = 30
_SERVE_EPILOG = """\b
Examples:
  market-pipeline serve
  API_PORT=8080 market-pipeline serve
  API_HOST=0.0.0.0 API_TOKEN=$(openssl rand -hex 32) market-pipeline serve

\b
It listens on 127.0.0.1:8000 unless API_HOST and API_PORT say otherwise.
Runs are started by Dagster's webserver at DAGSTER_UI_URL (`make dev` starts it); where
nobody listens there, by this process, one at a time.
"""


@click.command(epilog=_SERVE_EPILOG, short_help="Serve the HTTP API and the dashboard.")
@click.option("--quiet", is_flag=True, hidden=True, help="Do not say where; make dev does.")
def serve(quiet: bool) -> None:
    """Serve the HTTP API and the dashboard until interrupted."""
    from market_pipeline.api.configuration import read_configuration

    configuration = read_configuration()
    if not quiet:
        click.echo(f"http://{configuration.host}:{configuration.port} (Ctrl-C ends it)")
    import uvicorn

    from market_pipeline.api.app import build_app
    from market_pipeline.api.connections import ConnectionLimits, bound_connections
    from market_pipeline.api.services import open_services

    with open_services(configuration) as services:
        app = build_app(services)
        # Modules and routes stay: to look through them for garbage again and again took a twentieth
        # of the time of an answer.
        gc.freeze()
        uvicorn.run(
            app,
            host=configuration.host,
            port=configuration.port,
            http=bound_connections(ConnectionLimits()),
            ws="none",
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            log_level="warning",
        )


@click.command(
    **_PASSED_ON, short_help="Run Dagster's webserver behind a guard; takes its options."
)
@_ARGUMENTS
def web(arguments: Sequence[str]) -> None:
    """Run `dagster-webserver` with these options, behind a guard against other sites' pages."""
    from market_pipeline.api.configuration import read_webserver_hosts
    from market_pipeline.api.security import WebserverGuard
    from market_pipeline.orchestration.dagster_internals import guard_webserver_app

    def guard(app: Any) -> Any:
        # The app is built within the command, whose option says where it listens.
        host = click.get_current_context().params["host"]
        return WebserverGuard(app, read_webserver_hosts(host))

    _run(guard_webserver_app(guard), arguments, "dagster-webserver", "DAGSTER_WEBSERVER")


@click.command("dagster-dev", **_PASSED_ON, hidden=True)
@_ARGUMENTS
def dagster_dev(arguments: Sequence[str]) -> None:
    """Run `dagster dev` with these options, with `market-pipeline web` as its webserver."""
    from market_pipeline.orchestration.dagster_internals import guard_dev_processes

    _run(guard_dev_processes(_guard), arguments, "dagster dev", "DAGSTER_CLI_DEV")


def _guard(parts: Sequence[str]) -> list[str]:
    """Return the command that starts a webserver as ours; any other command as it is."""
    if tuple(parts[1:3]) != _WEBSERVER:
        return list(parts)
    return [str(Path(sys.executable).parent / "market-pipeline"), "web", *parts[3:]]


def _run(command: click.Command, arguments: Sequence[str], name: str, prefix: str) -> None:
    # Dagster's commands write their own lines; ours would say each of them again.
    logging.getLogger().handlers.clear()
    command.main(args=list(arguments), prog_name=name, auto_envvar_prefix=prefix)
