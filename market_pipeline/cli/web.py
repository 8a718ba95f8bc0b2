"""``market-pipeline web``: Dagster's webserver with a guard before it, as ``make dev`` has it too.

Dagster offers no way to put anything before its app. Here is all that leans on names that it does
not publish: ``dagster_webserver.cli.create_app_from_workspace_process_context``, which its command
calls to build the app, and ``dagster._cli.dev.open_ipc_subprocess``, by which ``dagster dev``
starts the webserver's command. Dagster's version is pinned; tests start both.
"""

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


@click.command(
    **_PASSED_ON, short_help="Run Dagster's webserver behind a guard; takes its options."
)
@_ARGUMENTS
def web(arguments: Sequence[str]) -> None:
    """Run `dagster-webserver` with these options, behind a guard against other sites' pages."""
    from dagster_webserver import cli

    module: Any = cli
    build_app = module.create_app_from_workspace_process_context

    def build_guarded(*given: Any, **options: Any) -> Any:
        from market_pipeline.api.configuration import read_webserver_hosts
        from market_pipeline.api.webserver_guard import WebserverGuard

        # The app is built within the command, whose option says where it listens.
        host = click.get_current_context().params["host"]
        return WebserverGuard(build_app(*given, **options), read_webserver_hosts(host))

    module.create_app_from_workspace_process_context = build_guarded
    _run(module.cli, arguments, "dagster-webserver", "DAGSTER_WEBSERVER")


@click.command("dagster-dev", **_PASSED_ON, hidden=True)
@_ARGUMENTS
def dagster_dev(arguments: Sequence[str]) -> None:
    """Run `dagster dev` with these options, with `market-pipeline web` as its webserver."""
    from dagster._cli import dev

    module: Any = dev
    open_process = module.open_ipc_subprocess

    def open_guarded(parts: Sequence[str], **options: Any) -> Any:
        return open_process(_guard(parts), **options)

    module.open_ipc_subprocess = open_guarded
    _run(module.dev_command, arguments, "dagster dev", "DAGSTER_CLI_DEV")


def _guard(parts: Sequence[str]) -> list[str]:
    """Return the command that starts a webserver as ours; any other command as it is."""
    if tuple(parts[1:3]) != _WEBSERVER:
        return list(parts)
    return [str(Path(sys.executable).parent / "market-pipeline"), "web", *parts[3:]]


def _run(command: click.Command, arguments: Sequence[str], name: str, prefix: str) -> None:
    # Dagster's commands write their own lines; ours would say each of them again.
    logging.getLogger().handlers.clear()
    command.main(args=list(arguments), prog_name=name, auto_envvar_prefix=prefix)
