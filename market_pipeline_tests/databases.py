"""Databases of the tests' server, made and dropped."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url

BARS = "market_data.market_aggregate"
_COLUMNS = """
    SELECT format('%s.%s %s null=%s default=%s: %s', c.table_name, c.column_name,
        format_type(a.atttypid, a.atttypmod), c.is_nullable, c.column_default,
        col_description(a.attrelid, a.attnum))
    FROM information_schema.columns c
    JOIN pg_attribute a ON a.attrelid = format('market_data.%I', c.table_name)::regclass
        AND a.attname = c.column_name
    WHERE c.table_schema = 'market_data' AND c.table_name <> 'alembic_version' ORDER BY 1"""
_CONSTRAINTS = """
    SELECT format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = 'market_data'::regnamespace
        AND conrelid::regclass::text NOT LIKE '%alembic_version' ORDER BY 1"""
_INDEXES = """
    SELECT indexdef FROM pg_indexes
    WHERE schemaname = 'market_data' AND tablename <> 'alembic_version' ORDER BY 1"""
_SEQUENCES = """
    SELECT sequencename FROM pg_sequences WHERE schemaname = 'market_data' ORDER BY 1"""
# What PostgreSQL says of the market tables: equal words, equal tables.
DESCRIPTIONS = (_COLUMNS, _CONSTRAINTS, _INDEXES, _SEQUENCES)


@contextmanager
def create_database(server_url: str) -> Iterator[str]:
    """Create an empty database, give its address, and drop it in the end."""
    name = f"test_{uuid4().hex}"
    # With pings, as a test may have crashed the server meanwhile.
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def read_column(address: str | Engine, query: str) -> list[object]:
    """Return the first column of a query's rows."""
    engine = create_engine(address) if isinstance(address, str) else address
    with engine.connect() as connection:
        found = list(connection.execute(text(query)).scalars())
    if isinstance(address, str):
        engine.dispose()
    return found


@contextmanager
def hold_up_writers(
    address: str, table: str = BARS, mode: str = "ACCESS EXCLUSIVE"
) -> Iterator[None]:
    """Let whoever writes or reads a table wait until the block ends: a run stays at work.

    What a run holds before its first commit is then there for as long as a test looks for it.
    In the mode SHARE readers go on.
    """
    engine = create_engine(address)
    with engine.begin() as connection:
        connection.execute(text(f"LOCK TABLE {table} IN {mode} MODE"))
        yield
    engine.dispose()
