"""The server process: checks settings, opens services, and runs uvicorn until it is stopped."""

from collections.abc import Mapping

from market_pipeline.api.configuration import read_configuration

_DRAIN_SECONDS = 20
_IDLE_SECONDS = 30


def serve(environ: Mapping[str, str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; requests in progress may end first.

    Raises:
        SettingError: A setting is wrong; names the variable.
        StorageError: The database is unreachable, read-only, or at another schema version.
    """
    configuration = read_configuration(environ)
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
