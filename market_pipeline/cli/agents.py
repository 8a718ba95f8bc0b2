"""``market-pipeline mcp``: tools for agents, on standard input and output or over HTTP."""

from contextlib import closing

import click

from market_pipeline.domain.errors import PipelineError

_EPILOG = """\b
Examples:
  market-pipeline mcp                      # what an agent starts as a child process
  market-pipeline mcp --http --port 8001   # http://127.0.0.1:8001/mcp

\b
It only reads. Over HTTP, API_HOST, API_TOKEN and API_ALLOWED_HOSTS hold as for `serve`.
"""


@click.command(epilog=_EPILOG, short_help="Let agents read, over the Model Context Protocol.")
@click.option("--http", is_flag=True, help="Serve over HTTP instead of standard input and output.")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(1, 65_535))
def mcp(http: bool, port: int) -> None:
    """Give agents the readers: markets, latest, bars, statistics, why, coverage, plan.

    Each answer says of which version, how old and how complete it is, and every reason not to trust
    it. Needs the extra: pip install 'market-pipeline[mcp]'
    """
    from market_pipeline.api.configuration import read_configuration
    from market_pipeline.readers.serving import open_serving_cache
    from market_pipeline.storage.server.database import open_database

    try:
        from market_pipeline.api.agents import build_app, build_server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mcp":
            raise
        raise PipelineError(
            "the package mcp is not installed: pip install 'market-pipeline[mcp]'"
        ) from None
    configuration = read_configuration()
    with open_database(patience="page") as engine, closing(open_serving_cache(engine)) as cache:
        server = build_server(engine, cache)
        if not http:
            server.run("stdio")
            return
        import uvicorn

        click.echo(f"http://{configuration.host}:{port}/mcp (Ctrl-C ends it)", err=True)
        app = build_app(server, configuration)
        uvicorn.run(app, host=configuration.host, port=port, log_config=None, access_log=False)
