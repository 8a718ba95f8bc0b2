"""Database addresses: one spelling for every library, and none that shows a password."""

import re
from urllib.parse import quote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from market_pipeline.domain.errors import SettingError

_SCHEMES = {"postgres", "postgresql", "postgresql+psycopg2"}
_SECRET_PARAMETERS = {"password", "sslpassword"}
_UNREADABLE = (
    "DATABASE_URL cannot be read as an address: expected "
    "postgresql://user:password@host:5432/database, with special characters percent-encoded"
)
# SCHEME://USER:PASSWORD@HOSTS/REST, where HOSTS are several.
_SEVERAL_HOSTS = re.compile(
    r"(?P<before>[^/@]*://(?:[^/@]*@)?)(?P<hosts>[^/@?]*,[^/@?]*)(?P<rest>.*)"
)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?")
_PORT = 5432
# SQLAlchemy would put brackets around anything with a colon.
_SEVERAL = "several.hosts.invalid"


def normalise_database_url(text: str) -> str:
    """Return the address with the driver named; SQLAlchemy 2.1 takes psycopg 3 for a bare one.

    Of several hosts (``host1:5432,host2``) the first that accepts writes is connected to, unless
    the address says otherwise (``target_session_attrs``).

    Raises:
        SettingError: It is not a PostgreSQL address; the message never repeats it.
    """
    several = _SEVERAL_HOSTS.fullmatch(text.strip())
    url = _parse_several(several) if several else _parse(text)
    if url.drivername not in _SCHEMES:
        raise SettingError(
            f"DATABASE_URL begins with {url.drivername}://: expected "
            "postgresql://user:password@host:5432/database"
        )
    if "@" in f"{url.host}{url.database}":
        # Shown as host or database, the rest of the password would be in every message.
        raise SettingError(_UNREADABLE)
    return url.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)


def _parse_several(several: "re.Match[str]") -> URL:
    hosts = several["hosts"].split(",")
    if not all(map(_HOST.fullmatch, hosts)):
        raise SettingError(_UNREADABLE)
    named = [host if re.search(r":\d+$", host) else f"{host}:{_PORT}" for host in hosts]
    url = _parse(f"{several['before']}{several['rest']}")
    wanted = {"target_session_attrs": "read-write", **url.query, "host": named}
    return url.update_query_dict(wanted)


def hide_password(text: str) -> str:
    """Return the address as it may be shown."""
    url = _parse(text)
    secrets = dict.fromkeys(_SECRET_PARAMETERS & url.query.keys(), "***")
    return url.update_query_dict(secrets).render_as_string(hide_password=True)


def redact_password(message: str, text: str) -> str:
    """Return what a library said about an address, without the password it may have repeated."""
    url = _parse(text)
    in_query = [value for name in _SECRET_PARAMETERS for value in _as_list(url.query.get(name))]
    for secret in filter(None, (str(url.password or ""), *in_query)):
        message = message.replace(secret, "***").replace(quote(secret, safe=""), "***")
    return message


def build_psql_address(text: str) -> tuple[str, dict[str, str]]:
    """Return the address for psql, and the variables for what must not stand in a command line."""
    url = _parse(text)
    query = {name: value for name, value in url.query.items() if name != "password"}
    # Several hosts stand before the database, as libpq wants them; a socket's folder does not.
    hosts = query.pop("host") if isinstance(url.query.get("host"), tuple) else ()
    host = _SEVERAL if hosts else url.host
    plain = URL.create("postgresql", url.username, None, host, url.port, url.database, query)
    address = plain.render_as_string(hide_password=False).replace(_SEVERAL, ",".join(hosts))
    password = url.password or "".join(_as_list(url.query.get("password")))
    return address, {"PGPASSWORD": str(password)} if password else {}


def set_search_path(text: str, schema: str) -> str:
    """Return the address with connections that look into one schema first."""
    url = _parse(text)
    options = " ".join([*_as_list(url.query.get("options")), f"-csearch_path={schema}"])
    return url.update_query_dict({"options": options}).render_as_string(hide_password=False)


def name_application(text: str, name: str) -> str:
    """Return the address with connections that bear a name, which the server shows."""
    named = _parse(text).update_query_dict({"application_name": name})
    return named.render_as_string(hide_password=False)


def _as_list(value: str | tuple[str, ...] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _parse(text: str) -> URL:
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        raise SettingError(_UNREADABLE) from None
