"""The API's settings, checked as a whole before anything is opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from market_pipeline.domain.errors import SettingError
from market_pipeline.settings import (
    name_errors,
    read_secret,
    read_shards,
    read_variable,
    read_whole_number,
    shorten,
    split_list,
)

MAX_WAIT_SECONDS = 3_600
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings of the API.

    Without a token nobody needs one, on loopback only; without a cron secret nobody gets in by it.
    Allowed hosts are lower case, without port; none: any. Addresses of Dagster's webserver have no
    slash at the end: as people reach it, and as the API does; empty: there.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = field(default="", repr=False)
    cron_secret: str = field(default="", repr=False)
    allowed_hosts: frozenset[str] = LOOPBACK_NAMES
    cors_origins: frozenset[str] = frozenset()
    ingest_wait_seconds: int = 60
    dagster_url: str = "http://127.0.0.1:3000"
    graphql_url: str = ""


def read_configuration(environ: Mapping[str, str] | None = None) -> Configuration:
    """Return the API's settings.

    It is a ``SettingError`` too if others than this machine could come in without a token.
    """
    host, token = read_variable("API_HOST", environ), read_secret("API_TOKEN", environ)
    if not token and not is_loopback(host):
        raise SettingError(
            f"API_HOST={shorten(host)!r} lets other machines in: set API_TOKEN as well, "
            "or leave API_HOST at 127.0.0.1"
        )
    read_shards(environ)
    named = {name.lower() for name in split_list(read_variable("API_ALLOWED_HOSTS", environ))}
    return Configuration(
        host=host,
        port=read_whole_number("API_PORT", 1, 65_535, environ),
        token=token,
        cron_secret=read_secret("CRON_SECRET", environ),
        allowed_hosts=_choose_hosts(host, named),
        cors_origins=_read_origins(environ),
        ingest_wait_seconds=read_whole_number("INGEST_WAIT_SECONDS", 0, MAX_WAIT_SECONDS, environ),
        dagster_url=_read_address("DAGSTER_UI_URL", environ),
        graphql_url=_read_address("DAGSTER_GRAPHQL_URL", environ),
    )


def read_webserver_hosts(host: str, environ: Mapping[str, str] | None = None) -> frozenset[str]:
    """Return the names that Dagster's webserver answers to, lower case; empty: any.

    Beside the address it listens on, DAGSTER_UI_URL and DAGSTER_GRAPHQL_URL name it.
    """
    urls = [_read_address(name, environ) for name in ("DAGSTER_UI_URL", "DAGSTER_GRAPHQL_URL")]
    named = {urlsplit(url).hostname or "" for url in urls} - {""}
    return _choose_hosts(host, {name for name in named if not is_loopback(name)})


def is_loopback(host: str) -> bool:
    """Tell whether an address to listen on is reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _choose_hosts(host: str, named: set[str]) -> frozenset[str]:
    """Return the host names to serve; empty: any, because no name is set and DNS is not known."""
    if is_loopback(host):
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return LOOPBACK_NAMES | named | {shown.lower()}
    return frozenset(named | LOOPBACK_NAMES) if named else frozenset()


def _read_origins(environ: Mapping[str, str] | None) -> frozenset[str]:
    """Return the sites whose pages may use the API, as browsers spell them."""
    origins = split_list(read_variable("API_CORS_ORIGINS", environ))
    for origin in origins:
        scheme, _, host = origin.partition("://")
        if scheme not in {"http", "https"} or not host or set(host) & set("/*?#@ "):
            raise SettingError(
                f"API_CORS_ORIGINS: {shorten(origin)!r} is no site: expected a scheme and a host, "
                "such as https://charts.example.com, separated by commas"
            )
    return frozenset(origin.lower() for origin in origins)


def _read_address(name: str, environ: Mapping[str, str] | None) -> str:
    url = read_variable(name, environ)
    with name_errors(f"{name}={shorten(url)!r}"):
        if url and not url.startswith(("http://", "https://")):
            raise SettingError("expected an address, such as http://127.0.0.1:3000")
    return url.rstrip("/")
