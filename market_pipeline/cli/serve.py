"""``market-pipeline serve``: the HTTP API and the dashboard."""

import click

# Requests in progress may end first.
_DRAIN_SECONDS = 20
_IDLE_SECONDS = 30
_EPILOG = """\b
Examples:
  market-pipeline serve
  API_PORT=8080 market-pipeline serve
  API_HOST=0.0.0.0 API_TOKEN=$(openssl rand -hex 32) market-pipeline serve

\b
It listens on 127.0.0.1:8000 unless API_HOST and API_PORT say otherwise.
Runs are started by Dagster's webserver at DAGSTER_UI_URL (`make dev` starts it); where
nobody listens there, by this process, one at a time.
"""


@click.command(epilog=_EPILOG, short_help="Serve the HTTP API and the dashboard.")
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
        uvicorn.run(
            build_app(services),
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
