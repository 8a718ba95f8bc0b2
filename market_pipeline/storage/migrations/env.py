"""The environment of Alembic: this project's tables, on the connection of the caller."""

from alembic import context

from market_pipeline.storage import ledgers
from market_pipeline.storage.tables import SCHEMA


def _is_ours(name: str | None, kind: str, parents: object) -> bool:
    del parents
    return kind != "schema" or name == SCHEMA


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=ledgers.metadata,
    include_schemas=True,
    include_name=_is_ours,
    version_table_schema=SCHEMA,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
