"""The inputs of the last computation of rows, so that the same inputs are not computed again."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from market_pipeline.storage.tables import computed_input


def read_fingerprints(
    connection: Connection, table_name: str, scopes: Iterable[str]
) -> dict[str, str]:
    """Return the fingerprint that a table's rows of each scope were computed from."""
    known = computed_input.c
    query = select(known.scope, known.fingerprint).where(
        known.table_name == table_name, known.scope.in_(list(scopes))
    )
    return {row.scope: row.fingerprint for row in connection.execute(query)}


def write_fingerprints(
    connection: Connection, table_name: str, fingerprints: Mapping[str, str], run_id: UUID
) -> None:
    """Note what rows were computed from, in the transaction that writes them."""
    if not fingerprints:
        return
    stamps = {"table_name": table_name, "computed_at": datetime.now(UTC), "run_id": run_id}
    rows = [
        {**stamps, "scope": scope, "fingerprint": fingerprints[scope]} for scope in fingerprints
    ]
    statement = insert(computed_input)
    new = {name: statement.excluded[name] for name in ("fingerprint", "computed_at", "run_id")}
    keys = [column.name for column in computed_input.primary_key]
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=new), rows)
