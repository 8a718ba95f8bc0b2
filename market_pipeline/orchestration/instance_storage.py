"""Dagster's own storage, in the same database as the market tables but in a schema of its own.

Named in ``dagster.yaml`` as a custom storage: that file has no defaults for unset variables.
"""

from typing import Any

from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from sqlalchemy import text

from market_pipeline.storage.engine import check_database, find_database, open_engine
from market_pipeline.storage.urls import set_search_path

DAGSTER_SCHEMA = "dagster"


class PipelineStorage(DagsterPostgresStorage):
    """dagster-postgres on DATABASE_URL, or on the embedded server when that is unset."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Take no configuration: the environment says where the database is."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: object
    ) -> "PipelineStorage":
        """Open the storage, creating its schema where it is missing.

        Raises:
            StorageError: The database cannot be reached or does not accept writes.
        """
        del config_value
        address = find_database()
        engine = open_engine(address, "market-pipeline-dagster")
        check_database(engine)
        with engine.begin() as connection:
            exists = connection.execute(
                text("SELECT to_regnamespace(:schema)"), {"schema": DAGSTER_SCHEMA}
            )
            if exists.scalar() is None:
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {DAGSTER_SCHEMA}"))
        engine.dispose()
        return cls(postgres_url=set_search_path(address.url, DAGSTER_SCHEMA), inst_data=inst_data)
