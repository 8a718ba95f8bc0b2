"""``market-pipeline open`` and ``completion``: a browser, and the shell."""

import socket

import click

from market_pipeline.domain.errors import PipelineError

SHELLS = ("bash", "zsh", "fish")
_SECONDS = 2.0
_EVERYWHERE = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - where it listens, not where we do
_COMPLETION_EPILOG = """\b
Examples:
  eval "$(market-pipeline completion bash)"                        # in ~/.bashrc
  eval "$(market-pipeline completion zsh)"                         # in ~/.zshrc
  market-pipeline completion fish > ~/.config/fish/completions/market-pipeline.fish
"""


@click.command("open", short_help="Open the dashboard in a browser.")
@click.argument("market", required=False)
def open_dashboard(market: str | None) -> None:
    """Open the dashboard, or the page of MARKET such as BTC-USD, and print its address."""
    from market_pipeline.api.configuration import read_configuration

    configuration = read_configuration()
    host = "127.0.0.1" if configuration.host in _EVERYWHERE else configuration.host
    address = f"http://{f'[{host}]' if ':' in host else host}:{configuration.port}"
    try:
        socket.create_connection((host, configuration.port), _SECONDS).close()
    except OSError:
        raise PipelineError(
            f"nobody listens at {address}: start the dashboard with `market-pipeline serve`, or "
            "with Dagster by `market-pipeline dev`"
        ) from None
    page = f"{address}/markets/{market}" if market else f"{address}/"
    click.echo(page)
    click.launch(page)


@click.command(epilog=_COMPLETION_EPILOG, short_help="Print what lets a shell complete commands.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script by which SHELL completes commands, options and their values."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise PipelineError(f"this version of click completes nothing in {shell}: update it")
    name = "market-pipeline"
    click.echo(found(ctx.find_root().command, {}, name, "_MARKET_PIPELINE_COMPLETE").source())
