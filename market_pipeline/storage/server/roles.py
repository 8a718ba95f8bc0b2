"""Least privilege on a real server: an owner, a writer and a reader, as groups without login.

A login is a member of one of them; ``docs/operations.md`` shows the statements. Only the owner
changes the tables, the writer runs the pipeline, the reader reads the market tables. Not here: the
logins. The embedded server has one user and needs no roles.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from market_pipeline.domain.errors import SettingError, StorageError
from market_pipeline.storage.server.engine import describe_database_error
from market_pipeline.storage.server.watchdog import allow
from market_pipeline.storage.tables import SCHEMA, SCHEMAS

_MAX_PREFIX = 40
# The tables, views and sequences of schemas that no other table owns.
_RELATIONS = text("""
    SELECT format('%I.%I', nspname, relname) AS name, relkind = 'S' AS is_sequence
    FROM pg_class part JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = ANY(:schemas) AND relkind IN ('r', 'p', 'v', 'S') AND NOT EXISTS (
        SELECT FROM pg_depend WHERE objid = part.oid AND deptype IN ('a', 'i') AND relkind = 'S')
    ORDER BY 1
""")
# Whether there is a role; whether this user is a member of it.
_EXISTS = text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :name)")
_MAY = text("SELECT pg_has_role(current_user, :name, 'MEMBER')")


@dataclass(frozen=True, slots=True)
class Roles:
    """The three roles' names."""

    owner: str
    writer: str
    reader: str


def name_roles(prefix: str) -> Roles:
    """Return the names with a prefix, which must be a plain word."""
    if not (prefix.isidentifier() and prefix.isascii() and len(prefix) <= _MAX_PREFIX):
        raise SettingError(
            f"prefix {prefix[:60]!r}: expected letters, digits and _, {_MAX_PREFIX} at most"
        )
    return Roles(f"{prefix}_owner", f"{prefix}_writer", f"{prefix}_reader")


@allow("bulk")
def create_roles(engine: Engine, roles: Roles) -> None:
    """Create the roles where they are missing, and give each what it needs and no more.

    Done again after it was done, it changes nothing; tables of later migrations get their rights by
    themselves, as long as the owner applies them. All of it in one transaction.

    Raises:
        StorageError: The user lacks the right to create roles, or does not own the tables.
    """
    try:
        with engine.begin() as connection:
            for name in (roles.owner, roles.writer, roles.reader):
                if not connection.execute(_EXISTS, {"name": name}).scalar():
                    connection.exec_driver_sql(f'CREATE ROLE "{name}" NOLOGIN')
            if not connection.execute(_MAY, {"name": roles.owner}).scalar():
                connection.exec_driver_sql(f'GRANT "{roles.owner}" TO CURRENT_USER')
            for statement in (*_give_away(connection, roles), *_grant(roles)):
                connection.exec_driver_sql(statement)
    except DBAPIError as error:
        address = engine.url.render_as_string(hide_password=False)
        raise StorageError(
            "the roles could not be created, nothing was changed: "
            f"{describe_database_error(error, address)}. It takes a user with CREATEROLE who owns "
            "the tables, or a superuser"
        ) from error


def _give_away(connection: Connection, roles: Roles) -> list[str]:
    """Return what makes the owner own both schemas and all that is in them."""
    rows = connection.execute(_RELATIONS, {"schemas": list(SCHEMAS)})
    statements = [
        f'ALTER {"SEQUENCE" if row.is_sequence else "TABLE"} {row.name} OWNER TO "{roles.owner}"'
        for row in rows
    ]
    schemas = [f'ALTER SCHEMA {name} OWNER TO "{roles.owner}"' for name in SCHEMAS]
    database = connection.engine.url.database
    return [
        # A schema's new owner must be able to create one.
        f'GRANT CREATE, TEMPORARY ON DATABASE "{database}" TO "{roles.owner}"',
        f'GRANT TEMPORARY ON DATABASE "{database}" TO "{roles.writer}"',
        *statements,
        *schemas,
    ]


def _grant(roles: Roles) -> list[str]:
    rights = _grant_in(SCHEMA, "SELECT", roles.reader, roles.owner)
    for schema in SCHEMAS:
        rights += _grant_in(schema, "SELECT, INSERT, UPDATE, DELETE", roles.writer, roles.owner)
        # Which version the tables have is told by who changes them.
        version = f"{schema}.alembic_version"
        rights.append(f'REVOKE INSERT, UPDATE, DELETE ON {version} FROM "{roles.writer}"')
    return rights


def _grant_in(schema: str, rights: str, role: str, owner: str) -> list[str]:
    later = f'ALTER DEFAULT PRIVILEGES FOR ROLE "{owner}" IN SCHEMA {schema} GRANT'
    statements = [
        f'GRANT USAGE ON SCHEMA {schema} TO "{role}"',
        f'GRANT {rights} ON ALL TABLES IN SCHEMA {schema} TO "{role}"',
        f'{later} {rights} ON TABLES TO "{role}"',
    ]
    if rights != "SELECT":
        statements += [
            f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO "{role}"',
            f'{later} USAGE ON SEQUENCES TO "{role}"',
        ]
    return statements
