"""dlt's merge into a table like the product's: same columns, primary key and CHECKs.

The frame goes in as an Arrow table with the primary key as a hint, telemetry and logs off, and
each pipeline has run before. dlt has no uuid, so its ``run_id`` is text; its table has no foreign
key, which the product's has to pay for. Loader files are Parquet through the ADBC driver, the
fastest setup; without that driver it is CSV by COPY.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from sqlalchemy import make_url

from benchmarks.bar_table import KEYS, TABLE, BarTable
from benchmarks.database import Database
from benchmarks.rivals import stamp_bars
from benchmarks.rounds import Way
from market_pipeline.storage.tables import market_aggregate

DATASET = "bench_dlt"
DLT_NEEDS = ("dlt", "adbc_driver_postgresql", "pyarrow")
_TABLE = f"{DATASET}.{market_aggregate.name}"
_SETTINGS = {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "CRITICAL"}
STRATEGIES: Mapping[str, Mapping[str, object]] = {
    "dlt_upsert": {"strategy": "upsert"},
    "dlt_upsert_skip_unchanged": {"strategy": "upsert", "skip_unchanged_rows": True},
    "dlt_delete_insert": {"strategy": "delete-insert"},
}


class DltTable:
    """dlt's own copy of a bar table, and the pipelines that merge into it."""

    def __init__(self, table: BarTable, folder: Path) -> None:
        os.environ.update(_SETTINGS)
        self._table = table
        self._folder = folder
        self._rows = stamp_bars(table.bars)
        table.database.execute(
            f"CREATE SCHEMA IF NOT EXISTS {DATASET}",
            f"CREATE TABLE IF NOT EXISTS {_TABLE} (LIKE {TABLE} INCLUDING ALL)",
            f"ALTER TABLE {_TABLE} ALTER run_id TYPE text, SET (autovacuum_enabled = off)",
        )

    def fill(self) -> None:
        """Bring about the full table."""
        database = self._table.database
        database.execute(f"TRUNCATE {_TABLE}")
        database.run_psql("-c", f"\\copy {_TABLE} FROM '{self._table.text_file}'")
        database.execute(f"VACUUM (ANALYZE) {_TABLE}", "CHECKPOINT")

    def build_way(self, strategy: str, loader: str, suffix: str = "") -> Way:
        """Return the reload of all rows by one strategy and loader format, warmed up."""
        merge = self._build_merge(strategy, loader)
        merge(self._rows.iloc[:100])
        return Way(
            f"{strategy}{suffix}", lambda: merge(self._rows), self.fill, units=len(self._rows)
        )

    def _build_merge(self, strategy: str, loader: str) -> Callable[[pd.DataFrame], None]:
        import dlt
        import pyarrow as pa

        pipeline = dlt.pipeline(
            f"bench_{strategy}_{loader}",
            destination=dlt.destinations.postgres(_build_credentials(self._table.database)),
            dataset_name=DATASET,
            pipelines_dir=str(self._folder / "dlt"),
        )

        def merge(rows: pd.DataFrame) -> None:
            resource: Any = dlt.resource(
                pa.Table.from_pandas(rows, preserve_index=False),
                name=market_aggregate.name,
                write_disposition={"disposition": "merge", **STRATEGIES[strategy]},
                primary_key=KEYS,
            )
            pipeline.run(resource, loader_file_format=loader).raise_on_failed_jobs()

        return merge


def _build_credentials(database: Database) -> str:
    """Return the address as dlt reads it: a socket's folder is the host, a password is there."""
    url = make_url(database.url)
    host = url.host or str(url.query["host"])
    password = quote(str(url.password or "unused"), safe="")
    user = quote(url.username or "", safe="")
    address = f"{user}:{password}@{quote(host, safe='')}:{url.port or 5432}/{url.database}"
    return f"postgresql://{address}"
