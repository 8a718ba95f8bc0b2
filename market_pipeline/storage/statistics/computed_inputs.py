"""The inputs of the last computation of rows, so that the same inputs are not computed again."""

from collections.abc import Iterable, Mapping
from uuid import UUID

from sqlalchemy import Connection, text

# What the rows of some scopes were computed from.
_READ = text("""
    SELECT scope, fingerprint FROM market_data.computed_input
    WHERE table_name = :table_name AND scope = ANY(:scopes)
""")
# Puts what rows are computed from in the place of what they were.
_WRITE = text("""
    INSERT INTO market_data.computed_input (table_name, scope, fingerprint, computed_at, run_id)
    SELECT :table_name, scope, fingerprint, clock_timestamp(), :run_id
    FROM unnest(CAST(:scopes AS text[]), CAST(:fingerprints AS text[])) new (scope, fingerprint)
    ON CONFLICT (table_name, scope) DO UPDATE SET fingerprint = excluded.fingerprint,
        computed_at = excluded.computed_at, run_id = excluded.run_id
""")


def read_fingerprints(
    connection: Connection, table_name: str, scopes: Iterable[str]
) -> dict[str, str]:
    """Return the fingerprint that a table's rows of each scope were computed from."""
    found = connection.execute(_READ, {"table_name": table_name, "scopes": list(scopes)})
    return {row.scope: row.fingerprint for row in found}


def write_fingerprints(
    connection: Connection, table_name: str, fingerprints: Mapping[str, str], run_id: UUID
) -> None:
    """Note what rows were computed from, in the transaction that writes them."""
    if fingerprints:
        told = {"scopes": list(fingerprints), "fingerprints": list(fingerprints.values())}
        connection.execute(_WRITE, {"table_name": table_name, "run_id": run_id, **told})
