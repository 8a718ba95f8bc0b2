"""Database addresses: one spelling for every library, and none that shows a password."""

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from market_pipeline.domain.errors import SettingError

_SCHEMES = {"postgres", "postgresql", "postgresql+psycopg2"}


def normalise_database_url(text: str) -> str:
    """Return the address with the driver named; SQLAlchemy 2.1 takes psycopg 3 for a bare one.

    Raises:
        SettingError: It is not a PostgreSQL address; the message never repeats it.
    """
    url = _parse(text)
    if url.drivername not in _SCHEMES:
        raise SettingError(
            f"DATABASE_URL begins with {url.drivername}://: expected "
            "postgresql://user:password@host:5432/database"
        )
    return url.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)


def hide_password(text: str) -> str:
    """Return the address as it may be shown."""
    return _parse(text).render_as_string(hide_password=True)


def set_search_path(text: str, schema: str) -> str:
    """Return the address with connections that look into one schema first."""
    url = _parse(text)
    options = " ".join([*_as_list(url.query.get("options")), f"-csearch_path={schema}"])
    return url.update_query_dict({"options": options}).render_as_string(hide_password=False)


def _as_list(value: str | tuple[str, ...] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _parse(text: str) -> URL:
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        raise SettingError(
            "DATABASE_URL cannot be read as an address: expected "
            "postgresql://user:password@host:5432/database, with special characters percent-encoded"
        ) from None
